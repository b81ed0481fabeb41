"""Image and text encoders: shapes, local weights, absence of a hub, padding, caching."""

from __future__ import annotations

import logging
import time

import pytest
import timm
import torch
from boltzformer.errors import InputError
from boltzformer.networks.image_encoder import ImageEncoder
from boltzformer.networks.text_encoder import ClipTextEncoder, HuggingFaceTextEncoder
from safetensors.torch import save_file


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "resnet18"])
@torch.no_grad()
def test_features_at_four_strides(name):
    encoder = ImageEncoder(name).eval()
    features = encoder(encoder.normalise(torch.rand(1, 3, 64, 96)))
    assert [tuple(f.shape) for f in features] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(encoder.channels, (4, 8, 16, 32), strict=True)
    ]


def test_normalise_uses_the_backbones_statistics():
    encoder = ImageEncoder("tiny_vit_5m_224")
    grey = encoder.normalise(torch.full((1, 3, 1, 1), 0.5)).flatten()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(grey, (0.5 - mean) / std)


@pytest.mark.parametrize("form", ["features", "whole model"])
def test_local_weights_in_both_of_timms_key_layouts(tmp_path, form):
    torch.manual_seed(1)
    model = timm.create_model("tiny_vit_5m_224", features_only=form == "features")
    weights = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    encoder = ImageEncoder("tiny_vit_5m_224", weights=str(tmp_path / "weights.safetensors"))
    loaded = encoder.backbone.state_dict()["patch_embed.conv1.conv.weight"]
    assert torch.equal(loaded, weights["patch_embed.conv1.conv.weight"].float())
    last = [key for key in encoder.backbone.state_dict() if key.startswith("stages_3")][-3]
    key = last if form == "features" else last.replace("stages_3", "stages.3")
    assert torch.equal(encoder.backbone.state_dict()[last].half(), weights[key].half())


def test_windows_change_the_position_biases_alone_and_those_are_resized(tmp_path):
    torch.manual_seed(1)
    plain = ImageEncoder("tiny_vit_5m_224").eval()
    save_file(plain.backbone.state_dict(), tmp_path / "weights.safetensors")
    windows = ImageEncoder("tiny_vit_5m_224", str(tmp_path / "weights.safetensors"), window_sizes=[8, 8, 16, 8]).eval()
    before, after = plain.backbone.state_dict(), windows.backbone.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.endswith("attention_biases")}
    side = {"stages_1": (7, 8), "stages_2": (14, 16), "stages_3": (7, 8)}
    for key in changed:
        old, new = side[key.split(".")[0]]
        grid = before[key].unflatten(1, (old, old))
        resized = torch.nn.functional.interpolate(grid[None], size=(new, new), mode="bicubic", align_corners=False)
        torch.testing.assert_close(after[key], resized[0].flatten(1))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        shapes = [[feature.shape for feature in encoder(image)] for encoder in (plain, windows)]
        same = ImageEncoder("tiny_vit_5m_224", str(tmp_path / "weights.safetensors"), window_sizes=[7, 7, 14, 7]).eval()
        assert all(torch.equal(one, other) for one, other in zip(plain(image), same(image), strict=True))
    assert shapes[0] == shapes[1]


def test_windows_of_a_backbone_without_any_are_refused():
    with pytest.raises(InputError, match="resnet18"):
        ImageEncoder("resnet18", window_sizes=[8, 8, 8, 8])


def test_real_weights_fit(shared_dir):
    ImageEncoder("tiny_vit_5m_224", weights=str(shared_dir / "weights" / "tiny_vit_5m_mobile_sam.safetensors"))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors file")
    for file, message in (("other", "do not fit"), ("broken", "cannot be read"), ("absent", "not found")):
        with pytest.raises(InputError, match=message) as error:
            ImageEncoder("tiny_vit_5m_224", weights=str(tmp_path / f"{file}.safetensors"))
        assert f"{file}.safetensors" in str(error.value)


