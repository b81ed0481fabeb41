"""The chain on a part of the real datasets: tables, figures and the page, with a budget of seconds."""

from __future__ import annotations

import json

import pytest
from boltzformer.apps import small_proof
from boltzformer.apps.small_proof import CASES, FIGURES, SMALL, TABLES, prove, write_part
from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import write_phantoms
from boltzformer.errors import InputError

from tests.support import BUNDLE, write_json

# every part of every row, but 8 slices of training and 64 px
SECONDS = {"samples_per_epoch": 8, "network_def#image_size": 64, "network_def#image_encoder#window_sizes": [4, 4, 4, 2]}


def test_a_part_lists_the_files_where_they_are(tmp_path):
    write_phantoms(tmp_path / "set", num_training=5, num_validation=3, size=(48, 48, 12))
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    for section in ("training", "validation"):
        content[section] = [
            {key: str((tmp_path / "set" / value).resolve()) for key, value in item.items() if key in ("image", "label")}
            for item in content[section]
        ]
    part = write_part({**content, "spacing": "unknown"}, tmp_path / "part", 2, 1)
    for section, count in (("training", 2), ("validation", 1)):
        cases = load_cases(part, section)
        assert len(cases) == count
        assert all(case["image"].startswith(str(tmp_path / "set")) for case in cases)
        assert cases[0]["objects"] == load_cases(tmp_path / "set", section)[0]["objects"]
        assert not cases[0]["spacing_known"]
    with pytest.raises(InputError, match="no table or figure 'table9'"):
        prove(tmp_path, tmp_path / "out", only=["table9"])
    with pytest.raises(InputError, match="openkbp"):
        prove(tmp_path, tmp_path / "out")


def test_all_that_is_proved_exists():
    for name in (*SMALL, *TABLES):
        assert (BUNDLE / "configs" / "tables" / f"{name}.json").is_file()
    for name in FIGURES:
        assert (BUNDLE / "configs" / "figures" / f"{name}.json").is_file()


def test_a_dynunet_of_another_budget_is_trained_anew(tmp_path, monkeypatch):
    """Started again in one folder with more minutes; the page counts the runs of this budget alone."""
    trained = []

    def train(dataset, target, minutes, **settings):
        assert not (target / "slices.csv").exists()
        trained.append((dataset.name, minutes))
        write_json(target / "training.json", {"minutes": minutes})
        (target / "slices.csv").touch()

    monkeypatch.setattr(small_proof, "train_and_score", train)
    for minutes in (0.7, 0.7, 2.5):
        small_proof._train_dynunets(tmp_path, "cpu", tmp_path / "own.json", minutes)
    assert trained == [(name, minutes) for minutes in (0.7, 2.5) for name in CASES]
    for key in ("this", "other"):
        write_json(tmp_path / "runs" / key / "result.json", {"effort": {"cpu_seconds": 1800}})
    small_proof._write_page(tmp_path, [], write_json(tmp_path / "own.json", {}), "cpu", 1, {"this", "to come"})
    assert "1 runs, 0.50 processor hours" in " ".join((tmp_path / "experiments_small.md").read_text().split())


@pytest.mark.slow
def test_every_table_and_figure_comes_out_of_the_real_data(real_data_dir, tmp_path, monkeypatch):
    for name in CASES:
        if not (real_data_dir / name).is_dir():
            pytest.skip(f"no {name} in {real_data_dir}")
    monkeypatch.setattr("boltzformer.apps.small_proof.CASES", {"openkbp": (2, 1), "lidc_crops": (4, 2)})
    budget = write_json(tmp_path / "budget.json", SECONDS)
    failures = prove(real_data_dir, tmp_path / "out", budget=budget, dynunet_minutes=0.2)
    assert failures == []
    page = (tmp_path / "out" / "experiments_small.md").read_text()
    assert "These are not the paper's experiments" in page
    assert "trained on 8 slices" in page
    for row in ("SAM decoder", "SAM 2 decoder", "SEEM-style masked attention", "DynUNet", "τ₀ = 0.25", "101 queries"):
        assert f"| {row} |" in page
    results = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*/result.json")]
    assert len(results) == 18  # rows of equal configs are one run
    assert len(list((tmp_path / "out").glob("*.png"))) >= 4
