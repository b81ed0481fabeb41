from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.data.augmentation import RandSliceAffined
from boltzformer.data.cases import load_cases
from boltzformer.data.collate import collate_prompts
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.slice_transforms import ResizeSliced
from boltzformer.data.windows import IntensityWindow, apply_window, intensity_quantiles
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch.utils.data import DataLoader, default_collate

QUIET = {"progress": False, "num_workers": 1}


@pytest.fixture
def dataset(make_case, tmp_path):
    def build(cases=None, **arguments):
        return SliceDataset(cases or [make_case()], tmp_path / "cache", **{**QUIET, **arguments})

    return build


def _same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


def test_an_item_is_the_slice_the_mask_and_the_prompt(dataset, make_case):
    case = make_case()
    data = dataset([case], window=[-500, 700])
    image, label = (nib.as_closest_canonical(nib.load(case[key])) for key in ("image", "label"))
    assert len(data) == 3  # the block in slices 2 and 3, the dot in slice 2
    for index, (position, value, name) in enumerate([(2, 1, "block"), (2, 2, "dot"), (3, 1, "block")]):
        item = data[index]
        expected = np.clip((image.get_fdata()[:, :, position] + 500) / 1200, 0, 1)
        np.testing.assert_allclose(item["image"][0], expected, atol=1e-6)
        np.testing.assert_array_equal(item["label"][0], label.get_fdata()[:, :, position] == value)
        assert item["image"].dtype == item["label"].dtype == torch.float32
        assert item["label"].shape == (1, 12, 10)
        assert item["spacing"].tolist() == [2, 2]
        facts = {key: item[key] for key in ("text", "dataset", "case", "patient", "object", "slice")}
        assert facts == {
            "text": f"{name} in chest CT",
            "dataset": "toy",
            "case": "a",
            "patient": "a",
            "object": name,
            "slice": position,
        }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positives_are_every_slice_with_the_object(dataset, make_case, axis):
    label = np.random.default_rng(3).choice(np.array([0, 1, 2], np.uint8), (12, 10, 6), p=[0.96, 0.03, 0.01])
    data = dataset([make_case(label=label, affine=np.diag([2.0, 3.0, 4.0, 1.0]))], axis=axis, min_area=2)
    expected = {
        (position, value)
        for position in range(label.shape[axis])
        for value in (1, 2)
        if np.count_nonzero(label.take(position, axis) == value) >= 2
    }
    assert {data.locate(index)[1:] for index in range(len(data))} == expected
    np.testing.assert_allclose(data[0]["spacing"], np.delete([2.0, 3.0, 4.0], axis))
    names = {1: "block", 2: "dot"}
    present = {value for _, value in expected}
    assert data.counts() == {names[v]: sum(value == v for _, value in expected) for v in present}


def test_neighbouring_slices_are_channels_and_the_ends_repeat(dataset, make_case):
    label = np.zeros((8, 8, 5), np.uint8)
    label[4, 4] = 1
    case = make_case(label=label, affine=np.eye(4))
    volume = nib.load(case["image"]).get_fdata()
    data = dataset([case], num_adjacent=1, window=[-1000, 1000])
    for index in range(5):
        positions = np.clip(np.arange(index - 1, index + 2), 0, 4)
        expected = np.clip((np.moveaxis(volume[:, :, positions], -1, 0) + 1000) / 2000, 0, 1)
        np.testing.assert_allclose(data[index]["image"], expected, atol=1e-6)
        np.testing.assert_array_equal(data[index]["label"][0], label[:, :, index])


def test_negatives_are_of_annotated_objects_only(dataset, make_case):
    data = dataset(negative_share=0.5, training=True)
    assert len(data) == 6
    seen = set()
    for epoch in range(40):
        data.set_epoch(epoch)
        for index in range(3, 6):
            _, position, value = data.locate(index)
            assert not data[index]["label"].any()
            seen.add((position, value))
    # block is in slices 2 and 3, dot in slice 2; ghost is nowhere, hence not annotated
    assert seen == {(z, 1) for z in (0, 1, 4, 5)} | {(z, 2) for z in (0, 1, 3, 4, 5)}
    told = dataset([make_case(annotated=[1, 2, 3])], negative_share=0.9, training=True)
    assert {told.locate(index)[2] for index in range(3, len(told))} == {1, 2, 3}


