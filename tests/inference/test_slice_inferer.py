"""A volume through the slice network: prompts, batches, neighbours, seeds."""

from __future__ import annotations

import pytest
import torch
from boltzformer.data.prompts import Prompt
from boltzformer.data.windows import IntensityWindowd, limits_of
from boltzformer.errors import InputError
from boltzformer.inference.ensemble import SeededDecodings
from boltzformer.inference.masks import MasksFromLogitsd, combine_masks, label_of_ranks
from boltzformer.inference.memory import measure_peak
from boltzformer.inference.shared_encoding import SharedEncodingInferer
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.slice_progress import SliceProgress
from boltzformer.inference.slices import BLANK_LOGIT, Found, ranks_of
from boltzformer.networks.hurried import HurriedNetwork
from monai.data import MetaTensor, list_data_collate

from tests.support import small_network

PROMPTS = ["liver in abdominal CT", "a small nodule", "aorta"]


@pytest.fixture(scope="module")
def volume():
    return torch.rand(1, 1, 40, 36, 7, generator=torch.Generator().manual_seed(1))


def test_equals_the_network_slice_by_slice(volume, network):
    result = PromptedSliceInferer(PROMPTS, precision="plain")(volume, network)
    assert result.shape == (1, 3, 40, 36, 7)
    assert result.dtype == torch.float16
    with torch.no_grad():
        for k in range(7):
            for p, prompt in enumerate(PROMPTS):
                expected = network(volume[..., k], [prompt])[0, 0]
                assert torch.equal(result[0, p, :, :, k], expected.half())
    torch.testing.assert_close(PromptedSliceInferer(PROMPTS)(volume, network), result, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis(volume, network, axis):
    result = PromptedSliceInferer("aorta", spatial_dim=axis)(volume, network)
    turned = PromptedSliceInferer("aorta")(volume.movedim(2 + axis, -1), network)
    assert torch.equal(result.movedim(2 + axis, -1), turned)


def test_masks_do_not_depend_on_the_batch(volume, network):
    sizes = []

    class Spy(PromptedSliceInferer):
        def _stack(self, volume, chosen):
            sizes.append(len(chosen))
            return super()._stack(volume, chosen)

    small = Spy(PROMPTS, memory_gb=1e-9, precision="plain")(volume, network)
    assert sizes == [1] * 7
    sizes.clear()
    large = Spy(PROMPTS, memory_gb=4, precision="plain")(volume, network)
    assert sizes == [1, 6]
    assert torch.equal(small, large)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_groups_do_not_depend_on_the_memory(volume, network, precision, caplog):
    several = volume.repeat(1, 1, 1, 1, 3)  # two groups and a part of one
    large = PromptedSliceInferer(PROMPTS, memory_gb=4, precision=precision)(several, network)
    assert not [line for line in caplog.messages if "memory_gb" in line]
    small = PromptedSliceInferer(PROMPTS, memory_gb=1e-9, precision=precision)(several, network)
    assert torch.equal(small, large)
    assert torch.equal(large[..., :7], large[..., 14:])  # nor on a slice's place in its group
    assert "a group of 8 slices needs" in caplog.text


def test_bfloat16_is_that_of_the_hurried_network(volume, network):
    result = PromptedSliceInferer(PROMPTS, precision="bfloat16")(volume, network)
    with torch.no_grad():
        expected = HurriedNetwork(network, torch.bfloat16).segment(volume[0].movedim(-1, 0), PROMPTS)
    assert torch.equal(result[0], expected.half().permute(1, 2, 3, 0))


def test_weights_that_change_are_taken_again(volume):
    network, inferer = small_network(3), PromptedSliceInferer("aorta")
    first = inferer.computing(network)
    assert inferer.computing(network) is first
    before = inferer(volume, network)
    with torch.no_grad():
        next(network.image_encoder.parameters()).mul_(1.1)
    assert inferer.computing(network) is not first
    after = inferer(volume, network)
    assert not torch.equal(before, after)
    torch.testing.assert_close(
        after, PromptedSliceInferer("aorta", precision="plain")(volume, network), rtol=2e-3, atol=2e-3
    )


def test_a_volume_in_another_thread_may_clear_what_is_known_of_memory(volume, network, monkeypatch):
    inferer, usual = PromptedSliceInferer(PROMPTS), Found.take

    def take(found, *arguments):
        inferer._bytes_per_slice.clear()  # as `_fitted` does for a volume of another spacing
        usual(found, *arguments)

    expected = inferer(volume, network)
    monkeypatch.setattr(Found, "take", take)
    inferer._bytes_per_slice.clear()
    assert torch.equal(inferer(volume, network), expected)


@pytest.mark.parametrize("precision", ["plain", "float32"])
def test_blank_slices_are_empty_and_the_others_as_they_were(volume, network, precision):
    dark = volume.clone()
    dark[..., [0, 1, 4]] = 0
    all_computed = PromptedSliceInferer(PROMPTS, precision=precision, skip_blank=False)(dark, network)
    result = PromptedSliceInferer(PROMPTS, precision=precision)(dark, network)
    assert (result[..., [0, 1, 4]] == BLANK_LOGIT).all()
    assert torch.equal(result[..., [2, 3, 5, 6]], all_computed[..., [2, 3, 5, 6]])
    assert not (all_computed == BLANK_LOGIT).any()
    near = PromptedSliceInferer(PROMPTS, num_adjacent=1, precision=precision)(dark, network)
    assert (near == BLANK_LOGIT).flatten(1, 3).all(1)[0].tolist() == [True, *[False] * 6]
    nothing = PromptedSliceInferer("aorta", precision=precision)(torch.zeros_like(volume), network)
    assert (nothing == BLANK_LOGIT).all()


def test_existence_of_blank_slices_is_zero(volume):
    network = small_network(**{"network_def#existence": True})
    dark = volume.clone()
    dark[..., 2] = 0
    found = PromptedSliceInferer(PROMPTS)(MetaTensor(dark), network).meta["existence"][0]
    assert found.shape == (3, 7)
    assert ((found == 0) == (torch.arange(7) == 2)).all()


def test_notes_say_how_it_was_computed(network):
    baseline = SeededDecodings(network, 2)
    assert PromptedSliceInferer("aorta").computation(network) == "float32, in groups of 8 slices"
    assert PromptedSliceInferer("aorta").computation(baseline) == "float32, slice by slice"
    assert PromptedSliceInferer("aorta", precision="plain").computation(network) == "float32, slice by slice"
    low = PromptedSliceInferer("aorta", precision="bfloat16")
    assert low.computation(network) == "float32, image encoder in bfloat16, in groups of 8 slices"
    cast = PromptedSliceInferer("aorta", autocast=torch.bfloat16)
    assert cast.computation(network) == "autocast bfloat16, in groups of 8 slices"
    with pytest.raises(InputError, match="decoded once"):
        low.computation(baseline)


def test_masks_do_not_depend_on_the_other_prompts(volume, network):
    together = PromptedSliceInferer(PROMPTS)(volume, network)
    for p, prompt in enumerate(PROMPTS):
        assert torch.equal(together[:, p : p + 1], PromptedSliceInferer(prompt)(volume, network))


def test_seed_decides_the_draw(volume, network):
    first, again, other = (PromptedSliceInferer("aorta", seed=seed)(volume, network) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_neighbours_as_channels(volume, network):
    result = PromptedSliceInferer("aorta", num_adjacent=1, precision="plain")(volume, network)
    with torch.no_grad():
        for k, (below, above) in {0: (0, 1), 3: (2, 4), 6: (5, 6)}.items():
            stack = torch.cat([volume[..., below], volume[..., k], volume[..., above]], dim=1)
            assert torch.equal(result[0, 0, :, :, k], network(stack, ["aorta"])[0, 0].half())


def test_each_slice_and_prompt_is_encoded_once(volume, network, monkeypatch):
    calls = {"image": 0, "text": 0}
    encode_image, encode_text = network.encode_image, network.encode_text

    def count_image(image):
        calls["image"] += len(image)
        return encode_image(image)

    def count_text(prompts):
        calls["text"] += len(prompts)
        return encode_text(prompts)

    monkeypatch.setattr(network, "encode_image", count_image)
    monkeypatch.setattr(network, "encode_text", count_text)
    PromptedSliceInferer(PROMPTS, precision="plain")(volume, network)
    assert calls == {"image": 7, "text": 3}


def test_called_as_monai_label_does(volume, network):
    # inferer(inputs, network), the prompt being an attribute or the network's default
    default = PromptedSliceInferer()(volume, network)
    assert torch.equal(default, PromptedSliceInferer(network.default_prompt)(volume, network))
    inferer = PromptedSliceInferer()
    inferer.prompt = "aorta"
    assert torch.equal(inferer(volume, network), PromptedSliceInferer("aorta")(volume, network))


def test_prompts_of_a_file_and_of_a_call(volume, network):
    inferer = PromptedSliceInferer([Prompt("aorta", "vessel")])
    assert torch.equal(inferer(volume, network), PromptedSliceInferer("aorta")(volume, network))
    assert inferer(volume, network, prompts=PROMPTS[:2]).shape[1] == 2


def test_progress_is_logged_where_there_is_no_terminal(volume, network, caplog, monkeypatch):
    monkeypatch.setattr(SliceProgress, "INTERVAL", 0.0)
    with caplog.at_level("INFO"):
        PromptedSliceInferer("aorta", memory_gb=1e-9, precision="plain")(volume, network)
    lines = [line for line in caplog.messages if line.startswith("slice ")]
    assert len(lines) == 6
    assert "slice 7/7" in lines[-1]
    assert "volume ends in 0:00:00" in lines[-1]
    caplog.clear()
    PromptedSliceInferer("aorta", progress=False)(volume, network)
    assert not [line for line in caplog.messages if line.startswith("slice ")]


def test_metadata_stays(volume, network):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image = MetaTensor(volume, affine=affine)
    result = PromptedSliceInferer("aorta")(image, network)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)


def test_lower_precision_gives_nearly_the_same(volume, network):
    exact = PromptedSliceInferer("aorta")(volume, network).float()
    low = PromptedSliceInferer("aorta", autocast=torch.bfloat16)(volume, network).float()
    assert not torch.equal(exact, low)
    assert (exact - low).abs().median() < 0.1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "is empty"), ("   ", "is empty"), (["aorta", 3], "must be text"), ([], "list of prompts is empty")],
)
def test_bad_prompts(volume, network, prompt, message):
    with pytest.raises(InputError, match=message):
        PromptedSliceInferer(prompt)(volume, network)


