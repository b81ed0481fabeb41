from __future__ import annotations

import json
from pathlib import Path

import pytest
from boltzformer.data.cases import load_cases
from boltzformer.data.datalist import body_part_of
from boltzformer.errors import InputError


def _item(name: str, **entries: object) -> dict[str, object]:
    return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz", **entries}


def _decathlon(items: list, **entries: object) -> dict[str, object]:
    return {
        "name": "Lung",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "lung_cancer"},
        "training": items,
        **entries,
    }


def test_decathlon_folder_gives_absolute_paths_and_names(write_datalist, tmp_path):
    write_datalist(_decathlon([_item("lung_001"), _item("lung_002")], validation=[_item("lung_003")]))
    training, validation = load_cases(tmp_path), load_cases(tmp_path, "validation")
    assert training[0] == {
        "image": str(tmp_path / "imagesTr/lung_001.nii.gz"),
        "label": str(tmp_path / "labelsTr/lung_001.nii.gz"),
        "patient": "lung_001",
        "dataset": "Lung",
        "modality": "CT",
        "body_part": "lung",
        "objects": {1: "lung cancer"},
    }
    assert [case["patient"] for case in validation] == ["lung_003"]


def test_split_is_by_patient_seeded_and_complete(write_datalist, tmp_path):
    items = [_item(f"scan_{i}", patient=f"p{i // 3}") for i in range(30)]
    write_datalist(_decathlon(items))
    training, validation = load_cases(tmp_path, seed=3), load_cases(tmp_path, "validation", seed=3)
    patients = [{case["patient"] for case in cases} for cases in (training, validation)]
    assert not patients[0] & patients[1]
    assert len(patients[1]) == 2
    assert len(training) + len(validation) == 30
    assert validation == load_cases(tmp_path, "validation", seed=3)
    assert any(validation != load_cases(tmp_path, "validation", seed=seed) for seed in range(5))


def test_a_small_share_sets_one_patient_apart(write_datalist, tmp_path):
    write_datalist(_decathlon([_item("a"), _item("b"), _item("c")]))  # a tenth of 3 patients rounds to none
    assert [len(load_cases(tmp_path, section, 0.1)) for section in ("training", "validation")] == [2, 1]


def test_patient_pattern_groups_volumes(write_datalist, tmp_path):
    write_datalist(_decathlon([_item(f"P{i // 2}_visit{i % 2}") for i in range(8)]))
    validation = load_cases(tmp_path, "validation", 0.25, patient_pattern=r"(P\d+)_")
    assert len(validation) == 2
    assert len({case["patient"] for case in validation}) == 1
    with pytest.raises(InputError, match="patient_pattern"):
        load_cases(tmp_path, patient_pattern=r"subject")


def test_bare_list_with_prompts_names_the_object_after_the_first(write_datalist, tmp_path):
    item = _item("x", prompts=["left kidney in abdominal MRI", "left kidney"], modality="MRI")
    path = write_datalist([item, _item("y", labels={"cyst": 4}, prompts={"cyst": "renal cyst"})], "my_list.json")
    first, second = load_cases(path, validation_share=0)
    assert first["objects"] == {1: "left kidney in abdominal MRI"}
    assert first["prompts"] == {1: ["left kidney in abdominal MRI", "left kidney"]}
    assert first["modality"] == "MR"
    assert first["dataset"] == "my_list"
    assert second["objects"] == {4: "cyst"}
    assert second["prompts"] == {4: ["renal cyst"]}


def test_item_entries_override_those_of_the_dataset(write_datalist, tmp_path):
    special = _item("b", modality="T2w", body_part="pelvic", annotated=["lung cancer"], window=[0, 9])
    write_datalist(_decathlon([_item("a"), special], annotated="all"))
    first, second = load_cases(tmp_path, validation_share=0)
    assert first["annotated"] == [1]
    assert (second["modality"], second["body_part"], second["window"]) == ("MR", "pelvic", [0, 9])


def test_test_section_accepts_bare_file_names(write_datalist, tmp_path):
    write_datalist(_decathlon([_item("a")], test=["imagesTs/c.nii.gz"]))
    (case,) = load_cases(tmp_path, "test")
    assert case["image"].endswith("imagesTs/c.nii.gz")
    assert "label" not in case


def test_several_datasets_are_joined(write_datalist, tmp_path):
    path = write_datalist(_decathlon([_item("a"), _item("b")]))
    assert len(load_cases([tmp_path, path], validation_share=0)) == 4


def _two_datasets(write_datalist, tmp_path, first, second):
    paths = []
    for name, content in (("one", first), ("two", second)):
        write_datalist(content)
        paths.append((tmp_path / "dataset.json").rename(tmp_path / f"{name}.json"))
    return paths