def test_a_modality_that_the_window_needs_is_missed_before_anything_is_read(dataset, make_case, tmp_path):
    case = make_case(modality="")
    with pytest.raises(InputError, match=r"a\.nii\.gz: window 'auto' needs the modality, and the datalist states none"):
        dataset([case])
    assert not (tmp_path / "cache").exists()
    assert len(dataset([{**case, "window": "percentiles"}])) == len(dataset([case], window="lung")) == 3
    assert len(dataset([case], modality="MR")) == 3


def test_what_is_scored_has_a_name_and_a_label_of_its_own(dataset, make_case, tmp_path):
    case = make_case()
    twin = {**case, "image": str(tmp_path / "pt_2" / Path(case["image"]).name), "patient": "b"}
    (tmp_path / "pt_2").mkdir()
    shutil.copy(case["image"], twin["image"])
    with pytest.raises(InputError, match="are both a of toy"):
        dataset([case, twin])
    assert not (tmp_path / "cache").exists(), "before anything is read"
    assert len(dataset([case, twin], training=True)) == 6
    assert len(dataset([case, {**twin, "dataset": "other"}])) == 6

    second = {**case, "label": str(tmp_path / "second.nii.gz")}
    shutil.copy(case["label"], second["label"])
    with pytest.raises(InputError, match=r"second\.nii\.gz both answer for 'block' in slice 2"):
        dataset([case, second])
    label = nib.load(case["label"])
    values = np.array(label.dataobj)
    for file, value in ((case["label"], 1), (second["label"], 2)):
        only = np.where(values == value, value, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(only, label.affine), file)
    assert len(dataset([case, second])) == 3, "a label map for each object"
    both = [{**one, "annotated": [1, 2]} for one in (case, second)]
    with pytest.raises(InputError, match="both answer for"):
        dataset(both, negative_share=0.9)


def test_evaluation_has_the_same_negatives_in_every_epoch(dataset):
    data = dataset(negative_share=0.5)
    assert len(data) == 6
    first = [data.locate(index) for index in range(6)]
    assert len(set(first)) == 6
    data.set_epoch(7)
    assert [data.locate(index) for index in range(6)] == first
    assert len(dataset(negative_share=0.99)) == 3 + 9  # no more than there are


def test_evaluation_takes_the_first_wording_and_training_all(dataset):
    book = WordingBook(["the {object}", "a {object}", "{object} in {modality}"])
    assert {dataset(wordings=book)[0]["text"] for _ in range(5)} == {"the block"}
    data = dataset(wordings=book, training=True)
    texts = set()
    for epoch in range(30):
        data.set_epoch(epoch)
        texts.add(data[0]["text"])
    assert texts == {"the block", "a block", "block in CT"}


def test_draws_are_a_function_of_seed_epoch_and_index(dataset, make_case):
    cases = [make_case("a"), make_case("b")]
    arguments = {
        "negative_share": 0.4,
        "training": True,
        "transform": Compose([RandSliceAffined()]),
        "seed": 5,
    }
    one, two = (dataset(cases, **{**arguments, "transform": Compose([RandSliceAffined()])}) for _ in range(2))
    for data in (one, two):
        data.set_epoch(3)
    order = np.random.default_rng(0).permutation(len(one)).tolist()
    shuffled = {index: two[index] for index in order}
    assert all(_same(one[index], shuffled[index]) for index in range(len(one)))
    two.set_epoch(4)
    assert any(not _same(one[index], two[index]) for index in range(len(one)))
    other = dataset(cases, **{**arguments, "seed": 6})
    other.set_epoch(3)
    assert any(not _same(one[index], other[index]) for index in range(len(one)))