@pytest.mark.parametrize("shape", [(1, 40, 36, 7), (2, 1, 40, 36, 7), (1, 3, 40, 36, 7)])
def test_bad_shapes(network, shape):
    with pytest.raises(InputError, match="one volume of one channel"):
        PromptedSliceInferer("aorta")(torch.rand(shape), network)


@pytest.mark.parametrize("setting", [{"num_adjacent": 2}, {"memory_gb": 0}, {"spatial_dim": 3}, {"precision": "half"}])
def test_bad_settings(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        PromptedSliceInferer("aorta", **setting)


def test_shared_encoding_equals_the_network():
    network = small_network(3)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = images[[0, 0, 1, 2, 2, 2]]
    text = ["a", "b", "a", "c", "a", "b"]
    seen = []
    encode = network.encode_image
    network.encode_image = lambda image, *_: (seen.append(len(image)), encode(image))[1]
    with torch.no_grad():
        shared = SharedEncodingInferer()(batch, network, text=text)
        assert sum(seen) == 3
        assert torch.equal(shared, network(batch, text))
        assert torch.equal(SharedEncodingInferer()(batch, network), network(batch))


def test_peak_of_known_sizes():
    def work():
        first = torch.ones(1000, 250)  # 1 MB
        second = first * 2  # 2 MB alive
        del first
        third = second + 1  # 2 MB alive
        view = third.view(-1)[:10]
        view += 1  # nothing new
        return third[:1].clone()

    result, peak = measure_peak(work, torch.device("cpu"))
    assert result.shape == (1, 250)
    assert 2_000_000 <= peak <= 2_010_000


def test_peak_does_not_count_what_was_there():
    before = torch.ones(1_000_000)
    _, peak = measure_peak(lambda: before.add_(1).sum(), torch.device("cpu"))
    assert peak < 1000


@pytest.mark.parametrize("adjacent", [0, 1])
def test_a_window_that_is_still_to_be_applied(network, adjacent):
    hounsfield = torch.randint(
        -1000, 1500, (1, 40, 36, 6), dtype=torch.int16, generator=torch.Generator().manual_seed(1)
    )
    hounsfield[..., 2] = -160  # at the lower limit: blank
    item = {"image": MetaTensor(hounsfield), "modality": "CT"}
    at_once = IntensityWindowd("image", "soft tissue")(item)["image"]
    later = IntensityWindowd("image", "soft tissue", deferred=True)(item)["image"]
    assert torch.equal(later.as_tensor(), hounsfield)
    assert "window_limits" not in item["image"].meta
    inferer = PromptedSliceInferer("aorta", num_adjacent=adjacent)
    expected = inferer(at_once[None], network).as_tensor()
    assert torch.equal(inferer(later[None], network).as_tensor(), expected)
    assert bool((expected[..., 2] == BLANK_LOGIT).all()) == (adjacent == 0)
    collated = list_data_collate([{"image": later}])["image"]  # as MONAI's evaluators hand it on
    assert limits_of(collated) == limits_of(later) == (-160.0, 240.0)
    assert torch.equal(inferer(collated, network).as_tensor(), expected)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_intensities_without_a_window_are_refused(volume, network, dtype):
    with pytest.raises(InputError, match="found up to 500, and no window"):
        PromptedSliceInferer("aorta")((volume * 0 + 500).to(dtype), network)


@pytest.mark.parametrize("prompts", [["aorta"], PROMPTS])
def test_ranks_make_the_masks_and_label_map_of_logits(volume, network, prompts):
    logits, ranks = (
        MasksFromLogitsd("pred", keep_logits=keep)(
            {"pred": PromptedSliceInferer(prompts, keep_logits=keep)(volume, network)[0]}
        )
        for keep in (True, False)
    )
    assert 0 < int(logits["masks"].sum()) < logits["masks"].numel()
    assert torch.equal(ranks["masks"], logits["masks"])
    assert torch.equal(ranks["pred"], logits["pred"])
    assert "logits" not in ranks


def test_of_equal_logits_the_first_is_surest():
    logits = torch.tensor([[1.0, -2.0, 0.0, 3.0], [1.0, -1.0, 0.0, 4.0], [0.5, -1.0, -1.0, 4.0]])[None, :, :, None]
    ranks = ranks_of(logits)
    assert ranks[0, :, :, 0].tolist() == [[2, 0, 2, 1], [1, 0, 1, 2], [1, 0, 0, 1]]
    expected = combine_masks(logits[0])
    assert torch.equal(label_of_ranks(ranks[0]), expected)
    assert torch.equal(ranks[0], (logits[0] >= 0).to(torch.uint8)), "they have become masks"


def test_logits_that_were_not_kept_are_not_handed_on(volume, network):
    ranks = PromptedSliceInferer("aorta", keep_logits=False)(volume, network)[0]
    assert ranks.dtype == torch.uint8
    with pytest.raises(InputError, match="keep_logits"):
        MasksFromLogitsd("pred")({"pred": ranks})