@pytest.mark.parametrize("section", ["training", "validation"])
def test_what_one_dataset_trains_does_not_validate_another(write_datalist, tmp_path, section):
    organs = _decathlon([_item("a"), _item("b")], validation=[_item("c")])
    airway = _decathlon([_item("c")], validation=[_item("d")])
    both = _two_datasets(write_datalist, tmp_path, organs, airway)
    with pytest.raises(InputError, match=r"two\.json: .*c\.nii\.gz of its training list: also in .*one\.json"):
        load_cases(both, section)
    agreed = _decathlon([_item("a")], validation=[_item("c")])
    assert load_cases(_two_datasets(write_datalist, tmp_path, organs, agreed), section)


def test_splits_that_do_not_agree_are_found(write_datalist, tmp_path):
    """Two lists of the same images, of which one lacks some: chance sets others apart."""
    many = [_item(f"p{number}") for number in range(20)]
    both = _two_datasets(write_datalist, tmp_path, _decathlon(many), _decathlon(many[:12]))
    with pytest.raises(InputError, match="that agree"):
        load_cases(both)
    assert load_cases([both[0], both[0]])


def test_one_patients_name_in_two_datasets_is_told(write_datalist, tmp_path, caplog):
    first = _decathlon([_item("a", patient="7")], validation=[_item("b", patient="8")])
    second = _decathlon([_item("c", patient="9")], validation=[_item("d", patient="7")])
    both = _two_datasets(write_datalist, tmp_path, first, second)
    load_cases(both, "training")
    assert not caplog.text
    load_cases(both, "validation")
    assert "one.json: patients of its training list are named in the validation list of" in caplog.text


def test_a_test_list_holds_nothing_that_was_trained_on(write_datalist, tmp_path, caplog):
    write_datalist(_decathlon([_item("a"), _item("b")], test=[_item("b")]))
    with pytest.raises(InputError, match=r"b\.nii\.gz of its training list: also in its test list"):
        load_cases(tmp_path, "test")
    write_datalist(_decathlon([_item("a", patient="7")], test=[_item("b", patient="7")]))
    assert load_cases(tmp_path, "test")
    assert "named in its test list too (7)" in caplog.text


def test_all_is_training_and_validation_unsplit(write_datalist, tmp_path, caplog):
    write_datalist(_decathlon([_item("a")]))  # one patient alone cannot be split
    assert [case["patient"] for case in load_cases(tmp_path, "all")] == ["a"]
    write_datalist(_decathlon([_item("a"), _item("b")], validation=[_item("v")]))
    assert [case["patient"] for case in load_cases(tmp_path, "all")] == ["a", "b", "v"]
    held_out = _decathlon([], validation=[_item("v")])
    del held_out["training"]
    write_datalist(held_out)
    assert [case["patient"] for case in load_cases(tmp_path, "all")] == ["v"]
    assert not caplog.text, "no list is set apart"
    write_datalist(_decathlon([], validation=[]))
    with pytest.raises(InputError, match="training and validation lists are empty"):
        load_cases(tmp_path, "all")


def test_images_of_one_name_ask_for_their_patients(write_datalist, tmp_path):
    items = [{"image": f"pt_{i}/ct.nii.gz", "label": f"pt_{i}/seg.nii.gz"} for i in range(3)]
    write_datalist(_decathlon(items))
    with pytest.raises(InputError, match=r"all 3 images are called ct\.nii\.gz.*`patient`"):
        load_cases(tmp_path)
    write_datalist(_decathlon([{**item, "patient": f"p{i}"} for i, item in enumerate(items)]))
    assert len(load_cases(tmp_path)) == 2


def test_a_link_keeps_its_name_and_hides_nothing(write_datalist, tmp_path):
    """As git-annex and DVC lay files out; files of one content, such as empty label maps, share their place there."""
    store = tmp_path / "store"
    store.mkdir()
    write_datalist(_decathlon([_item(name) for name in "abc"]))
    for kind in ("imagesTr", "labelsTr"):
        for name in "abc":
            target = store / ("MD5E-s352--same.nii.gz" if kind == "labelsTr" else f"MD5E-s352--{name}.nii.gz")
            (tmp_path / kind / f"{name}.nii.gz").rename(target)
            (tmp_path / kind / f"{name}.nii.gz").symlink_to(target)
    training, validation = load_cases(tmp_path), load_cases(tmp_path, "validation")
    assert sorted(case["patient"] for case in training + validation) == ["a", "b", "c"]
    assert sorted(Path(case["image"]).name for case in training + validation) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    (tmp_path / "imagesTr" / "again.nii.gz").symlink_to(store / "MD5E-s352--a.nii.gz")
    again = _item("again", label="labelsTr/a.nii.gz")
    write_datalist(_decathlon([_item("a"), again]))
    with pytest.raises(InputError, match=r"again\.nii\.gz is listed twice"):
        load_cases(tmp_path)
    write_datalist(_decathlon([_item("a"), _item("b")], test=[again]))
    with pytest.raises(InputError, match="also in its test list"):
        load_cases(tmp_path, "test")


