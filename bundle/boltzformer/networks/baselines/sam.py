"""SAM's and SAM 2's mask decoders, prompted by text.

Encoders and pixel decoder are those of `boltzformer.networks.boltzformer.BoltzFormer`; the decoder is that of
`transformers`, which follows the papers' code (Kirillov et al., ICCV 2023; Ravi et al., ICLR 2025). The text's tokens
stand where SAM has the embeddings of clicks and boxes. What differs between this network's numbers and BoltzFormer's is
so the decoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..decoder import check_width
from ..definition import remember_definition
from ..image_encoder import ImageEncoder
from ..noise import Noise
from ..prompted import Decoded, PromptedNetwork
from ..text_encoder import TextEncoder, TextFeatures


@dataclass(frozen=True)
class PyramidFeatures:
    """S encoded slices; index with a slice object to take some of them.

    Attributes:
        embedding: what the decoder's tokens and the image attend to each other in, stride 16, (S, d, h, w).
        finer: maps at strides 4 and 8 that are added on the way up, (S, d / 8, 4h, 4w) and (S, d / 4, 2h, 2w);
            empty for SAM, which has none.
        input_size: the input's height and width.
    """

    embedding: Tensor
    finer: tuple[Tensor, ...]
    input_size: tuple[int, int]

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def __getitem__(self, index: slice) -> PyramidFeatures:
        return PyramidFeatures(self.embedding[index], tuple(one[index] for one in self.finer), self.input_size)

    @staticmethod
    def concatenate(parts: Sequence[PyramidFeatures]) -> PyramidFeatures:
        """Join slices that were encoded one by one."""
        finer = zip(*(part.finer for part in parts), strict=True)
        return PyramidFeatures(
            torch.cat([part.embedding for part in parts]),
            tuple(torch.cat(same) for same in finer),
            parts[0].input_size,
        )


@remember_definition
class TextPromptedSam(PromptedNetwork):
    """SAM's two-way mask decoder on the pixel decoder's stride-16 level, one mask a prompt.

    A sentence is not ambiguous as a click is: there is one mask token, not four, and no head that ranks masks.

    Args:
        image_encoder: backbone with features at strides 4, 8, 16, 32.
        text_encoder: language encoder.
        image_size: working size in pixels, one number or (height, width), multiples of 32.
        dim: d, width of the decoder; a multiple of 8 times `num_heads`.
        num_heads: H.
        feedforward_dim: width of feed-forward layers, in the pixel decoder and the decoder.
        encoder_layers: transformer layers of the pixel decoder.
        depth: two-way blocks; 2 in SAM.
        default_prompt: what `text=None` means.
        seed: without effect, for this decoder draws nothing; runs set it for every network.
        batch_invariant: compute examples one by one in evaluation.

    Raises:
        InputError: `image_size` is no multiple of 32, or `dim` does not fit.
    """

    pyramid_levels = 2

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        image_size: int | Sequence[int] = 1024,
        dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        depth: int = 2,
        default_prompt: str = "lesion",
        seed: int = 0,
        batch_invariant: bool = True,
    ) -> None:
        check_width(dim, 2 * num_heads)  # attention between tokens and image is half as wide
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
        self.no_mask = nn.Parameter(torch.randn(1, dim, 1, 1))  # SAM's "no mask was given", added to the image
        self.position = _fixed_position(dim)
        self.mask_decoder = self._make_decoder(dim, num_heads, feedforward_dim, depth)

    def _make_decoder(self, dim: int, num_heads: int, feedforward_dim: int, depth: int) -> Any:
        from transformers.models.sam import SamMaskDecoderConfig  # slow to import, and only needed here
        from transformers.models.sam.modeling_sam import SamMaskDecoder

        decoder: Any = SamMaskDecoder(_configure(SamMaskDecoderConfig, dim, num_heads, feedforward_dim, depth))
        decoder.iou_prediction_head = nn.Identity()  # there is one mask, so nothing is to be ranked
        return decoder

    def _encode(self, image: Tensor, prompts: int) -> PyramidFeatures:
        input_size = (int(image.shape[-2]), int(image.shape[-1]))
        features = self.image_encoder(self._working_image(image))[-self.pyramid_levels :]
        scales, finest = self.pixel_decoder(features)
        levels = [*scales, finest]
        return PyramidFeatures(levels[1].contiguous(), self._finer_maps(*levels[2:]), input_size)

    def _finer_maps(self, *levels: Tensor) -> tuple[Tensor, ...]:
        return ()

    def _decode(
        self,
        features: PyramidFeatures,
        text: TextFeatures,
        noise: Noise | None,
        seed: int | None,
        keep_masks: bool,
        keep_sets: bool,
    ) -> Decoded:
        """Prompts with as many tokens each are decoded together: the decoder attends to all that it is given."""
        tokens = self.text_projection(text.tokens)
        each = len(text) // len(features)
        members: dict[int, list[int]] = {}
        for index, length in enumerate(text.lengths):
            members.setdefault(length, []).append(index)
        parts = []
        for length, chosen in members.items():
            slices = torch.tensor([index // each for index in chosen], device=tokens.device)
            prompts = torch.tensor(chosen, device=tokens.device)
            maps = [one.index_select(0, slices) for one in (features.embedding, *features.finer)]
            parts.append(self._decode_together(maps[0], maps[1:], tokens.index_select(0, prompts)[:, :length]))
        order = torch.tensor([index for chosen in members.values() for index in chosen]).argsort().to(tokens.device)
        joined = Decoded.concatenate(parts)
        existence = None if joined.existence is None else joined.existence[order]
        return Decoded(joined.logits[order], existence, None, joined.query_masks[order])

    def _decode_together(self, embedding: Tensor, finer: Sequence[Tensor], tokens: Tensor) -> Decoded:
        """B prompts without padding, (B, N_T, d), each with its own slice's maps."""
        masks, _ = self.mask_decoder(**self._decoder_inputs(embedding, tokens))
        return Decoded(masks[:, 0], None, None, masks[:, 0])

    def _decoder_inputs(self, embedding: Tensor, tokens: Tensor) -> dict[str, Any]:
        height, width = int(embedding.shape[-2]), int(embedding.shape[-1])
        y, x = (torch.arange(n, device=tokens.device).add(0.5) / n for n in (height, width))
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
        position = self.position(grid).permute(2, 0, 1)[None]
        return {
            "image_embeddings": embedding,
            "image_positional_embeddings": position.to(embedding.dtype),
            "sparse_prompt_embeddings": tokens[:, None],
            "dense_prompt_embeddings": self.no_mask,
            "multimask_output": False,
        }


