"""What a checkpoint says of itself, and what a run may ask of it."""

from __future__ import annotations

import copy
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.recipe import read_recipe, recipe_for, update_recipe, wording_book_of
from boltzformer.recipe_network import build_network, construct, record_definition
from boltzformer.weights import load_weights, read_checkpoint, read_record, save_atomically, state_digest

from tests.support import BUNDLE, SMALL_PARTS, body, small_network

INPUT = {"window": "lung", "axis": 1, "num_adjacent": 0, "pixel_size_mm": None}
TRAINED_ON = {"modalities": ["CT"], "objects": {"liver": ["liver in abdominal CT", "liver"]}}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return small_network()


@pytest.fixture(scope="module")
def recipe(network) -> dict:
    definition = record_definition(network, BUNDLE / "models")
    return {"network": definition, "input": INPUT, "trained_on": TRAINED_ON}


@pytest.fixture
def checkpoint(network, recipe, tmp_path) -> Path:
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    return tmp_path / "model.pt"


def _tampered(path: Path, change) -> Path:
    """A copy whose record was changed by hand, its tensors untouched."""
    record = read_record(path)
    change(record)
    target = path.with_name("tampered.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copied:
        for name in source.namelist():
            content = json.dumps(record) if name.endswith("recipe.json") else source.read(name)
            copied.writestr(name, content)
    return target


@pytest.mark.parametrize("options", [{}, {"mmap": True}])
def test_torch_reads_a_file_with_a_recipe_as_a_bare_state_dict(checkpoint, network, options):
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, **options)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_recipe_is_read_by_zipfile_alone(checkpoint, recipe):
    content = json.loads(zipfile.ZipFile(checkpoint).read("archive/extra/recipe.json"))
    assert content["input"] == INPUT
    assert content["network"] == recipe["network"]
    assert content["sha256"] == state_digest(torch.load(checkpoint, weights_only=True))


def test_safetensors_carry_the_recipe_in_their_metadata(network, recipe, tmp_path):
    path = tmp_path / "model.safetensors"
    save_atomically(network.state_dict(), path, recipe)
    assert read_recipe(path)["input"] == INPUT
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    assert read_recipe(path)["sha256"] == read_recipe(tmp_path / "model.pt")["sha256"]
    load_weights(small_network(seed=1), path)


def test_network_is_built_from_the_checkpoint_alone(checkpoint, network):
    built = build_network(recipe_for(checkpoint, BUNDLE)).eval()
    load_weights(built, checkpoint)
    image = torch.rand(1, 1, 50, 40)
    with torch.no_grad():
        assert torch.equal(built(image, ["liver"]), network(image, ["liver"]))


def test_settings_come_from_the_checkpoint(checkpoint):
    found = recipe_for(checkpoint, BUNDLE, window=None, axis=None, modality="")
    assert (found.window, found.axis, found.num_adjacent, found.modalities) == ("lung", 1, 0, ["CT"])
    assert recipe_for(checkpoint, BUNDLE, window="Lung", axis=1).window == "lung"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": "bone"}, r"window is 'bone' here, but .*model\.pt was trained with 'lung'.*--override_recipe"),
        ({"window": [-100, 300]}, r"window is \[-100.0, 300.0\] here"),
        ({"axis": 2}, "axis is 2 here, but .* with 1"),
        ({"modality": "MR"}, "modality is 'MR' here, but .* with 'CT'"),
    ],
)
def test_a_conflict_names_setting_and_both_values(checkpoint, given, message):
    with pytest.raises(InputError, match=message):
        recipe_for(checkpoint, BUNDLE, **given)
    (name,) = given
    recipe_for(checkpoint, BUNDLE, override=[name], **given)
    with pytest.raises(InputError):
        recipe_for(checkpoint, BUNDLE, override=["num_adjacent"], **given)


