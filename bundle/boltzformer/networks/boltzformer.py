"""The whole network: a slice and a prompt in, mask logits out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boltzformer.errors import InputError

from .boltzmann_attention import PatchFeatures
from .decoder import BoltzFormerDecoder, check_settings
from .definition import remember_definition
from .features import ImageFeatures, semantic_map_of
from .image_encoder import ImageEncoder
from .noise import Noise, SeededNoise, fresh_noise
from .pigma import PiGMA, mean_mask
from .pixel_decoder import PixelDecoder
from .sampling import AttentionRule
from .semantic_map import EXPECTED_PROMPTS, foldable, folding_pays
from .text_encoder import TextEncoder, TextFeatures


@remember_definition
class BoltzFormer(nn.Module):
    """Text-prompted segmentation of small objects by Boltzmann attention sampling (CVPR 2025).

    In training every example draws its attention sets afresh. In evaluation the draw is seeded and the same for every
    slice, and (with ``batch_invariant``) each example is computed by itself, so that a slice's mask is bit-identical
    whatever else is in the batch.

    Args:
        image_encoder: backbone with features at strides 4, 8, 16, 32.
        text_encoder: language encoder.
        image_size: working size in pixels, one number or (height, width), multiples of 32; inputs are resized to it.
        dim: d, width of the decoder.
        num_queries: m.
        num_layers: L.
        num_heads: H.
        feedforward_dim: width of feed-forward layers, in the pixel decoder and the decoder.
        encoder_layers: transformer layers of the pixel decoder.
        sample_ratio: N / N_v, see :class:`BoltzFormerDecoder`; likewise ``base_temperature``, ``attention_set``,
            ``threshold``, ``heads_share_set`` and ``text_conditioned_prior``.
        use_pigma: False averages the queries' masks only (the paper's ablation).
        pigma_channels: c, channels inside PiGMA.
        default_prompt: what ``text=None`` means.
        seed: of the draw in evaluation.
        batch_invariant: compute examples one by one in evaluation; False is faster on a GPU and equal up to rounding.
        fold_semantic_map: fold the last convolution into the queries; None decides from the sizes, on the CPU, for one
            prompt a slice in training and a few in evaluation.

    Raises:
        InputError: ``image_size`` is no multiple of 32, or a setting is out of its range.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        image_size: int | Sequence[int] = 1024,
        dim: int = 256,
        num_queries: int = 10,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        sample_ratio: float = 0.1,
        base_temperature: float = 1.0,
        attention_set: AttentionRule = "boltzmann",
        threshold: float = 0.5,
        heads_share_set: bool = True,
        text_conditioned_prior: bool = True,
        use_pigma: bool = True,
        pigma_channels: int = 10,
        default_prompt: str = "lesion",
        seed: int = 0,
        batch_invariant: bool = True,
        fold_semantic_map: bool | None = None,
    ) -> None:
        super().__init__()
        self.image_size = _check_image_size(image_size)
        check_settings(dim, num_heads, sample_ratio, base_temperature, attention_set)
        self.default_prompt, self.seed = default_prompt, seed
        self.batch_invariant, self.fold_semantic_map = batch_invariant, fold_semantic_map
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_projection = nn.Linear(text_encoder.width, dim)
        self.pixel_decoder = PixelDecoder(
            image_encoder.channels,
            dim,
            num_heads,
            feedforward_dim,
            encoder_layers,
            norm_groups=math.gcd(32, dim),
        )
        self.mask_features = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.decoder = BoltzFormerDecoder(
            dim,
            num_queries,
            num_layers,
            num_heads,
            feedforward_dim,
            sample_ratio=sample_ratio,
            base_temperature=base_temperature,
            attention_set=attention_set,
            threshold=threshold,
            heads_share_set=heads_share_set,
            text_conditioned_prior=text_conditioned_prior,
        )
        self.pigma = PiGMA(num_queries, pigma_channels) if use_pigma else None
        self._seeded_noise = SeededNoise()

    def forward(self, image: Tensor, text: Sequence[str] | TextFeatures | None = None) -> Tensor:
        """Segment one object in each slice.

        Args:
            image: (B, C, H, W) in [0, 1], C = 1 or 3 (three neighbouring slices), any H and W.
            text: B prompts, or their encoding from :meth:`encode_text`; None takes the default prompt.

        Returns:
            Mask logits, (B, 1, H, W), float32.

        Raises:
            InputError: a prompt is empty or not text, or the image's shape does not fit.
        """
        if text is None:
            text = [self.default_prompt] * image.shape[0]
        if not isinstance(text, TextFeatures):
            text = self.encode_text(text)
        features, count = self.encode_image(image), len(text) // image.shape[0]
        if count == 1:
            return self.decode(features, text)
        parts = [
            self.decode(features[s : s + 1].expand(count), text[s * count : (s + 1) * count]) for s in range(len(image))
        ]
        return torch.cat(parts)

    def segment(self, image: Tensor, prompts: Sequence[str] | TextFeatures, seed: int | None = None) -> Tensor:
        """Segment P objects in every slice; each slice and each prompt is encoded once.

        Args:
            image: (B, C, H, W) as in :meth:`forward`.
            prompts: P prompts or their encoding.
            seed: of the draw, instead of the network's.

        Returns:
            Mask logits, (B, P, H, W), float32.
        """
        text = prompts if isinstance(prompts, TextFeatures) else self.encode_text(prompts)
        features = self.encode_image(image)
        count = len(text)
        slices = []
        for b in range(len(features)):
            one = features[b : b + 1]
            if self._one_by_one():
                masks = [self.decode(one, text[p : p + 1], seed=seed) for p in range(count)]
            else:
                masks = [self.decode(one.expand(count), text, seed=seed)]
            slices.append(torch.cat(masks).transpose(0, 1))
        return torch.cat(slices)

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Token embeddings of prompts, (P, N_T, width), with their padding mask."""
        return self.text_encoder(prompts)

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Encode slices, (B, C, H, W) in [0, 1], for any number of prompts."""
        if image.dim() != 4 or image.shape[1] not in (1, 3):
            raise InputError(f"An image batch must be (B, 1 or 3, H, W), not {tuple(image.shape)}.")
        if self._one_by_one() and image.shape[0] > 1:
            return ImageFeatures.concatenate([self._encode(one) for one in image.split(1)])
        return self._encode(image)

    def decode(
        self,
        features: ImageFeatures,
        text: TextFeatures,
        size: tuple[int, int] | None = None,
        noise: Noise | None = None,
        seed: int | None = None,
        trace: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Find the object of prompt i in slice i.

        Args:
            features: B encoded slices.
            text: B encoded prompts.
            size: height and width of the result; None for the input's.
            noise: the draw's noise for each layer, (1 or B, sets a query, m, patches); None draws it.
            seed: of the draw in evaluation, instead of the network's.
            trace: if given, the attention sets of each layer are appended: bool (B, sets a query, m, patches) at the
                grids of :meth:`attention_grids`, or None where every patch is attended to. Batches in evaluation are
                traced as one.

        Returns:
            Mask logits, (B, 1, *size), float32.
        """
        if len(features) != len(text):
            raise InputError(f"{len(features)} slices came with {len(text)} prompts; give one prompt for each slice.")
        size = size or features.input_size
        if trace is None and self._one_by_one() and len(features) > 1:
            parts = range(len(features))
            rows = [self.decode(features[b : b + 1], text[b : b + 1], size, _rows(noise, b), seed) for b in parts]
            return torch.cat(rows)
        if noise is None:
            noise = self._draw(len(features), self.attention_grids(), features.image_at_map.device, seed)
        text = text[:]  # without padding that no prompt of this batch needs
        padded = len(set(text.lengths)) > 1
        logits = self.core(features, text.tokens, text.mask if padded else None, noise, trace)
        return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)

    def core(
        self,
        features: ImageFeatures,
        tokens: Tensor,
        token_mask: Tensor | None,
        noise: Noise | None,
        trace: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Decoder and PiGMA on tensors alone: logits (B, 1, H/2, W/2) of the working size."""
        mu = self.decoder(
            features.scales, features.semantic_map, self.text_projection(tokens), token_mask, noise, trace
        )
        masks = features.semantic_map.mask_logits(mu)
        if self.pigma is None:
            return mean_mask(masks, features.image_at_double.shape[-2:])
        return self.pigma(masks, features.image_at_map.to(masks.dtype), features.image_at_double.to(masks.dtype))

    def attention_grids(self) -> list[tuple[int, int]]:
        """(height, width) of the three patch grids, coarse to fine."""
        return [(self.image_size[0] // s, self.image_size[1] // s) for s in (32, 16, 8)]

    def _encode(self, image: Tensor) -> ImageFeatures:
        input_size = (int(image.shape[-2]), int(image.shape[-1]))
        image = image.float()
        if input_size != self.image_size:
            shrinks = input_size[0] > self.image_size[0] or input_size[1] > self.image_size[1]
            image = F.interpolate(image, size=self.image_size, mode="bilinear", align_corners=False, antialias=shrinks)
        image = image.to(self.image_encoder.mean.dtype).expand(-1, 3, -1, -1)
        image = self.image_encoder.normalise(image)
        scales, finest = self.pixel_decoder(self.image_encoder(image))
        semantic_map = semantic_map_of(finest, self.mask_features, self._folds(finest))
        map_size = (int(finest.shape[-2]), int(finest.shape[-1]))
        double = (map_size[0] * 2, map_size[1] * 2)
        at_map = F.interpolate(image, size=map_size, mode="bilinear", align_corners=False)
        at_double = F.interpolate(image, size=double, mode="bilinear", align_corners=False)
        return ImageFeatures([PatchFeatures(v) for v in scales], semantic_map, at_map, at_double, input_size)

    def _folds(self, finest: Tensor) -> bool:
        if not all(foldable(finest.shape[-2:], grid) for grid in self.attention_grids()):
            return False
        if self.fold_semantic_map is not None:
            return self.fold_semantic_map
        pixels = finest.shape[-1] * finest.shape[-2]
        patches = sum(self.decoder.patches_per_layer(self.attention_grids()))
        # not the true number of prompts: a prompt's mask must not depend on how many others are asked for
        prompts = 1 if self.training else EXPECTED_PROMPTS
        pays = folding_pays(self.decoder.num_queries, finest.shape[1], pixels, patches, prompts)
        return pays and finest.device.type == "cpu"

    def _draw(self, batch: int, grids: list[tuple[int, int]], device: torch.device, seed: int | None) -> Noise | None:
        """Noise of each layer: fresh for every example in training, seeded and shared otherwise."""
        if self.decoder.rule != "boltzmann":
            return None
        patches = self.decoder.patches_per_layer(grids)
        sets, queries = self.decoder.sets_per_query, self.decoder.num_queries
        if self.training and seed is None:
            return fresh_noise(batch, sets, queries, patches, device)
        return self._seeded_noise(self.seed if seed is None else seed, sets, queries, patches, device)

    def _one_by_one(self) -> bool:
        return self.batch_invariant and not self.training


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
