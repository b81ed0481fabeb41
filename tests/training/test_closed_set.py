"""The network without text: its plan, its loss on what is annotated, and from training to a scored label map."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.apps import dynunet
from boltzformer.data.cases import load_cases
from boltzformer.data.phantom import write_phantoms
from boltzformer.errors import InputError
from boltzformer.metrics.files import read_csv
from boltzformer.training.closed_set import AnnotatedLoss, train_for
from boltzformer.training.closed_set_plan import (
    IGNORED,
    CountedObjectsd,
    ObjectChannelsd,
    make_network,
    make_plan,
    topology,
)
from monai.transforms import LoadImage
from typer import Typer
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closed") / "set"
    write_phantoms(folder, num_training=2, num_validation=1, size=(48, 48, 12))
    return folder


def test_the_plan_comes_from_the_training_cases(phantoms):
    cases = load_cases(phantoms)
    plan = make_plan(cases, (40, 40, 10))
    spacings = [nib.load(case["image"]).header.get_zooms() for case in cases]
    assert plan.spacing == pytest.approx(np.median(spacings, axis=0), rel=1e-5)
    assert plan.low < plan.mean < plan.high
    network = make_network(plan, 4)
    found = network.eval()(torch.zeros(1, 1, *plan.patch))
    assert found.shape == (1, 3, *plan.patch)
    with pytest.raises(InputError, match="other labels"):
        make_plan([cases[0], {**cases[1], "objects": {1: "liver"}}], (40, 40, 10))


def test_what_is_not_annotated_costs_nothing(phantoms):
    cases = load_cases(phantoms)
    plan = make_plan(cases, (40, 40, 10))
    label = torch.zeros(1, 4, 4, 4)
    label[0, :2] = 1
    whole = CountedObjectsd("label", plan)({"label": label, "annotated": [2]})
    channels = ObjectChannelsd("label", plan)(whole)["label"]
    assert [float(channel.max()) for channel in channels] == [1, 0, IGNORED]
    elsewhere = ObjectChannelsd("label", plan)({**whole, "label": label[:, 2:]})["label"]  # a patch beside the object
    assert [float(channel.max()) for channel in elsewhere] == [0, 0, IGNORED]
    truth, loss = channels[None], AnnotatedLoss()
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = logits.clone()
    changed[:, 2] += 5
    assert torch.equal(loss(logits, truth), loss(changed, truth))
    changed[:, 1] += 5
    assert loss(changed, truth) > loss(logits, truth)
    perfect = torch.where(truth > 0, 20.0, -20.0)
    assert loss(perfect, truth) < 0.51  # the empty channel's Dice loss is 1 with so few voxels, or 0 by smoothing


@pytest.mark.parametrize("bfloat16", [False, True])
def test_steps_lower_the_loss(phantoms, bfloat16, monkeypatch):
    read, load = [], LoadImage.__call__
    monkeypatch.setattr(
        LoadImage, "__call__", lambda self, name, *more: (read.append(name), load(self, name, *more))[1]
    )
    cases = load_cases(phantoms)
    plan = make_plan(cases, (32, 32, 8))
    torch.manual_seed(0)
    network, kinds = make_network(plan, 4), set()
    network.register_forward_hook(lambda module, given, found: kinds.add(found.dtype))
    settings = {"most_steps": 12, "learning_rate": 5e-3, "bfloat16": bfloat16}
    losses = train_for(cases, plan, network, 3600, torch.device("cpu"), **settings)
    assert len(losses) == 12
    assert len(set(read[-4:])) == 4, "both files of both cases"
    assert len(read) == 4 + 4, "once for the plan, once for all the steps"
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.05
    assert kinds == {torch.bfloat16 if bfloat16 else torch.float32}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_an_axis_that_has_a_kernel_of_three_keeps_it():
    kernels, strides, _ = topology((96, 96, 48), np.array([3.9, 3.9, 2.5]))
    assert strides[-1] == [2, 2, 1]  # 6 x 6 x 6 cells of 63 x 63 x 20 mm: x and y are coarse by now
    assert kernels[0] == kernels[-1] == [3, 3, 3]
    kernels, _, _ = topology((64, 64, 16), np.array([1.0, 1.0, 5.0]))
    assert kernels[0] == [3, 3, 1]
    assert kernels[-1] == [3, 3, 3]


def test_images_of_one_name_would_take_each_others_masks(phantoms, tmp_path):
    content = json.loads((phantoms / "dataset.json").read_text())
    for section in ("training", "validation"):
        items = [dict(item, label=str(phantoms / item["label"])) for item in content[section]]
        content[section] = [{**item, "image": str(phantoms / item["image"])} for item in items]
    for number in (1, 2):
        (tmp_path / f"pt_{number}").mkdir()
        copyfile(content["validation"][0]["image"], tmp_path / f"pt_{number}" / "ct.nii.gz")
    one = {**content["validation"][0], "patient": "a"}
    both = [{**one, "image": f"pt_{number}/ct.nii.gz"} for number in (1, 2)]
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "validation": both}))
    with pytest.raises(InputError, match=r"pt_1/ct.nii.gz and .*pt_2/ct.nii.gz would be written to one file"):
        dynunet.train_and_score(tmp_path, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_from_training_to_scores(phantoms, tmp_path):
    app = Typer()
    app.command()(dynunet.main)
    options = ["--minutes", "0.02", "--patch", "32", "32", "8", "--filters", "4", "--device", "cpu"]
    done = CliRunner().invoke(app, [str(phantoms), "--output-dir", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["steps"] >= 1
    image = nib.load(phantoms / "imagesTr" / "phantom_validation_000.nii.gz")
    mask = nib.load(tmp_path / "predictions" / "phantom_validation_000.nii.gz")
    assert mask.shape == image.shape
    assert np.allclose(mask.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}
    assert {row["object"] for row in read_csv(tmp_path / "slices.csv")} == {"lung nodule", "aorta", "liver"}
