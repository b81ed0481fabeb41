"""What can be said of the configs without running them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from tests.support import BUNDLE, SMALL_NETWORK, small_network, write_json

CONFIGS = BUNDLE / "configs"
FILES = sorted(CONFIGS.rglob("*.json"))
NETWORKS = sorted((CONFIGS / "network").glob("*.json"))
ABLATIONS = sorted((CONFIGS / "ablation").glob("*.json"))
WORKFLOWS = [("train", "train"), ("evaluate", "infer"), ("inference", "infer")]
LONGEST_EXPRESSION = 110


def _read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def _strings(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [*content, *(text for value in content.values() for text in _strings(value))]
    if isinstance(content, list):
        return [text for value in content for text in _strings(value)]
    return [content] if isinstance(content, str) else []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_json_is_well_kept(path, monkeypatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    ConfigParser.load_config_file(path)
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"
    long = [text for text in _strings(json.loads(text)) if text.startswith("$") and len(text) > LONGEST_EXPRESSION]
    assert not long


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate"])
def test_local_code_is_named_by_target_only(name):
    content = _read(f"{name}.json")
    for text in _strings(content):
        if "boltzformer" in text:
            assert re.fullmatch(r"boltzformer(\.\w+)+", text), text
    early = _strings([content.get(key, []) for key in ("imports", "+imports", "initialize")])
    assert not any("boltzformer" in text for text in early)


def test_all_that_start_from_a_checkpoint_take_its_network():
    networks = [_read(f"{name}.json")["network_def"] for name in ("evaluate", "inference", "fine_tune")]
    assert networks[0] == networks[1] == networks[2]
    assert networks[0]["recipe"] == "@recipe"


def test_train_and_evaluate_agree_on_what_they_share():
    train, evaluate = _read("train.json"), _read("evaluate.json")
    for key in ("window", "axis", "num_adjacent", "validation_share", "wordings", "amp", "amp_dtype", "data_path"):
        assert train[key] == evaluate[key], key
    for key in ("postprocessing", "inferer", "dataset"):
        own = evaluate[key]
        if key == "dataset":
            # bare pairs of files come from MONAI Label alone, and only to train
            bare = {name: train["validate"][key][name] for name in ("unnamed", "modality")}
            own = {**own, **bare, "data": {**own["data"], "section": "validation"}}
        if key == "inferer":  # a range of pixel sizes comes with a checkpoint, so with evaluation and fine-tuning
            own = {name: value for name, value in own.items() if name != "pixel_size_mm"}
        assert {k: v for k, v in train["validate"][key].items() if k != "pixel_size_mm"} == own, key


def test_fine_tuning_sees_slices_as_evaluation_does():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "fine_tune.json")])
    evaluate = _read("evaluate.json")
    assert parser["validate#inferer"] == evaluate["inferer"]
    prepared = parser["validate#evaluator#prepare_batch#extra_keys"]
    assert prepared == evaluate["evaluator"]["prepare_batch"]["extra_keys"]


@pytest.mark.parametrize("overlay", [None, "train_shipped", "train_existence"])
def test_training_takes_the_view_before_it_augments(overlay):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", overlay) if name])
    view, affine, *_, resize = parser["train#preprocessing#transforms"]
    assert view["_target_"].endswith(".RandSliceViewd")
    assert (view["pixel_size_mm"], view["body_view"]) == ("$@recipe.pixel_size_mm", "$@recipe.body_view")
    assert affine["_target_"].endswith(".RandSliceAffined")
    assert resize == {"_target_": resize["_target_"], "spatial_size": view["spatial_size"]}
    assert resize["_target_"].endswith(".ResizeSliced")


@pytest.mark.parametrize(("name", "kind"), WORKFLOWS)
def test_check_properties(name, kind, phantoms, tmp_path):
    overlay = write_json(tmp_path / "small.json", SMALL_NETWORK)
    workflow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.json"), str(overlay)],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantoms),
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
        **({} if name == "train" else {"checkpoint": None}),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(("amp", "expected"), [("auto", None), (True, torch.bfloat16)])
def test_mixed_precision_of_inference_on_the_cpu_is_bfloat16(amp, expected):
    parser = ConfigParser(_read("inference.json"))
    parser["device"] = torch.device("cpu")
    if amp != "auto":
        parser["amp"] = amp
    assert parser.get_parsed_content("autocast") is expected


def test_verify_metadata(shared_dir):
    (schema,) = (shared_dir / "schema").glob("meta_schema_*.json")
    assert _read("metadata.json")["schema"].endswith(schema.name)
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_metadata_says_what_constraints_say():
    lines = (BUNDLE.parent / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    metadata = _read("metadata.json")
    stated = {**metadata["required_packages_version"], "torch": metadata["pytorch_version"]}
    stated |= {"monai": metadata["monai_version"], "numpy": metadata["numpy_version"]}
    assert {name: pinned[name] for name in stated} == stated


def test_the_label_values_outside_are_the_bundles_prompts():
    """MONAI Label names segments after the metadata, and trains on label values as the prompt list numbers them."""
    names = [entry["name"] for entry in _read("prompts.json")]
    expected = {"0": "background", **{str(value): name for value, name in enumerate(names, start=1)}}
    data_format = _read("metadata.json")["network_data_format"]
    for outputs in ("outputs", "post_processed_outputs"):
        assert data_format[outputs]["pred"]["channel_def"] == expected
        assert data_format[outputs]["pred"]["num_channels"] == 1


@pytest.mark.parametrize("any_size", [1, 50])
def test_verify_net_in_out(tmp_path, any_size):
    network = small_network()
    recipe = {"network": record_definition(network, BUNDLE / "models")}
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    small = write_json(tmp_path / "small.json", {"checkpoint": str(tmp_path / "model.pt")})
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.json"), str(small)],
        device="cpu",
        any=any_size,
    )


@pytest.mark.parametrize("path", [*NETWORKS, *ABLATIONS], ids=_name)
def test_overlays_change_only_keys_that_are_there(path):
    parser = ConfigParser(_read("train.json"))
    for key, value in json.loads(path.read_text()).items():
        if key == "initial_weights":  # a network of another shape cannot start from the shipped weights
            assert value is None
            assert path in NETWORKS
            continue
        assert key.startswith("network_def#")
        assert key in parser
        assert value is None or isinstance(value, type(parser[key])), key


@pytest.mark.parametrize(("head", "weight", "expected"), [(True, 1.0, False), (True, 0.0, True), (False, 0.0, False)])
def test_several_processes_go_on_without_a_head_that_learns_nothing(head, weight, expected):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", "multi_gpu_train")])
    parser["network_def"] = {"_target_": "types.SimpleNamespace", "scores_existence": head}
    parser["existence_weight"] = weight
    # DDP waits for the gradient of every parameter otherwise, and its second step fails
    assert parser.get_parsed_content("network#find_unused_parameters") is expected


@pytest.mark.parametrize(("only", "kept"), [(None, [0, 2]), ("decoder", [0, 2]), ("existence", [0, 1, 2, 3])])
def test_where_the_score_learns_alone_the_last_epoch_is_kept(only, kept):
    parser = ConfigParser(_read("train.json"))
    parser["train_only"] = only
    is_better, best, seen = parser.get_parsed_content("validate#evaluator#metric_cmp_fn"), -1.0, []
    for epoch, dice in enumerate((0.5, 0.5, 0.6, 0.6)):
        if is_better(dice, best):
            best = dice
            seen.append(epoch)
    assert seen == kept


def test_several_processes_wait_for_what_learns_alone():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", "train_existence", "multi_gpu_train")])
    parser.update({**SMALL_NETWORK, "network_def#existence": True, "existence_weight": 1.0, "bundle_root": str(BUNDLE)})
    seen = []

    def wrapped(module, **_):  # as DDP, which asks once, when it is built, which parameters learn
        seen.extend(name for name, parameter in module.named_parameters() if parameter.requires_grad)
        return module

    parser["network#_target_"] = wrapped
    parser["device"] = torch.device("cpu")
    network = parser.get_parsed_content("network")
    assert seen
    assert len(seen) == len(list(network.existence.parameters()))
    assert all(name.startswith("existence.") for name in seen)


@pytest.mark.parametrize("path", NETWORKS, ids=_name)
def test_network_overlays_build_and_run(path):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(path)])
    parser["pretrained"] = False
    parser["bundle_root"] = str(CONFIGS.parent)
    parser["network_def#image_size"] = 128  # the paper's 1024 would take minutes
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        logits = network(torch.rand(1, 1, 100, 80), ["neoplasm in lung CT"])
    assert logits.shape == (1, 1, 100, 80)
    assert logits.isfinite().all()


def test_an_ablation_for_each_row_of_the_papers_tables():
    rows = {
        "attention": ("full", "threshold", "boltzmann"),
        "temperature": ("0.25", "0.5", "1.0", "2.0"),
        "sampling": ("5_percent", "10_percent", "20_percent", "50_percent"),
        "queries": ("1", "10", "32", "101"),
        "prior": ("unconditioned", "conditioned"),
        "pigma": ("ensemble_only", "with_correction"),
    }
    expected = sorted(f"{table}_{row}.json" for table, names in rows.items() for row in names)
    assert sorted(path.name for path in ABLATIONS) == expected


@pytest.mark.parametrize("path", ABLATIONS, ids=_name)
def test_ablations_do_what_they_say(path):
    default = {key: value for key, value in SMALL_NETWORK.items() if "num_queries" not in key}
    changes = json.loads(path.read_text())
    plain = small_network(**{**default, "network_def#num_queries": 10})
    changed = small_network(**{**default, "network_def#num_queries": 10, **changes})
    if "queries" not in path.name:  # whose weights have other shapes
        changed.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.equal(plain(image, ["x"]), changed(image, ["x"]))
    is_default = all(ConfigParser(_read("train.json"))[key] == value for key, value in changes.items())
    assert same == is_default