def test_persistent_workers_see_the_epoch(dataset, make_case):
    cases = [make_case(f"v{i}") for i in range(3)]
    data = dataset(
        cases, negative_share=0.5, training=True, wordings=WordingBook(["{object}", "a {object}", "b {object}"])
    )
    loader = DataLoader(data, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in (1, 2):
        data.set_epoch(epoch)
        loaded = [(text, int(z)) for batch in loader for text, z in zip(batch["text"], batch["slice"], strict=True)]
        assert loaded == [(data[i]["text"], data[i]["slice"]) for i in range(len(data))]


def test_items_collate_after_resizing(dataset, make_case):
    label = np.zeros((20, 14, 3), np.uint8)
    label[3, 3, 1] = 1
    cases = [make_case("a"), make_case("b", label=label)]
    data = dataset(cases, transform=ResizeSliced(16), num_adjacent=1, training=True)
    batch = default_collate([data[index] for index in range(len(data))])
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["label"].sum(dim=(1, 2, 3)).min() >= 1
    assert isinstance(batch["text"], list)
    torch.testing.assert_close(batch["spacing"][-1], torch.tensor([2 * 20 / 16, 2 * 14 / 16]))


def test_windows_follow_the_case(dataset, make_case):
    rng = np.random.default_rng(0)
    image = np.where(rng.random((12, 10, 6)) < 0.3, 0, rng.integers(50, 900, (12, 10, 6))).astype(np.int16)
    data = dataset([make_case(image=image, modality="MR"), make_case("ab", window=[-10, 30])])
    limits = IntensityWindow("percentiles").limits(quantiles=intensity_quantiles(image))
    assert data.limits[0] == limits
    assert data.limits[1] == (-10, 30)
    ras = np.asarray(nib.as_closest_canonical(nib.load(data.data[0]["image"])).dataobj)
    np.testing.assert_array_equal(data[0]["image"][0], apply_window(ras[:, :, 2], *limits))


def test_bad_arguments_name_the_cure(dataset, make_case, tmp_path):
    with pytest.raises(InputError, match="negative_share"):
        dataset(negative_share=1.0)
    with pytest.raises(InputError, match="min_area"):
        dataset(min_area=0)
    with pytest.raises(InputError, match="No slice"):
        dataset([make_case("empty", label=np.zeros((5, 5, 5), np.uint8))])
    with pytest.raises(InputError, match="modality"):
        dataset([make_case(modality="")])
    with pytest.raises(InputError, match="stands for both 'block' and 'dot'"):
        dataset(wordings=WordingBook(file=_wording_book(tmp_path, {"*": "the object"})))
    with pytest.raises(InputError, match="names no `objects`"):
        dataset([{key: make_case()[key] for key in ("image", "label")}])
    with pytest.raises(IndexError):
        dataset()[3]


def test_a_bare_case_gets_defaults(dataset, make_case):
    case = {key: value for key, value in make_case().items() if key in ("image", "label")}
    item = dataset([{**case, "objects": {"1": "block", "2": "dot"}}], window="lung")[0]
    assert (item["text"], item["patient"], item["case"], item["dataset"]) == ("block", "a", "a", "")


def _wording_book(folder, content):
    path = folder / "wordings.json"
    path.write_text(json.dumps(content))
    return path


def test_phantoms_end_to_end(phantom_dir, tmp_path):
    data = SliceDataset(load_cases(phantom_dir), tmp_path / "c", negative_share=0.25, training=True, **QUIET)
    assert set(data.counts()) == {"lung nodule", "aorta", "liver"}
    assert data.num_negatives == round(len(data.examples) / 3)
    shares = data.mean_shares()
    assert shares["liver"] > shares["aorta"]
    items = [data[index] for index in range(len(data))]
    assert all(item["image"].min() >= 0 and item["image"].max() <= 1 for item in items)
    assert [bool(item["label"].any()) for item in items] == [True] * len(data.examples) + [False] * data.num_negatives


def test_two_real_volumes(real_data_dir, tmp_path):
    cases = load_cases(real_data_dir / "openkbp")[:2]
    transform = Compose([ResizeSliced(128), RandSliceAffined()])
    data = SliceDataset(cases, tmp_path / "c", training=True, transform=transform, negative_share=0.2, **QUIET)
    absent = [
        {name for v, name in case["objects"].items() if v not in volume.values}
        for case, volume in zip(cases, data.volumes, strict=True)
    ]
    assert any(absent)  # the first two cases lack organs
    batch = next(iter(DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))))
    assert batch["image"].shape == (16, 1, 128, 128)
    for index in range(len(data)):
        number, _, value = data.locate(index)
        assert cases[number]["objects"][value] not in absent[number]
    assert any(text == "spinal cord in head and neck CT" for text in (data[i]["text"] for i in range(len(data))))


