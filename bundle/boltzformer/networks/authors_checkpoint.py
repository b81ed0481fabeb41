"""Weights in the layout of the authors' released code -> the layout of this network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_DECODER = (
    (r"query_feat\.weight", "query_features"),
    (r"query_embed\.weight", "query_position"),
    (r"level_embed\.weight", "level_embedding"),
    (r"initial_self_attention_layer\.self_attn\.(.+)", r"prior_attention.attention.\1"),
    (r"initial_self_attention_layer\.norm\.(.+)", r"prior_attention.norm.\1"),
    (r"initial_ffn_layer\.(.+)", r"prior_feedforward.\1"),
    (r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.(.+)", r"blocks.\1.cross_attention.attention.\2"),
    (r"transformer_cross_attention_layers\.(\d+)\.norm\.(.+)", r"blocks.\1.cross_attention.norm.\2"),
    (r"transformer_self_attention_layers\.(\d+)\.self_attn\.(.+)", r"blocks.\1.self_attention.attention.\2"),
    (r"transformer_self_attention_layers\.(\d+)\.norm\.(.+)", r"blocks.\1.self_attention.norm.\2"),
    (r"transformer_ffn_layers\.(\d+)\.(.+)", r"blocks.\1.feedforward.\2"),
    (r"decoder_norm\.(.+)", r"norm.\1"),
    (r"mask_embed\.layers\.0\.(.+)", r"mask_mlp.0.\1"),
    (r"mask_embed\.layers\.1\.(.+)", r"mask_mlp.2.\1"),
    (r"mask_embed\.layers\.2\.(.+)", r"mask_mlp.4.\1"),
)
_PIXEL_DECODER = (
    (r"input_proj\.(.+)", r"pixel_decoder.input_proj.\1"),
    (r"transformer\.encoder\.layers\.(\d+)\.(.+)", r"pixel_decoder.encoder.\1.\2"),
    (r"adapter_([1-4])\.weight", r"pixel_decoder.adapters.{}.conv.weight"),
    (r"adapter_([1-4])\.norm\.(.+)", r"pixel_decoder.adapters.{}.norm.\2"),
    (r"layer_([1-4])\.weight", r"pixel_decoder.outputs.{}.conv.weight"),
    (r"layer_([1-4])\.norm\.(.+)", r"pixel_decoder.outputs.{}.norm.\2"),
    (r"mask_features\.(.+)", r"mask_features.\1"),
)
_PIGMA = ((r"output_deconv\.(.+)", r"pigma.upsample.\1"), (r"output_conv\.(.+)", r"pigma.combine.\1"))
_UNUSED = ("class_embed",)


def convert_decoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys below `sem_seg_head.predictor.` -> keys of `BoltzFormerDecoder`; unused ones are dropped."""
    return {new: value for key, value in weights.items() if (new := _rename(key, _DECODER))}


def convert_pixel_decoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys below `sem_seg_head.pixel_decoder.` -> keys of `BoltzFormer`."""
    return {new: value for key, value in weights.items() if (new := _rename(key, _PIXEL_DECODER))}


def convert_pigma(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Top-level keys of PiGMA -> keys of `BoltzFormer`."""
    return {new: value for key, value in weights.items() if (new := _rename(key, _PIGMA))}


def convert_checkpoint(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a whole checkpoint: decoder, pixel decoder, semantic map and PiGMA.

    Args:
        weights: the state dict, with or without a leading `model.` or `module.`.

    Returns:
        The converted part, in keys of `BoltzFormer`, and the keys that have no counterpart (the backbone's and
        the language encoder's among them: load those through the encoders' `weights`).
    """
    converted: dict[str, Tensor] = {}
    left: list[str] = []
    for full_key, value in weights.items():
        key = re.sub(r"^(model\.|module\.)+", "", full_key)
        new = _rename(key.removeprefix("sem_seg_head.pixel_decoder."), _PIXEL_DECODER) or _rename(key, _PIGMA)
        if new is None and (inner := _rename(key.removeprefix("sem_seg_head.predictor."), _DECODER)):
            new = f"decoder.{inner}"
        if new is None:
            left.append(full_key)
        else:
            converted[new] = value
    return converted, [key for key in left if not key.endswith(_UNUSED)]


def _rename(key: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in table:
        if match := re.fullmatch(pattern, key):
            if "{}" in replacement:  # the authors count levels from 1, finest first
                replacement = replacement.replace("{}", str(int(match[1]) - 1))
            return match.expand(replacement)
    return None
