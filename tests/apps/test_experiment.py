"""One command a table: rows are run, found again, scored by the paper's rule, and printed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from boltzformer.apps.experiment import run_table
from boltzformer.apps.experiment_claims import verdict
from boltzformer.apps.experiment_definition import read_table
from boltzformer.apps.experiment_figures import _slugs
from boltzformer.apps.experiment_plan import plan_runs
from boltzformer.apps.experiment_runs import Step
from boltzformer.data.phantom import write_phantoms
from boltzformer.errors import InputError
from PIL import Image

from tests.support import BUNDLE, SMALL_NETWORK, write_json

FIGURES = sorted((BUNDLE / "configs" / "figures").glob("*.json"))
TABLES = sorted((BUNDLE / "configs" / "tables").glob("*.json"))
# cross-entropy would teach an empty mask first, and tables of zeros show nothing
DICE_ALONE = {"loss#mask_loss#lambda_ce": 0.0}
BUDGET = {
    **SMALL_NETWORK,
    **DICE_ALONE,
    "batch_size": 4,
    "max_epochs": 1,
    "samples_per_epoch": 24,
    "learning_rate": 1e-3,
}


def launch_here(step: Step) -> None:
    """The real thing in this process: starting Python twice a run would take longer than the runs."""
    monai.bundle.run(step.run_id, config_file=[str(file) for file in step.files])


class Launcher:
    """Launches here and remembers what was launched; fails where it is told to."""

    def __init__(self, fail_at: str = "") -> None:
        self.steps: list[str] = []
        self.fail_at = fail_at

    def __call__(self, step: Step) -> None:
        self.steps.append(step.run_id)
        if step.run_id == self.fail_at:
            raise InputError(f"{step.run_id} was made to fail")
        launch_here(step)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of phantoms under one roof."""
    folder = tmp_path_factory.mktemp("datasets")
    for seed, name in enumerate(("first", "second")):
        write_phantoms(folder / name, num_training=1, num_validation=2, size=(48, 48, 12), seed=seed)
        file = folder / name / "dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "name": f"phantoms {name}"}))
    return folder


