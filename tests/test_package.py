"""The package as pip installs it, and what pyproject.toml and constraints.txt say of each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import BUNDLE

ROOT = BUNDLE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {_key(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


def _named() -> list[Requirement]:
    extras = [lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "label"]
    listed = [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]
    return [Requirement(line) for line in listed if not line.startswith("boltzformer[")]


def test_each_package_has_one_range_and_one_pin_within_it():
    pins = _pins()
    assert sorted(pins) == sorted({_key(requirement.name) for requirement in _named()})
    outside = [str(r) for r in _named() if not r.specifier.contains(pins[_key(r.name)], prereleases=True)]
    assert outside == []


def test_the_set_for_monai_label_is_within_the_ranges():
    pins = _pins("constraints-label.txt")
    named = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["label"]]
    outside = [str(r) for r in named if not r.specifier.contains(pins[_key(r.name)], prereleases=True)]
    assert outside == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_the_bundle(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "bundle"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [name.removeprefix("bundle/") for name in listed.splitlines() if (ROOT / name).is_file()]
    tracked.remove("LICENSE")  # pip keeps it beside the package
    expected = {name if name.startswith("boltzformer/") else f"boltzformer/bundle/{name}" for name in tracked}
    assert expected - packed == set()


def test_installed_in_a_fresh_environment_it_works_from_any_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    # the packages it needs are those of this environment; its .pth files, which may name a checkout, are not read
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = """
import json, boltzformer
from boltzformer.apps.bundle_config import read_bundle
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import read_prompt_list
folder = bundle_folder()
size = read_bundle(folder, ["configs/network/tiny.json"], {}, "train")["network_def"]["image_size"]
prompts = read_prompt_list(folder / "configs" / "prompts.json")
print(json.dumps([boltzformer.__file__, str(folder), size, prompts[0].name]))
"""
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, folder, size, name = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(tmp_path / "env")
    assert Path(folder) == Path(file).parent / "bundle"
    assert (size, name) == (256, "lung_nodule")
    for command in PROJECT.get("scripts", {}):
        shown = subprocess.run([tmp_path / "env" / "bin" / command, "--help"], env=environment, capture_output=True)
        assert shown.returncode == 0, shown.stderr


def test_docstrings_speak_one_dialect():
    """Google style is ruff's to check; names stand in single backticks, without roles."""
    files = [*(BUNDLE / "boltzformer").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    foreign = [str(file) for file in files if re.search(r"``|:(class|func|meth|mod|data|attr):`", file.read_text())]
    assert foreign == []