@remember_definition
class TextPromptedSam2(TextPromptedSam):
    """SAM 2's mask decoder: SAM's, with maps at strides 8 and 4 added on the way up, and a score of existence.

    Args:
        image_encoder: see `TextPromptedSam`, as all arguments but one.
        text_encoder: likewise.
        image_size: likewise.
        dim: likewise.
        num_heads: likewise.
        feedforward_dim: likewise.
        encoder_layers: likewise.
        depth: likewise.
        existence: keep the decoder's own head that says whether the object is in the slice.
        default_prompt: likewise.
        seed: likewise.
        batch_invariant: likewise.
    """

    pyramid_levels = 4

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        image_size: int | Sequence[int] = 1024,
        dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        depth: int = 2,
        existence: bool = False,
        default_prompt: str = "lesion",
        seed: int = 0,
        batch_invariant: bool = True,
    ) -> None:
        super().__init__(
            image_encoder,
            text_encoder,
            image_size,
            dim,
            num_heads,
            feedforward_dim,
            encoder_layers,
            depth,
            default_prompt,
            seed,
            batch_invariant,
        )
        self.scores_existence = existence
        if not existence:
            self.mask_decoder.pred_obj_score_head = nn.Identity()  # a head without a loss would stall parallel training

    def _make_decoder(self, dim: int, num_heads: int, feedforward_dim: int, depth: int) -> Any:
        from transformers.models.sam2 import Sam2MaskDecoderConfig  # slow to import, and only needed here
        from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

        config = _configure(
            Sam2MaskDecoderConfig, dim, num_heads, feedforward_dim, depth, dynamic_multimask_via_stability=False
        )
        decoder: Any = Sam2MaskDecoder(config)
        decoder.iou_prediction_head = nn.Identity()
        return decoder

    def _finer_maps(self, *levels: Tensor) -> tuple[Tensor, ...]:
        stride_8, stride_4 = levels
        return self.mask_decoder.conv_s0(stride_4), self.mask_decoder.conv_s1(stride_8)

    def _decode_together(self, embedding: Tensor, finer: Sequence[Tensor], tokens: Tensor) -> Decoded:
        inputs = self._decoder_inputs(embedding, tokens)
        masks, _, _, score = self.mask_decoder(**inputs, high_resolution_features=list(finer))
        existence = score[:, 0, 0].float() if self.scores_existence else None
        return Decoded(masks[:, 0], existence, None, masks[:, 0])


def _configure(kind: Any, dim: int, num_heads: int, feedforward_dim: int, depth: int, **more: Any) -> Any:
    config = kind(
        hidden_size=dim,
        num_attention_heads=num_heads,
        mlp_dim=feedforward_dim,
        num_hidden_layers=depth,
        num_multimask_outputs=0,
        iou_head_hidden_dim=dim,
        **more,
    )
    config._attn_implementation = "sdpa"  # PyTorch's own attention; a config that stands alone names none
    return config


def _fixed_position(dim: int) -> nn.Module:
    """SAM's random Fourier features of a position in the slice: drawn once, of unit scale, never trained."""
    from transformers.models.sam.modeling_sam import SamPositionalEmbedding  # slow to import, and only needed here

    return SamPositionalEmbedding(SimpleNamespace(scale=1.0, num_pos_feats=dim // 2)).requires_grad_(False)