def _table(folder: Path, **changes: Any) -> Path:
    content = {
        "title": "Attention | small",
        "datasets": ["first", "second"],
        "section": "validation",
        "columns": ["datasets", "mean", "small"],
        "rows": [
            {"label": "full", "overlays": ["configs/ablation/attention_full.json"], "paper": {"mean": 71.2}},
            {"label": "Boltzmann", "overlays": ["configs/ablation/attention_boltzmann.json"]},
            {"label": "elsewhere", "paper": {"first": 50, "mean": 60.5}},
        ],
        **changes,
    }
    return write_json(folder / "mini.json", content)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of two rows that is stopped in the first evaluation, then finished."""
    folder = tmp_path_factory.mktemp("experiment")
    table, budget = _table(folder), write_json(folder / "budget.json", BUDGET)
    settings: dict[str, Any] = {"table": table, "data": data, "out": folder / "out", "overlays": [str(budget)]}
    stopped, finished = Launcher(fail_at="evaluating"), Launcher()
    failures = run_table(**settings, launcher=stopped)
    return {
        **settings,
        "failures": failures,
        "stopped": stopped,
        "again": run_table(**settings, launcher=finished),
        "finished": finished,
    }


def test_a_failed_run_does_not_stop_the_others_and_is_taken_up_again(done):
    assert done["stopped"].steps == ["training", "evaluating"] * 2
    assert len(done["failures"]) == 2
    assert done["failures"][0] == "full, seed 0: evaluating was made to fail"
    assert done["again"] == []
    assert done["finished"].steps == ["evaluating"] * 2  # both were trained already


def _csv(done: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    rows = csv.DictReader((done["out"] / "mini.csv").open())
    return {(row["row"], row["source"], row["column"]): float(row["value"]) for row in rows}


def test_cells_are_the_papers_means_of_the_scored_slices(done):
    cells = _csv(done)
    results = list((done["out"] / "runs").glob("*/result.json"))
    assert len(results) == 2
    for file in results:
        folder, result = file.parent, json.loads(file.read_text())
        dice: dict[str, list[float]] = {"first": [], "second": []}
        small: dict[str, list[float]] = {"first": [], "second": []}
        for row in csv.DictReader((folder / "evaluate" / "slices.csv").open()):
            name = row["dataset"].removeprefix("phantoms ")
            dice[name].append(float(row["dice"]))
            if float(row["area_percent"]) < 1:
                small[name].append(float(row["dice"]))
        means = {name: 100 * np.mean(values) for name, values in dice.items()}
        for name, mean in {**means, "mean": np.mean(list(means.values()))}.items():
            assert cells[result["label"], "measured", name] == pytest.approx(mean)
        expected = 100 * np.mean([np.mean(values) for values in small.values()])
        assert cells[result["label"], "measured", "small"] == pytest.approx(expected)
    # with the same seed and budget only the rule differs, and it does
    assert cells["full", "measured", "mean"] != cells["Boltzmann", "measured", "mean"]


def test_markdown_csv_and_latex_agree_and_say_what_was_run(done):
    cells = _csv(done)
    markdown = (done["out"] / "mini.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in markdown.splitlines() if line.startswith("|")}
    assert f"{cells['full', 'measured', 'mean']:.1f} [" in lines["full"]
    assert lines["full (published)"].split(" | ")[1:] == ["–", "–", "71.2", "– |"]
    assert lines["elsewhere (published)"].split(" | ")[1:] == ["50.0", "–", "60.5", "– |"]
    assert "elsewhere" not in lines
    assert "Not the paper's budget: budget.json" in markdown
    assert "max_epochs = 1" in markdown
    assert "first, second (list `validation`), on cpu" in markdown
    latex = (done["out"] / "mini.tex").read_text()
    assert latex.count(r"\\") == 5
    assert "71.2" in latex
    assert r"small ($<$ 1 \%)" in latex


def test_a_finished_table_runs_nothing_and_shares_its_runs(done, tmp_path):
    settings = {key: done[key] for key in ("data", "out", "overlays")}
    nothing = Launcher()
    assert run_table(done["table"], **settings, launcher=nothing) == []
    # another table with the same settings under another name: the same run
    rows = [{"label": "N = 10 %", "overlays": ["configs/ablation/sampling_10_percent.json"]}]
    assert run_table(_table(tmp_path, rows=rows), **settings, launcher=nothing) == []
    assert nothing.steps == []
    assert {key[0] for key in _csv(done)} == {"N = 10 %"}


def test_a_key_follows_everything_that_decides_a_result(data, tmp_path):
    table = read_table(_table(tmp_path))
    budget = [str(write_json(tmp_path / "budget.json", BUDGET))]

    def keys(**changes: Any) -> set[str]:
        settings: dict[str, Any] = {"overlays": budget, **changes}
        return {run.key for runs in plan_runs(table, data, BUNDLE, **settings).values() for run in runs}

    plain = keys()
    assert len(plain) == 2
    assert keys() == plain
    assert keys(device="cpu:0") == plain
    assert not keys(device="cuda") & plain
    assert not keys(processes=2) & plain
    assert not keys(overlays=[]) & plain
    assert len(keys(seeds=range(3))) == 6
    assert keys(seeds=range(3)) > plain
    file = data / "first" / "dataset.json"
    before = file.read_text()
    file.write_text(before + "\n")
    assert not keys() & plain
    file.write_text(before)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_the_array_job_has_one_task_for_each_missing_run(data, tmp_path, monkeypatch, device):
    monkeypatch.chdir(tmp_path)
    table, budget = _table(tmp_path), write_json(tmp_path / "my budget.json", BUDGET)
    run_table(table, data, tmp_path / "out", device, 3, overlays=[str(budget)], slurm_dir=Path("jobs"), processes=2)
    script = (tmp_path / "jobs" / "mini.sbatch").read_text()
    keys = (tmp_path / "jobs" / "mini.runs").read_text().split()
    assert len(set(keys)) == 6
    assert "#SBATCH --array=1-6" in script
    kind = device.partition(":")[0]
    assert ("--gres=gpu:2" in script) == (kind == "cuda")
    # what the second task would start: the same table, options and run
    fake = tmp_path / "fake.py"
    fake.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    runnable = script.replace(f"{sys.executable} -m boltzformer.apps.experiment", f"{sys.executable} {fake}")
    runnable = runnable.replace(f"cd {BUNDLE}", f"cd {tmp_path}")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    said = subprocess.run(["bash"], input=runnable, env=environment, capture_output=True, text=True, check=True).stdout
    arguments = json.loads(said)
    assert arguments[0] == str(table)
    assert arguments[arguments.index("--only") + 1] == keys[1]
    assert arguments[arguments.index("--overlay") + 1] == str(budget)
    assert arguments[arguments.index("--device") + 1] == kind
    planned = plan_runs(read_table(table), data, BUNDLE, [str(budget)], range(3), kind, 2)
    assert keys == [run.key for runs in planned.values() for run in runs]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"rows": []}, {}, "expected an object with `rows`"),
        ({"rows": [{"label": "a", "overlay": []}]}, {}, "unknown key 'overlay'"),
        ({"rows": [{"label": "a"}, {"label": "a"}]}, {}, "two rows are labelled 'a'"),
        ({"rows": [{"label": "a", "paper": {"mean": "71"}}]}, {}, "numbers in %"),
        ({"rows": [{"label": "a", "overlays": ["configs/none.json"]}]}, {}, "no such overlay"),
        ({"columns": ["third"]}, {}, "column 'third' is none of"),
        ({"datasets": ["third"]}, {}, "third: no such dataset"),
        ({"section": "test"}, {}, "has no `test` list"),
        ({"rows": [{"label": "a", "scores": {"file": "x"}}]}, {}, "must have `files`"),
        ({"rows": [{"label": "a", "scores": {"files": ["x"]}, "overlays": []}]}, {}, "drop one"),
        ({"figure": {"kind": "pie"}}, {}, "one of sampled_patches"),
        ({"claims": [["Boltzmann", "ful"]]}, {}, "a claim must be the labels of two rows"),
        ({}, {"device": "gpu"}, "'gpu' is no device"),
        ({}, {"only": ["0000"]}, "has no run 0000"),
    ],
    ids=[
        *("rows", "key", "twice", "paper", "overlay", "column", "dataset", "section"),
        *("files", "both", "figure", "claim", "device", "only"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(data, tmp_path, changes, options, message):
    with pytest.raises(InputError, match=message):
        run_table(_table(tmp_path, **changes), data, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "runs").exists()


def test_shipped_tables_name_files_that_are_there():
    assert [path.name for path in TABLES] == [f"table{i}.json" for i in range(1, 9)]
    ablations = set()
    for path in TABLES:
        table = read_table(path)
        assert len(table.datasets) == 7
        for row in table.rows:
            assert row.paper or row.overlays or row.scores
            for overlay in row.overlays or ():
                assert (BUNDLE / overlay).is_file()
                ablations.add(overlay)
    for folder in ("ablation", "baseline"):
        assert {f"configs/{folder}/{f.name}" for f in (BUNDLE / "configs" / folder).glob("*.json")} <= ablations


def test_the_table_at_equal_time_is_of_the_shipped_network(tmp_path):
    table = read_table(BUNDLE / "configs" / "tables" / "shipped" / "equal_time.json")
    item = {"image": "a.nii.gz", "label": "b.nii.gz"}
    lists = {section: [item] for section in ("training", "validation")}
    write_json(tmp_path / "openkbp.json", {"labels": {"1": "x"}, **lists})
    planned = plan_runs(table, tmp_path, BUNDLE)
    assert len({run.key for runs in planned.values() for run in runs}) == 4
    assert planned["DynUNet"] == []  # its scores are made by another command
    for runs in planned.values():
        for run in runs:
            assert run.overlays[:2] == ("configs/network/shipped.json", "configs/train_shipped.json")
            assert "network_def#image_size" not in run.settings


def test_shipped_figures_show_runs_of_the_tables(tmp_path):
    kinds = set()
    item = {"image": "a.nii.gz", "label": "b.nii.gz"}
    keys = set()
    for path in (*TABLES, *FIGURES):
        table = read_table(path)
        for name in table.datasets:
            lists = {section: [item] for section in ("training", "validation", "test")}
            write_json(tmp_path / name / "dataset.json", {"labels": {"1": "x"}, **lists})
        found = {run.key for runs in plan_runs(table, tmp_path, BUNDLE, device="cuda").values() for run in runs}
        if path in TABLES:
            assert table.figure is None
            keys |= found
        else:
            kinds.add(table.figure["kind"])
            assert found <= keys, path.name
    assert kinds == {"sampled_patches", "comparison", "failures"}


def test_scores_of_another_program_are_a_row(done, data, tmp_path):
    """Its file in a layout of its own: other names, areas in pixels, no patient; one dataset of two."""
    lines = ["set,file,dice_theirs,pixels", "FIRST,a.png,0.5,100", "FIRST,b.png,0.7,20", "OTHER,c.png,0.0,20"]
    file = data / "theirs" / "scores.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    scores = {
        "files": ["theirs/scores.csv"],
        "columns": {"dataset": "set", "case": "file", "dice": "dice_theirs", "area_pixels": "pixels"},
        "slice_pixels": 4096,
        "datasets": {"FIRST": "first"},
    }
    own = next((done["out"] / "runs").glob("*/evaluate/slices.csv"))
    (data / "own.csv").write_bytes(own.read_bytes())
    rows = [
        {"label": "theirs", "scores": scores},
        {"label": "ours again", "scores": {"files": ["own.csv"]}},
        {"label": "absent", "scores": {"files": ["theirs/none.csv"]}, "paper": {"mean": 60.0}},
    ]
    assert run_table(_table(tmp_path, rows=rows), data, tmp_path / "out") == []
    cells = _csv({"out": tmp_path / "out"})
    assert cells["theirs", "measured", "first"] == pytest.approx(60)
    assert cells["theirs", "measured", "small"] == pytest.approx(70)  # 20 of 4096 pixels are below 1 %
    measured = json.loads((own.parents[1] / "result.json").read_text())["label"]
    assert cells["ours again", "measured", "mean"] == pytest.approx(_csv_of(done)[measured])
    markdown = (tmp_path / "out" / "mini.md").read_text()
    assert "theirs: mean over 1 of 2 datasets" in markdown
    assert "absent: its scores are not there" in markdown
    assert "60.0 [" not in markdown  # slices without patients give no interval
    file.write_text("\n".join([*lines, "FIRST,d.png,83,20"]))
    with pytest.raises(InputError, match="line 5: a Dice of 83"):
        run_table(_table(tmp_path, rows=rows), data, tmp_path / "out")
    file.write_text("set,file\nFIRST,a.png\n")
    with pytest.raises(InputError, match="has no column 'dice_theirs'"):
        run_table(_table(tmp_path, rows=rows), data, tmp_path / "out")


def _csv_of(done: dict[str, Any]) -> dict[str, float]:
    """Means of the two rows, computed from their scored slices."""
    means = {}
    for file in (done["out"] / "runs").glob("*/result.json"):
        by_dataset: dict[str, list[float]] = {}
        for row in csv.DictReader((file.parent / "evaluate" / "slices.csv").open()):
            by_dataset.setdefault(row["dataset"], []).append(100 * float(row["dice"]))
        means[json.loads(file.read_text())["label"]] = float(np.mean([np.mean(v) for v in by_dataset.values()]))
    return means


@pytest.mark.parametrize("kind", ["sampled_patches", "comparison", "failures"])
def test_figures_are_drawn_from_finished_runs(done, tmp_path, kind):
    nothing = Launcher()
    table = _table(tmp_path, figure={"kind": kind, "count": 2})
    settings = {key: done[key] for key in ("data", "out", "overlays")}
    assert run_table(table, **settings, launcher=nothing) == []
    assert nothing.steps == []
    pictures = ["mini.png"] if kind == "comparison" else ["mini_boltzmann.png", "mini_full.png"]
    captions = (done["out"] / "mini.md").read_text()
    for name in pictures:
        with Image.open(done["out"] / name) as picture:
            assert picture.size[1] > 500  # two slices
        assert f"({name})" in captions
    if kind == "failures":
        rows = next((done["out"] / "runs").glob("*/evaluate/slices.csv"))
        dice = [float(row["dice"]) for row in csv.DictReader(rows.open())]
        assert f"{sum(value < 0.01 for value in dice)} of {len(dice)} slices missed" in captions
    assert "Not the paper's budget: budget.json" in captions


def test_rows_in_any_script_have_pictures_of_their_own():
    slugs = _slugs(["τ₀ = 0.5", "0,5", "全注意力", "阈值", "row 2"])
    assert list(slugs.values()) == ["0_5", "0_5_2", "row", "row_2", "row_2_2"]


def test_a_table_says_what_its_rows_cost_and_whether_its_claims_hold(done, tmp_path):
    table = _table(tmp_path, claims=[["Boltzmann", "full"], ["full", "Boltzmann"], ["full", "elsewhere"]])
    settings = {key: done[key] for key in ("data", "out", "overlays")}
    assert run_table(table, **settings, columns=["pairs", "cpu_seconds"], launcher=Launcher()) == []
    results = {(r := json.loads(f.read_text()))["label"]: r for f in (done["out"] / "runs").glob("*/result.json")}
    cells = _csv(done)
    for label in ("full", "Boltzmann"):
        assert cells[label, "measured", "pairs"] == results[label]["effort"]["pairs"] == 24
        assert cells[label, "measured", "cpu_seconds"] == results[label]["effort"]["cpu_seconds"] > 0
    gain = cells["Boltzmann", "measured", "mean"] - cells["full", "measured", "mean"]
    text = (done["out"] / "mini.md").read_text()
    assert f"Claim: Boltzmann above full. Here: {gain:+.1f} [" in text
    assert f"Claim: full above Boltzmann. Here: {-gain:+.1f} [" in text
    assert "full above elsewhere" not in text  # nothing of that row was measured here
    assert text.count("| 24 |") == 2


def test_a_claim_against_another_programs_scores(done, data, tmp_path):
    runs = {json.loads(f.read_text())["label"]: f.parent for f in (done["out"] / "runs").glob("*/result.json")}
    theirs = list(csv.DictReader((runs["Boltzmann"] / "evaluate" / "slices.csv").open()))
    for row in theirs:
        row["dice"] = str(float(row["dice"]) / 2) if row["dice"] else ""
    with (data / "halved.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, theirs[0].keys())
        writer.writeheader()
        writer.writerows(theirs)
    rows = [
        *json.loads(_table(tmp_path).read_text())["rows"],
        {"label": "halved", "scores": {"files": ["halved.csv"]}},
        {"label": "absent", "scores": {"files": ["theirs/none.csv"]}},
    ]
    claims = [["Boltzmann", "halved"], ["halved", "Boltzmann"], ["Boltzmann", "absent"]]
    settings = {key: done[key] for key in ("data", "overlays")}
    out = shutil.copytree(done["out"], tmp_path / "out")
    assert run_table(_table(tmp_path, rows=rows, claims=claims), out=out, **settings, launcher=Launcher()) == []
    half = _csv(done)["Boltzmann", "measured", "mean"] / 2
    text = (out / "mini.md").read_text()
    assert f"Claim: Boltzmann above halved. Here: {half:+.1f} [" in text
    assert f"Claim: halved above Boltzmann. Here: {-half:+.1f} [" in text
    assert "above absent" not in text
    assert "slices that both have" not in text
    for name, changed in (("first_half", theirs[::2]), ("renamed", [{**row, "case": "x"} for row in theirs])):
        with (data / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, theirs[0].keys())
            writer.writeheader()
            writer.writerows(changed)
        rows.append({"label": name, "scores": {"files": [f"{name}.csv"]}})
    claims = [["Boltzmann", "first_half"], ["Boltzmann", "renamed"]]
    assert run_table(_table(tmp_path, rows=rows, claims=claims), out=out, **settings, launcher=Launcher()) == []
    text = (out / "mini.md").read_text()
    both, scored = (sum(bool(row["dice"]) for row in some) for some in (theirs[::2], theirs))
    assert f", on the {both} of {scored} slices that both have. **" in text
    assert "Claim: Boltzmann above renamed. **Not compared: no slice is named alike in both.**" in text


def test_a_dataset_can_be_a_datalist(done, data, tmp_path):
    """Its column has the file's name, its slices the dataset's own."""
    content = json.loads((data / "first" / "dataset.json").read_text())
    lists = {name: [_absolute(item, data / "first") for item in content[name]] for name in ("training", "validation")}
    write_json(tmp_path / "listed.json", {**content, **lists})
    own = next((done["out"] / "runs").glob("*/evaluate/slices.csv"))
    (tmp_path / "own.csv").write_bytes(own.read_bytes())
    rows = [
        {"label": "ours", "scores": {"files": ["own.csv"]}},
        {"label": "planned", "overlays": ["configs/ablation/attention_full.json"]},
    ]
    table = _table(tmp_path / "table", rows=rows, datasets=["listed"])
    (run,) = plan_runs(read_table(table), tmp_path, BUNDLE)["planned"]
    assert run.datasets == (tmp_path / "listed.json",)
    assert run_table(table, tmp_path, tmp_path / "out", render_only=True) == []
    label = json.loads((own.parents[1] / "result.json").read_text())["label"]
    assert _csv({"out": tmp_path / "out"})["ours", "measured", "listed"] == pytest.approx(
        _csv(done)[label, "measured", "first"]
    )


def test_two_datasets_of_one_name_cannot_be_columns_of_a_table(data, tmp_path):
    for name in ("one", "other"):
        write_json(tmp_path / f"{name}.json", json.loads((data / "first" / "dataset.json").read_text()))
    with pytest.raises(InputError, match=r"one.json and .*other.json have one `name`, 'phantoms first'"):
        plan_runs(read_table(_table(tmp_path / "table", datasets=["one", "other"])), tmp_path, BUNDLE)


def _absolute(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**item, **{key: str(folder / item[key]) for key in ("image", "label")}}


def test_a_row_that_learned_nothing_is_not_compared_with(done, tmp_path):
    out = shutil.copytree(done["out"], tmp_path / "out")
    results = {json.loads(f.read_text())["label"]: f.parent for f in (out / "runs").glob("*/result.json")}
    scores = results["full"] / "evaluate" / "slices.csv"
    rows = list(csv.DictReader(scores.open()))
    with scores.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "dice": "0.0" if row["dice"] else ""} for row in rows)
    settings = {"data": done["data"], "out": out, "overlays": done["overlays"], "render_only": True}
    assert run_table(_table(tmp_path, claims=[["Boltzmann", "full"]]), **settings) == []
    text = (out / "mini.md").read_text()
    assert "Claim: Boltzmann above full. **Not compared: full found no object with this budget.**" in text


@pytest.mark.parametrize(
    ("low", "high", "seeds", "said"),
    [
        (0.1, 0.2, [0.1, 0.2], "It holds here."),
        (-0.1, 0.2, [0.1, 0.2], "It is not shown here."),
        (-0.2, -0.1, [-0.1, -0.2], "It does not hold here: the reverse does."),
        (None, None, [0.1, 0.2], "One patient: nothing follows."),
        (0.1, 0.2, [0.4, -0.1], "It is not shown here: seeds disagree."),
        (0.1, 0.2, [0.15], "It holds here, with one seed: another may say the opposite."),
        (-0.2, -0.1, [-0.15], "It does not hold here: the reverse does, with one seed: another may say the opposite."),
    ],
)
def test_a_claim_needs_an_interval_on_its_side_and_seeds_that_agree(low, high, seeds, said):
    assert verdict({"value": 0.1, "low": low, "high": high, "seeds": seeds}) == said


def test_without_validation_the_last_weights_are_scored(data, tmp_path):
    rows = [{"label": "full", "overlays": ["configs/ablation/attention_full.json"]}]
    budget = write_json(tmp_path / "budget.json", {**BUDGET, "samples_per_epoch": 8, "val_interval": 2})
    table, out = _table(tmp_path, rows=rows), tmp_path / "out"
    assert run_table(table, data, out, overlays=[str(budget)], launcher=launch_here) == []
    (folder,) = (path for path in (out / "runs").iterdir() if path.is_dir())  # a lock lies beside it
    assert not (folder / "model.pt").exists()
    assert json.loads((folder / "evaluate.json").read_text())["checkpoint"] == str(folder / "train" / "last.pt")
    assert json.loads((folder / "result.json").read_text())["effort"]["steps"] == 2
    assert (folder / "evaluate" / "slices.csv").is_file()


@pytest.mark.slow
def test_the_command_from_a_shell(data, tmp_path):
    rows = [{"label": "full", "overlays": ["configs/ablation/attention_full.json"]}]
    table, budget = _table(tmp_path, rows=rows), write_json(tmp_path / "budget.json", BUDGET)
    command = [sys.executable, "-m", "boltzformer.apps.experiment", str(table), "--data", str(data), "--device", "cpu"]
    command += ["--overlay", str(budget), "--seeds", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "±" in done.stdout
    assert len(list((tmp_path / "out" / "runs").glob("*/result.json"))) == 2


def test_shipped_tables_can_be_planned_and_share_the_default_run(tmp_path):
    item = {"image": "a.nii.gz", "label": "b.nii.gz"}
    keys: dict[str, list[str]] = {}
    for path in TABLES:
        table = read_table(path)
        for name in table.datasets:
            lists = {section: [item] for section in ("training", "validation", "test")}
            write_json(tmp_path / name / "dataset.json", {"labels": {"1": "x"}, **lists})
        planned = plan_runs(table, tmp_path, BUNDLE, device="cuda")
        keys[path.stem] = [run.key for runs in planned.values() for run in runs]
    assert keys["table1"] == keys["table2"]
    assert [len(set(keys[f"table{i}"])) for i in range(1, 9)] == [6, 6, 3, 4, 4, 4, 2, 2]
    shared = set.intersection(*(set(keys[f"table{i}"]) for i in range(3, 9)))
    assert len(shared) == 1
