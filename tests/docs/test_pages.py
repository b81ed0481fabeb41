"""What the pages say against what the code has: files, keys, options, examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from boltzformer.apps import cli
from boltzformer.data.cases import load_cases
from boltzformer.data.prompts import read_prompt_list
from boltzformer.data.wordings import WordingBook
from typer.main import get_command

from tests.docs.blocks import PAGES, ROOT, blocks, bundle_runs, commands
from tests.support import BUNDLE

CONFIGS = ("train", "evaluate", "inference")
README_WORDS = 1200


def _config(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _page(name: str) -> Path:
    return BUNDLE / "docs" / name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file()], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [name for name in linked if not (page.parent / name).exists()]
    named = re.findall(r"`((?:bundle|scripts|tests|configs)/[\w./-]+\.\w+)`", text)
    missing += [name for name in named if not ((ROOT / name).exists() or (BUNDLE / name).exists())]
    inside = re.findall(r"`((?:networks|data|metrics|inference|training|volumes|apps)/[\w/]+\.py)`", text)
    missing += [name for name in inside if not (BUNDLE / "boltzformer" / name).is_file()]
    overlays = re.findall(r"`((?:network|ablation)/\w+\.json|multi_gpu_\w+\.json|\w+_?tune\.json)`", text)
    missing += [name for name in overlays if not (BUNDLE / "configs" / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file()], ids=lambda page: page.name)
def test_commands_that_a_page_gives_have_these_files_keys_and_options(page):
    for run_id, files, settings in bundle_runs(page):
        configs = [json.loads((BUNDLE / file).read_text()) for file in files]
        keys = {key for config in configs for key in config}
        assert run_id in keys
        assert {key.split("#")[0] for key in settings} - keys - {"logging_file", "meta_file"} == set()
    for words in commands(page):
        if words[0] == "boltzformer" and words[1] != "--help":
            assert words[1] in get_command(cli.app).commands  # type: ignore[attr-defined]
        script = next((word for word in words if re.search(r"scripts/\w+\.py$", word)), None)
        if script:
            assert (ROOT / "scripts" / Path(script).name).is_file()


def test_every_key_is_in_the_list_of_options():
    """The keys at the top of the three configs that a user may set, and no other."""
    listed = set()
    for line in _page("options.md").read_text().splitlines():
        if line.startswith("| `"):
            listed |= set(re.findall(r"`([a-z_0-9]+)`", line.split("|")[1]))
    plain, known = set(), set()
    for name in CONFIGS:
        for key, value in _config(name).items():
            known.add(key)
            if not isinstance(value, dict) and key not in {"imports", "initialize", "run", "finalize", "handlers"}:
                plain.add(key)
    made_from_others = {key for key in plain if key in {"training", "evaluating", "inference", "network", "on_cpu"}}
    derived = {"total_steps", "autocast", "cases"}
    assert plain - made_from_others - derived - listed == set()
    assert listed - known - {"decodings"} == set()


@pytest.fixture
def example_files(tmp_path, request):
    for name in "abc":
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.nii.gz").touch()
    for name, language in (
        ("datalist", "json"),
        ("wordings", "json"),
        ("prompts", "json" if request.param == "ct" else "csv"),
    ):
        (block,) = blocks(_page("data.md"), language, f"{name} {request.param}")
        (tmp_path / f"{name}.{language}").write_text(block.text)
    return request.param, tmp_path


@pytest.mark.parametrize("example_files", ["ct", "mr"], indirect=True)
def test_the_examples_of_the_data_page_are_read(example_files):
    kind, folder = example_files
    training = load_cases(folder / "datalist.json", "training")
    validation = load_cases(folder / "datalist.json", "validation")
    assert [len(training), len(validation)] == [2, 1]
    assert training[0]["modality"] == {"ct": "CT", "mr": "MR"}[kind]
    book = WordingBook(file=folder / "wordings.json")
    assert (
        book.for_case(training[0], 1)[0]
        == {
            "ct": "lung nodule in chest CT",
            "mr": "white matter lesion in MRI",
        }[kind]
    )
    if kind == "mr":
        assert book.for_case(training[1], 1) == ["hyperintense lesion in T2 brain MRI"]
        assert validation[0]["annotated"] == [1]
    prompts = read_prompt_list(folder / ("prompts.json" if kind == "ct" else "prompts.csv"))
    assert [prompt.name for prompt in prompts] == {"ct": ["nodule", "aorta"], "mr": ["lesion", "left"]}[kind]


def test_every_command_names_its_output_folder_alike():
    found = {
        name: option.opts
        for name in get_command(cli.app).commands  # type: ignore[attr-defined]
        for option in cli.load(name).params
        if option.name in ("output_dir", "output") and option.param_type_name == "option"
    }
    assert {"segment", "train", "evaluate", "trace", "statistics", "evaluate-bundle"} <= set(found)
    alike = ["--output-dir", "--output", "-o"]
    assert {name: opts for name, opts in found.items() if opts != alike} == {"calibrate": ["--output"]}  # a JSON file