def test_everything_is_declared_in_json(phantom_dir, tmp_path):
    room = "boltzformer.data"
    parser = ConfigParser(
        {
            "cases": {
                "_target_": f"{room}.cases.load_cases",
                "dataset": str(phantom_dir),
                "section": "training",
            },
            "augmentation": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": f"{room}.slice_transforms.ResizeSliced", "spatial_size": 48},
                    {"_target_": f"{room}.augmentation.RandSliceAffined", "prob": 1.0},
                ],
            },
            "dataset": {
                "_target_": f"{room}.slice_dataset.SliceDataset",
                "data": "@cases",
                "cache_dir": str(tmp_path / "cache"),
                "window": [-160, 240],
                "negative_share": 0.2,
                "wordings": {"_target_": f"{room}.wordings.WordingBook", "file": None},
                "training": True,
                "transform": "@augmentation",
                "seed": 1,
            },
            "loader": {
                "_target_": "DataLoader",
                "dataset": "@dataset",
                "batch_size": 4,
                "sampler": {
                    "_target_": f"{room}.samplers.EpochSampler",
                    "dataset": "@dataset",
                    "num_samples": 8,
                },
            },
        }
    )
    loader = parser.get_parsed_content("loader")
    batches = list(loader)
    assert [batch["image"].shape for batch in batches] == [(4, 1, 48, 48)] * 2
    loader.sampler.set_epoch(1)
    assert [batch["text"] for batch in loader] != [batch["text"] for batch in batches]
    loader.sampler.set_epoch(0)
    for batch, again in zip(batches, loader, strict=True):
        assert torch.equal(batch["image"], again["image"])
        assert batch["text"] == again["text"]


def test_a_slice_comes_once_with_its_prompts(dataset, make_case):
    data = dataset([make_case()], training=True, prompts_per_slice=3, window=[-500, 700])
    assert len(data) == 2  # slices 2 and 3, not three pairs
    both, alone = data[0], data[1]
    assert set(both["object"]) == {"block", "dot"}
    assert alone["object"] == ("block",) * 3
    assert len(set(alone["text"])) == 3  # another wording each time
    truth = dataset([make_case()], window=[-500, 700])
    masks = {truth[i]["object"]: truth[i]["label"][0] for i in range(2)}
    assert both["label"].shape == (3, 12, 10)
    for name, mask in zip(both["object"], both["label"], strict=True):
        assert torch.equal(mask, masks[name])
    assert _same(both, data[0])
    drawn = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        drawn.add(data[0]["object"])
    assert drawn == {("block", "dot", "block"), ("dot", "block", "dot")}  # one twice, each in its turn


def test_absent_objects_are_the_negatives_of_a_slice(dataset, make_case):
    data = dataset([make_case()], training=True, prompts_per_slice=4, negative_share=0.7)
    item = data[1]  # the dot is annotated in this case, and not in slice 3
    present = item["label"].flatten(1).any(1)
    assert [name == "block" for name in item["object"]] == present.tolist()
    assert present[0]
    assert not present.all()
    with pytest.raises(InputError, match="prompts_per_slice"):
        dataset([make_case()], prompts_per_slice=2)


def test_prompts_are_collated_side_by_side(dataset, make_case):
    data = dataset([make_case()], training=True, prompts_per_slice=3)
    batch = collate_prompts([data[0], data[1]])
    assert batch["image"].shape == (2, 1, 12, 10)
    assert batch["label"].shape == (6, 1, 12, 10)
    assert batch["text"] == [*data[0]["text"], *data[1]["text"]]
    assert torch.equal(batch["label"][4, 0], data[1]["label"][1])
    single = dataset([make_case()])
    pairs, plain = collate_prompts([single[0], single[1]]), default_collate([single[0], single[1]])
    assert pairs.keys() == plain.keys()
    assert torch.equal(pairs["label"], plain["label"])
    assert pairs["text"] == plain["text"]