@torch.no_grad()
def test_backbones_that_build_but_cannot_run():
    swin = ImageEncoder("swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match="channels last"):
        swin(torch.rand(1, 3, 224, 224))
    with pytest.raises(InputError, match="takes no"):
        swin(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics_in_training(frozen):
    encoder = ImageEncoder("tiny_vit_5m_224", freeze_batch_norm=frozen).train()
    before = encoder.backbone.state_dict()["patch_embed.conv1.bn.running_mean"].clone()
    encoder(torch.rand(2, 3, 64, 64))
    after = encoder.backbone.state_dict()["patch_embed.conv1.bn.running_mean"]
    assert torch.equal(before, after) == frozen
    assert encoder.training


def test_unknown_and_unfit_backbones():
    with pytest.raises(InputError, match="Unknown backbone 'tiny_vitt'"):
        ImageEncoder("tiny_vitt")
    with pytest.raises(InputError, match="strides"):
        ImageEncoder("vit_tiny_patch16_224")


def test_without_a_hub_one_line_and_a_random_start_within_five_seconds(monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="boltzformer"):
        ImageEncoder("tiny_vit_5m_224", pretrained=True)
    assert time.monotonic() - start < 5
    warnings = [r for r in caplog.records if r.name.startswith("boltzformer")]
    assert len(warnings) == 1
    assert "starts at random" in warnings[0].getMessage()
    assert "\n" not in warnings[0].getMessage()


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return ClipTextEncoder(layers=2, width=32, heads=2).eval()


def test_clip_gives_the_full_token_sequence(clip):
    features = clip(["lung nodule", "right parotid gland in head and neck CT"])
    assert features.tokens.shape == (2, max(features.lengths), 32)
    assert features.lengths[0] == 2 + len(clip.tokenizer.encode("lung nodule"))
    assert features.mask.sum(1).tolist() == list(features.lengths)


def test_prompts_of_a_batch_do_not_meet(clip):
    prompts = ["liver", "a very long wording of the right parotid gland in head and neck CT"]
    with torch.no_grad():
        alone = clip(["liver"]).tokens
        assert torch.equal(clip(prompts)[:1].tokens, alone)
    assert torch.allclose(clip(prompts)[:1].tokens, alone, atol=1e-6)  # in training a batch is encoded together


def test_together_prompts_are_what_each_is_alone_up_to_rounding(clip):
    prompts = ["liver", "a small nodule in the left lung", "liver"]
    alone, cached = clip(prompts), dict(clip._cache)
    together = clip.together(prompts)
    assert torch.allclose(together.tokens, alone.tokens, atol=1e-5)
    assert (together.mask.tolist(), together.lengths) == (alone.mask.tolist(), alone.lengths)
    assert not together.tokens.requires_grad
    assert clip._cache.keys() == cached.keys()
    assert all(clip._cache[prompt] is cached[prompt] for prompt in cached)  # masks are made from these
    with pytest.raises(InputError, match="empty"):
        clip.together(["liver", " "])


def test_clip_tokens_are_those_of_the_towers_full_context(clip):
    with torch.no_grad():
        ids, mask = clip.tokenise(["left kidney in abdominal CT"])
        assert torch.allclose(clip(["left kidney in abdominal CT"]).tokens, clip.tower(ids)[:, : mask.sum()], atol=1e-6)


def test_embeddings_do_not_depend_on_padding():
    torch.manual_seed(0)
    long = ClipTextEncoder(layers=2, width=32, heads=2, context_length=77).eval()
    short = ClipTextEncoder(layers=2, width=32, heads=2, context_length=20).eval()
    weights = {k: v[:20] if k == "tower.positional_embedding" else v for k, v in long.state_dict().items()}
    short.load_state_dict(weights)
    assert torch.allclose(long(["lung nodule"]).tokens, short(["lung nodule"]).tokens, atol=1e-6)


@torch.no_grad()
def test_cache_is_used_and_forgotten_when_weights_change(clip):
    first = clip(["liver"]).tokens
    assert clip._cached("liver") is clip._cached("liver")
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    clip.load_state_dict({key: value + 0.01 for key, value in state.items()})
    assert not torch.equal(clip(["liver"]).tokens, first)
    clip.load_state_dict(state)
    assert torch.equal(clip(["liver"]).tokens, first)
    assert clip(["liver"]).tokens.shape == first.shape


def test_weights_that_may_change_learn_in_evaluation_mode_too(clip):
    assert clip(["liver"]).tokens.requires_grad
    with torch.no_grad():
        first = clip(["liver"]).tokens
        for parameter in clip.tower.parameters():
            parameter.add_(0.01)
        assert not torch.equal(clip(["liver"]).tokens, first)
        for parameter in clip.tower.parameters():
            parameter.sub_(0.01)


def test_frozen_encoder_never_learns():
    encoder = ClipTextEncoder(layers=1, width=32, heads=2, frozen=True).train()
    assert not encoder.training
    assert not encoder(["liver"]).tokens.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_clip_weights_from_a_file(clip, tmp_path):
    save_file({f"text.{key}": value for key, value in clip.tower.state_dict().items()}, tmp_path / "clip.safetensors")
    other = ClipTextEncoder(layers=2, width=32, heads=2, weights=str(tmp_path / "clip.safetensors")).eval()
    assert torch.equal(other(["liver"]).tokens, clip(["liver"]).tokens)
    with pytest.raises(InputError, match="no CLIP text tower of 3 layers"):
        ClipTextEncoder(layers=3, width=32, heads=2, weights=str(tmp_path / "clip.safetensors"))
    with pytest.raises(InputError, match="not found"):
        ClipTextEncoder(layers=3, width=32, heads=2, weights=str(tmp_path / "absent.safetensors"))


def test_hugging_face_encoder_from_a_local_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "lung", "nodule", "in", "ct"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    encoder = HuggingFaceTextEncoder(str(tmp_path), context_length=12)
    assert encoder.width == 32
    both = encoder(["lung nodule in ct", "liver"])
    assert both.lengths == (6, 3)
    assert torch.equal(both[1:].tokens, encoder(["liver"]).tokens)
    longer = HuggingFaceTextEncoder(str(tmp_path), context_length=30)
    assert torch.allclose(longer(["liver"]).tokens, encoder(["liver"]).tokens, atol=1e-6)


def test_hugging_face_encoder_that_is_absent(tmp_path):
    with pytest.raises(InputError, match=r"cannot be loaded.*config\.json"):
        HuggingFaceTextEncoder(str(tmp_path / "absent"))