def test_override_takes_the_given_value(checkpoint):
    assert recipe_for(checkpoint, BUNDLE, override=["window"], window="bone").window == "bone"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"image_size": 128}, "network_def#image_size"),
        ({"image_encoder": {"name": "hgnetv2_b0"}}, "network_def#image_encoder#name"),
        ({"use_pigma": False}, "network_def#use_pigma"),
    ],
)
def test_another_network_is_refused_by_name(checkpoint, given, name):
    with pytest.raises(InputError, match=f"{name} is .* was trained with"):
        build_network(recipe_for(checkpoint, BUNDLE), **given)
    build_network(recipe_for(checkpoint, BUNDLE, override=[name]), **given)


def test_what_is_no_part_of_the_training_may_be_set(checkpoint):
    built = build_network(recipe_for(checkpoint, BUNDLE), seed=5, batch_invariant=False, image_size=64)
    assert (built.seed, built.batch_invariant) == (5, False)


def test_misspelt_arguments_get_the_nearest_name(checkpoint):
    with pytest.raises(InputError, match="no argument 'imagesize'; did you mean 'image_size'"):
        build_network(recipe_for(checkpoint, BUNDLE), imagesize=128)


def test_checkpoint_without_recipe_says_so_and_the_config_holds(network, tmp_path, caplog):
    torch.save(network.state_dict(), tmp_path / "old.pt")
    found = recipe_for(tmp_path / "old.pt", BUNDLE, window="bone")
    assert caplog.text.count("carries no recipe") == 1
    assert (found.window, found.axis, found.network) == ("bone", 2, None)
    assert found.sha256 == state_digest(network.state_dict())


def test_api_needs_no_overlay_and_gives_the_same_mask(checkpoint, network, tmp_path):
    volume = body((24, 20, 3))
    found = Segmenter.from_bundle(BUNDLE, checkpoint, device="cpu").segment(volume, "liver").label_map
    torch.save(network.state_dict(), tmp_path / "old.pt")
    told = {**SMALL_PARTS, "window": "lung", "axis": 1}
    expected = Segmenter.from_bundle(BUNDLE, tmp_path / "old.pt", device="cpu", **told).segment(volume, "liver")
    assert (found == expected.label_map).all()
    assert found.any()


def test_wordings_come_from_the_checkpoint(network, recipe, tmp_path):
    prompts = {"templates": ["find the {object}"], "entries": {"liver": ["hepar"]}, "mode": "extend"}
    save_atomically(network.state_dict(), tmp_path / "m.pt", {**recipe, "prompts": prompts})
    found = recipe_for(tmp_path / "m.pt", BUNDLE)
    assert wording_book_of(found).wordings("liver") == ["hepar", "find the liver"]
    assert wording_book_of(recipe_for(None, BUNDLE)).templates == WordingBook().templates
    bad = copy.deepcopy(prompts)
    bad["entries"]["liver"] = ["{object.__class__}"]
    save_atomically(network.state_dict(), tmp_path / "m.pt", {**recipe, "prompts": bad})
    with pytest.raises(InputError, match="unknown placeholder"):
        wording_book_of(recipe_for(tmp_path / "m.pt", BUNDLE))