def test_sequences_of_one_label_map_are_one_patients(write_datalist, tmp_path):
    items = [_item(f"p{i}_{kind}", label=f"labelsTr/p{i}.nii.gz") for i in range(4) for kind in ("t1", "flair")]
    write_datalist(_decathlon(items))
    for section in ("training", "validation"):
        with pytest.raises(InputError, match=r"p0\.nii\.gz is the label map of p0_flair.*p0_t1.*`patient`"):
            load_cases(tmp_path, section)
    write_datalist(_decathlon(items[0::2], validation=items[1::2]))
    with pytest.raises(InputError, match="is the label map of"):
        load_cases(tmp_path)
    write_datalist(_decathlon([{**item, "patient": str(i // 2)} for i, item in enumerate(items)]))
    assert len(load_cases(tmp_path, "validation")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"1": "a"}}, "no `training` list"),
        ({"labels": {"1": "a"}, "test": [_item("a")]}, "score its `test` list with --section test"),
        (_decathlon([]), "cannot be split"),
        (_decathlon([], validation=[_item("v")]), "training list is empty"),
        (_decathlon([_item("a")]), "cannot be split"),
        ({"training": [_item("a")]}, "names no labels"),
        (_decathlon([_item("a", labels={"x": "y"})]), "expected a label value and a name"),
        (_decathlon([_item("a", labels={"0": "background"})]), "nothing but background"),
        (_decathlon([_item("a", labels={"1": "node", "2": "Node"})]), "same name"),
        (_decathlon([_item("a", labels={"1": "u", "2": "v"}, prompts=["w"])]), "2 labels"),
        (_decathlon([_item("a", prompts={"wrong": "w"})]), "is no label"),
        (_decathlon([_item("a", prompts=[" "])]), "empty"),
        (_decathlon([_item("a", annotated="some")]), "annotated"),
        (_decathlon([_item("a")], validation=[_item("a")]), "both the training and the validation"),
        (_decathlon([_item("a"), _item("b"), _item("a")]), "a.nii.gz is listed twice"),
        (_decathlon([_item("a", image="")]), "must be one file name"),
        (_decathlon([_item("b"), _item("a", label="imagesTr/a.nii.gz")]), "is image and label of one item"),
    ],
)
def test_malformed_datalists_name_the_file(write_datalist, content, message):
    path = write_datalist(content)
    with pytest.raises(InputError, match=message) as error:
        load_cases(path)
    assert str(path) in str(error.value)


def test_all_missing_files_are_listed_at_once(write_datalist, tmp_path):
    path = write_datalist(_decathlon([_item("a"), _item("b"), _item("c")]))
    (tmp_path / "imagesTr/a.nii.gz").unlink()
    (tmp_path / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(InputError, match="2 of 6 files") as error:
        load_cases(path, validation_share=0)
    assert "imagesTr/a.nii.gz" in str(error.value)
    assert "labelsTr/b.nii.gz" in str(error.value)


def test_wrong_paths_and_arguments(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match="section"):
        load_cases(tmp_path, "train")
    with pytest.raises(InputError, match="validation_share"):
        load_cases(tmp_path, validation_share=1.0)
    with pytest.raises(InputError, match="list of datasets is empty"):
        load_cases([])
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        load_cases(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps("text"))
    with pytest.raises(InputError, match="expected a JSON object"):
        load_cases(tmp_path)


def test_guesses_from_names():
    assert [body_part_of(name) for name in ("Task06_Lung", "AMOS abdomen", "Task08_HepaticVessel", "thing")] == [
        "lung",
        "abdominal",
        "liver",
        "",
    ]


def test_real_datasets_keep_patients_apart(real_data_dir):
    for name, sizes in {"openkbp": (170, 33), "lidc_crops": (480, 85)}.items():
        training, validation = (
            load_cases(real_data_dir / name),
            load_cases(real_data_dir / name, "validation"),
        )
        assert (len(training), len(validation)) == sizes
        assert not {case["patient"] for case in training} & {case["patient"] for case in validation}
