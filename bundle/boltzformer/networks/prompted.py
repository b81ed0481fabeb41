"""What every text-prompted network here has in common: encoders, pixel decoder, and the way from prompts to masks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boltzformer.errors import InputError

from .image_encoder import ImageEncoder
from .noise import Noise
from .pixel_decoder import PixelDecoder
from .semantic_map import EXPECTED_PROMPTS
from .text_encoder import TextEncoder, TextFeatures


@dataclass(frozen=True)
class Decoded:
    """What B prompts found.

    Attributes:
        logits: of the mask, (B, 1, H, W), float32.
        existence: logit that the object is in the slice, (B,), float32; None without an existence head.
        queries: query embeddings after the last layer, (B, m, d); None where a baseline's decoder keeps them to itself.
        query_masks: the queries' own mask logits, (B, m, h, w) at the semantic map.
        layer_masks: see `decoder.DecoderResult`; None unless asked for.
        layer_sets: likewise.
    """

    logits: Tensor
    existence: Tensor | None
    queries: Tensor | None
    query_masks: Tensor
    layer_masks: tuple[Tensor, ...] | None = None
    layer_sets: tuple[Tensor | None, ...] | None = None

    @staticmethod
    def concatenate(parts: Sequence[Decoded]) -> Decoded:
        """Join what was decoded one by one."""
        if len(parts) == 1:
            return parts[0]
        return Decoded(
            torch.cat([part.logits for part in parts]),
            _cat_all([part.existence for part in parts]),
            _cat_all([part.queries for part in parts]),
            torch.cat([part.query_masks for part in parts]),
            _cat_layers([part.layer_masks for part in parts]),  # type: ignore[arg-type]
            _cat_layers([part.layer_sets for part in parts]),
        )


@dataclass(frozen=True)
class Prediction:
    """P prompts on B slices.

    Attributes:
        logits: of the masks, (B, P, H, W), float32.
        existence: logits that the objects are there, (B, P), float32; None without an existence head.
    """

    logits: Tensor
    existence: Tensor | None


class PromptedNetwork(nn.Module, ABC):
    """Base of `boltzformer.BoltzFormer` and of the baselines that it is compared with.

    A subclass encodes slices (`_encode`) and decodes prompts on them (`_decode`); all else, and so what
    configs and other code ask of a network, is here.

    Args:
        image_encoder: backbone with features at strides 4, 8, 16, 32.
        text_encoder: language encoder.
        image_size: working size in pixels, one number or (height, width), multiples of 32; inputs are resized to it.
        dim: d, width of the decoder.
        num_heads: H, of the pixel decoder.
        feedforward_dim: width of the pixel decoder's feed-forward layers.
        encoder_layers: transformer layers of the pixel decoder.
        default_prompt: what `text=None` means.
        seed: of what is drawn in evaluation.
        batch_invariant: compute examples one by one in evaluation.

    Raises:
        InputError: `image_size` is no multiple of 32.
    """

    scores_existence = False
    """Whether it scores that the object is in the slice; `Decoded.existence` is None where it does not."""

    pyramid_levels = 4
    """Levels of the pixel decoder, from stride 32 on; a level without use would have weights that never learn."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        image_size: int | Sequence[int],
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        encoder_layers: int,
        default_prompt: str,
        seed: int,
        batch_invariant: bool,
    ) -> None:
        super().__init__()
        self.image_size = _check_image_size(image_size)
        self.default_prompt, self.seed, self.batch_invariant = default_prompt, seed, batch_invariant
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_projection = nn.Linear(text_encoder.width, dim)
        if text_encoder.standardised:  # keep their variance of 1: as loud as the queries
            nn.init.normal_(self.text_projection.weight, std=text_encoder.width**-0.5)
        channels = image_encoder.channels[-self.pyramid_levels :]
        self.pixel_decoder = PixelDecoder(
            channels, dim, num_heads, feedforward_dim, encoder_layers, norm_groups=math.gcd(32, dim)
        )

    def forward(
        self, image: Tensor, text: Sequence[str] | TextFeatures | None = None, everything: bool = False
    ) -> Tensor | Decoded:
        """Segment K objects in each slice.

        Args:
            image: (S, C, H, W) in [0, 1], C = 1 or 3 (three neighbouring slices), any H and W.
            text: S·K prompts, a slice's side by side, or their encoding from `encode_text`; None takes the
                default prompt.
            everything: return all that a loss may ask for, with the layers' masks.

        Returns:
            Mask logits, (S·K, 1, H, W), float32; or with `everything` a `Decoded`.

        Raises:
            InputError: a prompt is empty or not text, their number is no multiple of the slices', or the image's shape
                does not fit.
        """
        if text is None:
            text = [self.default_prompt] * image.shape[0]
        if not isinstance(text, TextFeatures):
            text = self.encode_text(text)
        features = self.encode_image(image, max(1, len(text) // max(1, image.shape[0])))
        decoded = self.decode(features, text, keep_masks=everything)
        return decoded if everything else decoded.logits

    def predict(self, image: Tensor, prompts: Sequence[str] | TextFeatures, seed: int | None = None) -> Prediction:
        """Segment P objects in every slice; each slice and each prompt is encoded once.

        Args:
            image: (B, C, H, W) as in `forward`.
            prompts: P prompts or their encoding.
            seed: of the draw, instead of the network's.
        """
        text = prompts if isinstance(prompts, TextFeatures) else self.encode_text(prompts)
        features = self.encode_image(image)
        found = [self.decode(features[b : b + 1], text, seed=seed) for b in range(len(features))]
        logits = torch.cat([one.logits.transpose(0, 1) for one in found])
        existence = _cat_all([None if one.existence is None else one.existence[None] for one in found])
        return Prediction(logits, existence)

    def segment(self, image: Tensor, prompts: Sequence[str] | TextFeatures, seed: int | None = None) -> Tensor:
        """The mask logits of `predict`, (B, P, H, W), float32."""
        return self.predict(image, prompts, seed).logits

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Token embeddings of prompts, (P, N_T, width), with their padding mask."""
        return self.text_encoder(prompts)

    def encode_image(self, image: Tensor, prompts: int = 1) -> Any:
        """Encode slices, (S, C, H, W) in [0, 1], for any number of prompts.

        Args:
            image: the slices.
            prompts: of a slice, in training, to choose the faster of two ways. In evaluation it has no effect: a mask
                does not depend on how many others are asked for.

        Returns:
            features of S slices, to be indexed by a slice object.
        """
        if image.dim() != 4 or image.shape[1] not in (1, 3):
            raise InputError(f"An image batch must be (B, 1 or 3, H, W), not {tuple(image.shape)}.")
        prompts = prompts if self.training else EXPECTED_PROMPTS
        if self._one_by_one() and image.shape[0] > 1:
            parts = [self._encode(one, prompts) for one in image.split(1)]
            return type(parts[0]).concatenate(parts)
        return self._encode(image, prompts)

    def decode(
        self,
        features: Any,
        text: TextFeatures,
        size: tuple[int, int] | None = None,
        noise: Noise | None = None,
        seed: int | None = None,
        keep_masks: bool = False,
        keep_sets: bool = False,
    ) -> Decoded:
        """Find the objects of B prompts in S slices, B / S prompts for each slice, side by side.

        Args:
            features: S encoded slices.
            text: B encoded prompts.
            size: height and width of the result; None for the input's.
            noise: the draw's noise for each layer, (1 or B, sets a query, m, patches); None draws it.
            seed: of the draw in evaluation, instead of the network's.
            keep_masks: return the layers' masks too.
            keep_sets: return the attention sets too, at the grids of `attention_grids`.
        """
        slices, prompts = len(features), len(text)
        if prompts % slices:
            raise InputError(f"{slices} slices came with {prompts} prompts; give as many prompts for each slice.")
        size = size or features.input_size
        keep = (keep_masks, keep_sets)
        if self._one_by_one() and prompts > 1:
            parts = []
            for b in range(prompts):
                s = b * slices // prompts
                parts.append(self.decode(features[s : s + 1], text[b : b + 1], size, _rows(noise, b), seed, *keep))
            return Decoded.concatenate(parts)
        decoded = self._decode(features, text[:], noise, seed, *keep)  # [:] drops padding that no prompt here needs
        logits = F.interpolate(decoded.logits.float(), size=size, mode="bilinear", align_corners=False)
        return replace(decoded, logits=logits)

    def attention_grids(self) -> list[tuple[int, int]]:
        """(height, width) of the three patch grids, coarse to fine."""
        return [(self.image_size[0] // s, self.image_size[1] // s) for s in (32, 16, 8)]

    @abstractmethod
    def _encode(self, image: Tensor, prompts: int) -> Any:
        """Features of slices (S, C, H, W), all at once; see `encode_image`."""

    @abstractmethod
    def _decode(
        self,
        features: Any,
        text: TextFeatures,
        noise: Noise | None,
        seed: int | None,
        keep_masks: bool,
        keep_sets: bool,
    ) -> Decoded:
        """Masks of prompts, all at once, at a size of the network's own; see `decode`."""

    def _working_image(self, image: Tensor) -> Tensor:
        """Slices at the working size, three channels, normalised: (S, 3, *image_size)."""
        height, width = int(image.shape[-2]), int(image.shape[-1])
        image = image.float()
        if (height, width) != self.image_size:
            shrinks = height > self.image_size[0] or width > self.image_size[1]
            image = F.interpolate(image, size=self.image_size, mode="bilinear", align_corners=False, antialias=shrinks)
        image = image.to(self.image_encoder.mean.dtype).expand(-1, 3, -1, -1)
        return self.image_encoder.normalise(image)

    def _one_by_one(self) -> bool:
        return self.batch_invariant and not self.training


def _cat_all(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All of them joined, or None where there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _cat_layers(parts: Sequence[tuple[Tensor | None, ...] | None]) -> tuple[Tensor | None, ...] | None:
    """The same layer of every part joined, for each layer."""
    layers = [part for part in parts if part is not None]
    return tuple(_cat_all(same) for same in zip(*layers, strict=True)) if layers else None


def _rows(noise: Noise | None, index: int) -> Noise | None:
    """Noise of one example; a field of one row is shared."""
    if noise is None:
        return None
    return [layer if layer.shape[0] == 1 else layer[index : index + 1] for layer in noise]


def _check_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    sizes = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sizes) != 2:
        raise InputError(f"image_size={image_size} must be one number or height and width.")
    height, width = sizes
    if height < 32 or width < 32 or height % 32 or width % 32:
        raise InputError(f"image_size={image_size} must be a multiple of 32, at least 32.")
    return height, width