@pytest.mark.parametrize("prompts_per_slice", [1, 2])
def test_weights_by_object_give_each_object_its_share(dataset, make_case, prompts_per_slice):
    data = dataset([make_case()], training=True, prompts_per_slice=prompts_per_slice)
    weights = data.object_weights(1.0)  # two pairs of the block, one of the dot
    expected = [0.25, 0.5, 0.25] if prompts_per_slice == 1 else [0.75, 0.25]
    order = [data.locate(i)[2] for i in range(len(data))] if prompts_per_slice == 1 else None
    assert weights.tolist() == pytest.approx(expected), order
    assert data.object_weights(0.0).tolist() == pytest.approx([1 / 3] * 3 if prompts_per_slice == 1 else [2 / 3, 1 / 3])


def test_foreign_prompts_have_empty_masks_and_their_share(dataset):
    data = dataset(training=True, negative_share=0.5, foreign_prompts=["liver", "left kidney"], foreign_share=0.5)
    asked = []
    for epoch in range(40):
        data.set_epoch(epoch)
        for index in range(3, len(data)):  # negatives follow the three positives
            item = data[index]
            assert not item["label"].any()
            assert (item["object"] == "foreign") == (item["text"] in ("liver", "left kidney"))
            asked.append(item["object"] == "foreign")
    assert 0.35 < np.mean(asked) < 0.65
    assert all(data[index]["object"] != "foreign" for index in range(3))


def test_what_another_dataset_calls_the_same_is_not_foreign(dataset, make_case):
    cases = [
        make_case("a", dataset="one", objects={1: "Block", 2: "dot"}, body_part="chest"),
        make_case("b", dataset="two", objects={1: "block", 2: "ring"}, body_part="abdominal"),
    ]
    cases.append({**cases[1], "dataset": "three", "objects": {1: "crumb", 2: "bit"}})  # other labels of two's image
    data = dataset(cases, training=True, foreign_prompts=["DOT in CT", "liver"], foreign_share=0.5)
    rng = np.random.default_rng(0)
    found = [{data._prompts.draw_foreign(number, rng) for _ in range(1000)} for number in range(3)]
    assert all("liver" in some and not any("block" in text.lower() for text in some) for some in found)
    assert any("ring" in text for text in found[0])
    assert any("crumb" in text for text in found[0])
    assert not any("dot" in text.lower() for text in found[0])
    for some in found[1:]:  # each other's objects are in their images
        assert {"dot", "DOT in CT"} < some
        assert not any(name in text for text in some for name in ("ring", "crumb", "bit"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"foreign_share": 0.5, "training": True},  # nothing is foreign to a single dataset
        {"foreign_share": 0.5, "foreign_prompts": ["liver"]},  # not in evaluation
        {"empty_share": 0.5, "training": True},  # foreign to one prompt a slice
        {"foreign_share": 0.5, "foreign_prompts": ["liver", " "], "training": True},
        {"foreign_share": 1.5, "foreign_prompts": ["liver"], "training": True},
    ],
)
def test_foreign_prompts_are_checked(dataset, arguments):
    with pytest.raises(InputError, match=r"foreign|empty_share"):
        dataset(negative_share=0.5, **arguments)


def test_several_prompts_of_a_slice_may_be_foreign_and_slices_empty(dataset, make_case):
    settings = {"negative_share": 0.5, "foreign_prompts": ["liver", "left kidney"], "foreign_share": 0.5}
    data = dataset(training=True, prompts_per_slice=4, empty_share=0.5, **settings)
    assert data.num_empty == len(data.slices)
    assert len(data) == 2 * len(data.slices)
    asked = []
    for epoch in range(20):
        data.set_epoch(epoch)
        for index in range(len(data)):
            item = data[index]
            assert item["label"].any() == (index < len(data.slices))
            assert item["label"][0].any() or index >= len(data.slices)  # what is there comes first
            for name, text, mask in zip(item["object"], item["text"], item["label"], strict=True):
                assert (name == "foreign") == (text in ("liver", "left kidney"))
                assert not (name == "foreign" and mask.any())
                asked += [name == "foreign"] * (not mask.any())
    assert 0.4 < sum(asked) / len(asked) < 0.75  # half, and where no absent object is left
