"""Image encoder: any timm backbone with features at strides 4, 8, 16 and 32."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from boltzformer.errors import InputError

from .definition import remember_definition
from .positions import sine_embedding

logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16, 32)
HUB_TIMEOUT_S = 3.0


@remember_definition
class ImageEncoder(nn.Module):
    """Backbone that turns a normalised slice into features at four strides.

    Args:
        name: a timm model that gives features at strides 4, 8, 16, 32, such as "sam2_hiera_small", "hieradet_small",
            "sam2_hiera_base_plus", "focalnet_large_fl4" or "tiny_vit_5m_224".
        weights: a local file with the backbone's weights in timm's keys (.safetensors, .pt, .pth, .bin).
        pretrained: without `weights`, take timm's own from its hub (or the local cache of it). Where the hub cannot
            be reached, one warning says so and the backbone starts at random.
        freeze_batch_norm: keep batch normalisation at the statistics of the weights, also in training. Right for
            pretrained weights and batches of a few slices, whose own statistics are noise; wrong at a random start.
        window_sizes: sides of the attention windows of each stage, for backbones with such windows (TinyViT, Swin);
            None takes timm's. Windows that divide a stage's map need no padding: a 256 px slice has 16 x 16 positions
            at stride 16, which windows of 14 pad to 28 x 28, three times the work, most of it on zeros. Position
            biases of the weights are resized.
        add_position: add the position, times a learned factor, to the features at stride 32, so that they know where
            they are. For backbones without an embedding of positions, such as TinyViT: without any, the left and the
            right of a symmetric organ look alike.

    Raises:
        InputError: unknown name, a backbone with other strides, or a weights file that is absent or does not fit.
    """

    def __init__(
        self,
        name: str = "sam2_hiera_small",
        weights: str | None = None,
        pretrained: bool = False,
        freeze_batch_norm: bool = False,
        window_sizes: Sequence[int] | None = None,
        add_position: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.freeze_batch_norm = freeze_batch_norm
        self.options = {} if window_sizes is None else {"window_sizes": tuple(window_sizes)}
        self.backbone: Any = _create(name, self.options)
        self.channels: list[int] = self.backbone.feature_info.channels()
        self.place = nn.Parameter(torch.tensor([0.5])) if add_position else None
        config = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        if weights:
            load_backbone_weights(self.backbone, name, weights, self.options)
        elif pretrained:
            self._load_from_hub(config.get("hf_hub_id"))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of a slice.

        Args:
            image: (B, 3, H, W), normalised (`normalise`); H and W multiples of 32.

        Returns:
            Four tensors (B, C_i, H / s, W / s) for s = 4, 8, 16, 32.
        """
        try:
            features = self.backbone(image)
        except AssertionError as error:  # how timm's fixed-size models refuse an image
            raise InputError(f"Backbone {self.name!r} takes no {tuple(image.shape[-2:])} slices ({error}).") from error
        if [feature.shape[1] for feature in features] != self.channels:
            raise InputError(f"Backbone {self.name!r} gives features with the channels last; choose another.")
        if self.place is not None:
            last = features[-1]
            dim, height, width = last.shape[1:]
            features[-1] = last + (self.place * sine_embedding(height, width, dim, last.device)).to(last)
        return features

    def train(self, mode: bool = True) -> ImageEncoder:
        """As in torch, but frozen batch normalisation stays in evaluation."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def normalise(self, image: Tensor) -> Tensor:
        """[0, 1] -> the mean and standard deviation that the backbone was trained with."""
        return (image - self.mean) / self.std

    def _load_from_hub(self, repository: str | None) -> None:
        if not repository:
            logger.warning("%s has no published weights: the backbone starts at random.", self.name)
            return
        cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
        if isinstance(cached, str):
            load_backbone_weights(self.backbone, self.name, cached, self.options)
            return
        try:  # one short question first: a download without a network would retry for most of a minute
            huggingface_hub.HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
            file = huggingface_hub.hf_hub_download(repository, "model.safetensors")
        except Exception as error:  # any failure of the network or the hub has the same cure
            logger.warning(
                "Pretrained weights of %s cannot be had (%s: %s): the backbone starts at random. "
                "Give a local file as `weights` to use them.",
                self.name,
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "no reason given",
            )
            return
        load_backbone_weights(self.backbone, self.name, file, self.options)


def _create(name: str, options: Mapping[str, Any]) -> Any:  # attributes that nn.Module's type does not know
    if not timm.is_model(name):
        near = timm.list_models(f"*{re.split('[_.]', name)[0]}*")[:8]
        raise InputError(f"Unknown backbone {name!r}: timm has no model of that name. Near it: {near or 'none'}.")
    try:
        backbone: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
        strides = tuple(backbone.feature_info.reduction())
        if len(strides) > 4 and strides[-4:] == STRIDES:  # such as ResNets, which add a level at stride 2
            indices = tuple(range(len(strides) - 4, len(strides)))
            backbone = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices, **options)
            strides = tuple(backbone.feature_info.reduction())
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"Backbone {name!r} gives no feature maps ({error}); choose a hierarchical one.") from error
    if strides != STRIDES:
        raise InputError(f"Backbone {name!r} has features at strides {strides}; strides {STRIDES} are needed.")
    return backbone


def load_backbone_weights(
    backbone: nn.Module, name: str, path: str | Path, options: Mapping[str, Any] | None = None
) -> None:
    """Load weights of the whole timm model, or of its `features_only` form, into a features-only backbone.

    Args:
        backbone: from `timm.create_model(name, features_only=True)`.
        name: timm's name, for the model's own conversion of foreign checkpoints.
        path: the file.
        options: further arguments that the backbone was created with.

    Raises:
        InputError: the file is absent, unreadable or lacks part of the backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Backbone weights {path} not found; correct `weights` or leave it out.")
    try:
        loaded = load_state_dict(str(path))
    except Exception as error:  # safetensors, pickle and zip each have their own exceptions
        raise InputError(f"Backbone weights {path} cannot be read ({error}); fetch the file again.") from error
    chosen = _match(backbone.state_dict(), loaded)
    if len(chosen) < len(backbone.state_dict()):
        chosen = _match(backbone.state_dict(), _converted(loaded, name, options or {}))
    lacking = [key for key in backbone.state_dict() if key not in chosen]
    if lacking:
        raise InputError(
            f"Backbone weights {path} do not fit {name!r}: {len(lacking)} of {len(backbone.state_dict())} tensors are "
            f"missing or of another shape, such as {lacking[0]!r}. Name the backbone that the file was made with."
        )
    backbone.load_state_dict(chosen)


def _converted(loaded: dict[str, Tensor], name: str, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict through timm's own filter, which renames original checkpoints and resizes position biases."""
    model = timm.create_model(name, pretrained=False, **options)
    if any(re.match(r"stages_\d+\.", key) for key in loaded):  # features-only names: a bias is found by the full ones
        loaded = {re.sub(r"^stages_(\d+)\.", r"stages.\1.", key): value for key, value in loaded.items()}
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return convert(dict(loaded), model) if convert else loaded


def _match(wanted: dict[str, Tensor], loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `loaded` for each key of `wanted`, whose wrapper renames `stages.0` or adds `model.`."""
    chosen = {}
    for key, value in wanted.items():
        for candidate in (key, key.removeprefix("model."), re.sub(r"_(\d+)\.", r".\1.", key, count=1)):
            if candidate in loaded and loaded[candidate].shape == value.shape:
                chosen[key] = loaded[candidate].to(value.dtype)
                break
    return chosen
