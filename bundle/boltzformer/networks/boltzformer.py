"""The whole network: a slice and prompts in, mask logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
from .prompted import Decoded, Prediction, PromptedNetwork
from .semantic_map import EXPECTED_PROMPTS, MapForm, foldable, folding_pays, semantic_map_of
from .text_encoder import TextEncoder, TextFeatures

__all__ = ["BoltzFormer", "Decoded", "Prediction"]


@remember_definition
class BoltzFormer(PromptedNetwork):
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
        check_width(dim, num_heads)
        super().__init__(
            image_encoder,
            text_encoder,
            image_size,
            dim,
            num_heads,
            feedforward_dim,
            encoder_layers,
            default_prompt,
            seed,
            batch_invariant,
        )
        self.fold_semantic_map, self.plain = fold_semantic_map, plain
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
        self.scores_existence = existence
        self.existence = ExistenceHead(dim, num_heads) if existence else None
        self._seeded_noise = SeededNoise()

    def _decode(
        self,
        features: ImageFeatures,
        text: TextFeatures,
        noise: Noise | None,
        seed: int | None,
        keep_masks: bool,
        keep_sets: bool,
    ) -> Decoded:
        if noise is None:
            noise = self._draw(len(text), features.semantic_map.maps.device, seed)
        padded = len(set(text.lengths)) > 1
        return self.core(features, text.tokens, text.mask if padded else None, noise, keep_masks, keep_sets)

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

    def _encode(self, image: Tensor, prompts: int) -> ImageFeatures:
        input_size = (int(image.shape[-2]), int(image.shape[-1]))
        image = self._working_image(image)
        scales, finest = self.pixel_decoder(self.image_encoder(image))
        form = self.map_form(finest, prompts)
        semantic_map = semantic_map_of(finest, self.mask_features, self.attention_grids(), form)
        map_size = (int(finest.shape[-2]), int(finest.shape[-1]))
        from_image = None if self.pigma is None else self.pigma.image_share(image, map_size)
        return ImageFeatures(tuple(Patches.of(v) for v in scales), semantic_map, from_image, input_size)

    def map_form(self, finest: Tensor, prompts: int = EXPECTED_PROMPTS) -> MapForm:
        """How the semantic map is computed from the pixel decoder's finest level, (S, d, H, W)."""
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
