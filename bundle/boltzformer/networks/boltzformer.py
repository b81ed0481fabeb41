"""The whole network: a slice and prompts in, mask logits out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boltzformer.errors import InputError

from .attention.layer import Form
from .attention.patches import Patches
from .attention.rules import AttentionRule
from .decoder import BoltzFormerDecoder, check_width
from .definition import remember_definition
from .existence import ExistenceHead
from .features import ImageFeatures
from .image_encoder import ImageEncoder
from .noise import Noise, SeededNoise, fresh_noise
from .pigma import PiGMA, mean_mask
from .pixel_decoder import PixelDecoder
from .semantic_map import EXPECTED_PROMPTS, MapForm, foldable, folding_pays, semantic_map_of
from .text_encoder import TextEncoder, TextFeatures


@dataclass(frozen=True)
class Decoded:
    """What B prompts found.

    Attributes:
        logits: of the mask, (B, 1, H, W), float32.
        existence: logit that the object is in the slice, (B,), float32; None without an existence head.
        queries: query embeddings after the last layer, (B, m, d).
        query_masks: the queries' own mask logits, (B, m, h, w) at the semantic map.
        layer_masks: see `decoder.DecoderResult`; None unless asked for.
        layer_sets: likewise.
    """

    logits: Tensor
    existence: Tensor | None
    queries: Tensor
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
            torch.cat([part.queries for part in parts]),
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


@remember_definition
class BoltzFormer(nn.Module):
    """Text-prompted segmentation of small objects by Boltzmann attention sampling (CVPR 2025).

    In training every example draws its attention sets afresh. In evaluation the draw is seeded and the same for every
    slice, and (with `batch_invariant`) each example is computed by itself, so that a slice's mask is bit-identical
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
        attention: which patches a query attends to: `Boltzmann` (None, with the paper's numbers),
            `Threshold`, `Full` or a rule of one's own.
        text_conditioned_prior: condition the first queries on the text (eq. 4).
        use_pigma: False averages the queries' masks only (the paper's ablation).
        pigma_channels: c, channels inside PiGMA.
        existence: add a head that says whether the object is in the slice (not in the paper).
        default_prompt: what `text=None` means.
        seed: of the draw in evaluation.
        batch_invariant: compute examples one by one in evaluation. False is faster on a GPU; its logits differ by
            rounding, and where that changes a draw, by more.
        fold_semantic_map: fold the last convolution into the queries; None decides from the sizes, on the CPU, by the
            prompts of a slice in training and for a few in evaluation.
        plain: compute attention and semantic map in their plain forms, to read and to compare with.

    Raises:
        InputError: `image_size` is no multiple of 32, or a setting is out of its range.
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
        attention: AttentionRule | None = None,
        text_conditioned_prior: bool = True,
        use_pigma: bool = True,
        pigma_channels: int = 10,
        existence: bool = False,
        default_prompt: str = "lesion",
        seed: int = 0,
        batch_invariant: bool = True,
        fold_semantic_map: bool | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = _check_image_size(image_size)
        check_width(dim, num_heads)
        self.default_prompt, self.seed = default_prompt, seed
        self.batch_invariant, self.fold_semantic_map, self.plain = batch_invariant, fold_semantic_map, plain
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
        form: Form = "plain" if plain else "auto"
        self.decoder = BoltzFormerDecoder(
            dim,
            num_queries,
            num_layers,
            num_heads,
            feedforward_dim,
            attention=attention,
            text_conditioned_prior=text_conditioned_prior,
            form=form,
        )
        self.pigma = PiGMA(num_queries, pigma_channels) if use_pigma else None
        self.existence = ExistenceHead(dim, num_heads) if existence else None
        self._seeded_noise = SeededNoise()

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

    def encode_image(self, image: Tensor, prompts: int = 1) -> ImageFeatures:
        """Encode slices, (S, C, H, W) in [0, 1], for any number of prompts.

        Args:
            image: the slices.
            prompts: of a slice, in training, to choose the faster of two ways. In evaluation it has no effect: a mask
                does not depend on how many others are asked for.
        """
        if image.dim() != 4 or image.shape[1] not in (1, 3):
            raise InputError(f"An image batch must be (B, 1 or 3, H, W), not {tuple(image.shape)}.")
        prompts = prompts if self.training else EXPECTED_PROMPTS
        if self._one_by_one() and image.shape[0] > 1:
            return ImageFeatures.concatenate([self._encode(one, prompts) for one in image.split(1)])
        return self._encode(image, prompts)

    def decode(
        self,
        features: ImageFeatures,
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
        if noise is None:
            noise = self._draw(prompts, features.semantic_map.maps.device, seed)
        text = text[:]  # without padding that no prompt of this batch needs
        padded = len(set(text.lengths)) > 1
        decoded = self.core(features, text.tokens, text.mask if padded else None, noise, *keep)
        logits = F.interpolate(decoded.logits.float(), size=size, mode="bilinear", align_corners=False)
        return replace(decoded, logits=logits)

    def core(
        self,
        features: ImageFeatures,
        tokens: Tensor,
        token_mask: Tensor | None,
        noise: Noise | None,
        keep_masks: bool = False,
        keep_sets: bool = False,
    ) -> Decoded:
        """Decoder, PiGMA and existence head on tensors alone; logits (B, 1, H/2, W/2) of the working size."""
        text = self.text_projection(tokens)
        result = self.decoder(features.scales, features.semantic_map, text, token_mask, noise, keep_masks, keep_sets)
        masks = features.semantic_map.mask_logits(result.mu)
        if self.pigma is None or features.from_image is None:
            logits = mean_mask(masks, (2 * masks.shape[-2], 2 * masks.shape[-1]))
        else:
            logits = self.pigma(masks, features.from_image.to(masks.dtype))
        existence = None
        if self.existence is not None:
            existence = self.existence(result.queries, text, token_mask, features.scales[:2], logits)
        return Decoded(logits, existence, result.queries, masks, result.layer_masks, result.layer_sets)

    def attention_grids(self) -> list[tuple[int, int]]:
        """(height, width) of the three patch grids, coarse to fine."""
        return [(self.image_size[0] // s, self.image_size[1] // s) for s in (32, 16, 8)]

    def _encode(self, image: Tensor, prompts: int) -> ImageFeatures:
        input_size = (int(image.shape[-2]), int(image.shape[-1]))
        image = image.float()
        if input_size != self.image_size:
            shrinks = input_size[0] > self.image_size[0] or input_size[1] > self.image_size[1]
            image = F.interpolate(image, size=self.image_size, mode="bilinear", align_corners=False, antialias=shrinks)
        image = image.to(self.image_encoder.mean.dtype).expand(-1, 3, -1, -1)
        image = self.image_encoder.normalise(image)
        scales, finest = self.pixel_decoder(self.image_encoder(image))
        form = self._map_form(finest, prompts)
        semantic_map = semantic_map_of(finest, self.mask_features, self.attention_grids(), form)
        map_size = (int(finest.shape[-2]), int(finest.shape[-1]))
        from_image = None if self.pigma is None else self.pigma.image_share(image, map_size)
        return ImageFeatures(tuple(Patches.of(v) for v in scales), semantic_map, from_image, input_size)

    def _map_form(self, finest: Tensor, prompts: int) -> MapForm:
        if self.plain:
            return "plain"
        if not all(foldable(finest.shape[-2:], grid) for grid in self.attention_grids()):
            return "explicit"
        if self.fold_semantic_map is not None:
            return "folded" if self.fold_semantic_map else "explicit"
        pixels = finest.shape[-1] * finest.shape[-2]
        patches = sum(self.decoder.patches_per_layer(self.attention_grids()))
        pays = folding_pays(self.decoder.num_queries, finest.shape[1], pixels, patches, prompts)
        return "folded" if pays and finest.device.type == "cpu" else "explicit"

    def _draw(self, batch: int, device: torch.device, seed: int | None) -> Noise | None:
        """Noise of each layer: fresh for every example in training, seeded and shared otherwise."""
        if not self.decoder.rule.needs_noise:
            return None
        patches = self.decoder.patches_per_layer(self.attention_grids())
        sets, queries = self.decoder.sets_per_query, self.decoder.num_queries
        if self.training and seed is None:
            return fresh_noise(batch, sets, queries, patches, device)
        return self._seeded_noise(self.seed if seed is None else seed, sets, queries, patches, device)

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