def test_thresholds_are_written_into_the_file(checkpoint):
    before = read_recipe(checkpoint)
    update_recipe(checkpoint, thresholds={"existence": 0.4})
    assert recipe_for(checkpoint, BUNDLE).threshold("existence") == 0.4
    assert {**read_recipe(checkpoint), "thresholds": None} == {**before, "thresholds": None}
    with pytest.raises(InputError, match="does not fit the schema"):
        update_recipe(checkpoint, thresholds={"existence": "0.4"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["input"].update(window="$__import__('os')"), "input/window"),
        (lambda r: r["input"].update(axis=7), "input/axis"),
        (lambda r: r.update(surprise=1), "surprise"),
        (lambda r: r.update(format=2), "format"),
        (lambda r: r["network"].update(dim=10**9), "network/dim"),
        (lambda r: r["network"].update(_target_="os.system"), "network"),
        (lambda r: r["network"].update(type="os.system"), "network/type"),
    ],
)
def test_a_recipe_that_does_not_fit_the_schema_is_refused(checkpoint, change, message):
    with pytest.raises(InputError, match=f"recipe does not fit the schema .*{message}"):
        read_recipe(_tampered(checkpoint, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.update(type="Popen"), "describes a 'Popen'"),
        (lambda n: n["text_encoder"].update(type="Linear"), "type 'Linear'"),
        (lambda n: n["image_encoder"].update(weights="/etc/passwd"), "no argument 'weights'"),
        (lambda n: n["image_encoder"].update(name="../../evil"), "timm has no model of that name"),
        (lambda n: n["image_encoder"].update(name="hf-hub:someone/evil"), "timm has no model of that name"),
        (lambda n: n.update(text_encoder={"type": "HuggingFaceTextEncoder", "name": "/etc"}), "nothing else"),
        (lambda n: n.update(text_encoder={"type": "HuggingFaceTextEncoder", "name": "../configs"}), "nothing else"),
        (lambda n: n.update(text_encoder={"type": "HuggingFaceTextEncoder", "name": "absent"}), "no folder"),
    ],
)
def test_a_foreign_definition_reaches_no_other_class_and_no_other_file(checkpoint, change, message):
    path = _tampered(checkpoint, lambda record: change(record["network"]))
    with pytest.raises(InputError, match=message):
        build_network(recipe_for(path, BUNDLE))


def test_a_number_that_a_layer_refuses_is_one_error_that_names_the_file(checkpoint):
    tampered = _tampered(checkpoint, lambda record: record["network"]["text_encoder"].update(heads=-0.0))
    with pytest.raises(InputError, match=r"tampered.pt: .* cannot be built \(ValueError: "):
        build_network(recipe_for(tampered, BUNDLE))


def test_text_encoder_folder_is_recorded_relative_to_models(tmp_path):
    definition = {"type": "HuggingFaceTextEncoder", "name": str(tmp_path / "models" / "text"), "frozen": True}
    stands = SimpleNamespace(definition=definition)
    assert record_definition(stands, tmp_path / "models")["name"] == "text"
    with pytest.raises(InputError, match="lies outside"):
        record_definition(stands, tmp_path / "elsewhere")


def test_definition_describes_objects_whole(network):
    built = construct(record_definition(network, BUNDLE), BUNDLE)
    assert built.definition == {**network.definition, "image_encoder": built.definition["image_encoder"]}
    assert network.definition["image_encoder"]["name"] == "test_resnet"


def test_changed_bytes_are_noticed(checkpoint):
    largest = max(zipfile.ZipFile(checkpoint).infolist(), key=lambda info: info.file_size)
    content = bytearray(checkpoint.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    checkpoint.write_bytes(content)
    torch.load(checkpoint, weights_only=True)  # torch itself notices nothing
    with pytest.raises(InputError, match=r"model\.pt is damaged: .*take a copy that is whole"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(network, tmp_path, bad):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    key = next(key for key, value in state.items() if value.is_floating_point())
    state[key].view(-1)[0] = bad
    save_atomically({"network": state}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=f"no numbers .*network.{key}"):
        load_weights(small_network(), tmp_path / "last.pt")


def test_digest_sees_names_shapes_types_and_bytes():
    base = {"a": torch.zeros(2, 3), "b": [1, 2.5]}
    same = {"b": (1, 2.5), "a": torch.zeros(2, 3)}
    assert state_digest(base) == state_digest(same)
    others = [
        {"a": torch.zeros(3, 2), "b": [1, 2.5]},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": [1, 2.5]},
        {"c": torch.zeros(2, 3), "b": [1, 2.5]},
        {"a": torch.zeros(2, 3), "b": [1, 2.0]},
        {"a": torch.full((2, 3), 1e-30), "b": [1, 2.5]},
    ]
    assert len({state_digest(other) for other in [base, *others]}) == 6
