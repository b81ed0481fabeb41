"""What a batch holds."""

from __future__ import annotations

import torch
from boltzformer.data.collate import collate_prompts
from boltzformer.data.slice_dataset import SliceDataset
from monai.data import MetaTensor
from monai.transforms import RandScaleIntensityd


def test_tensors_are_plain_whatever_the_transforms_leave(make_case, tmp_path):
    scale = RandScaleIntensityd(keys="image", factors=0.1, prob=1)
    settings = {"training": True, "prompts_per_slice": 3, "transform": scale, "progress": False, "num_workers": 1}
    data = SliceDataset([make_case()], tmp_path / "cache", **settings)
    assert type(data[0]["image"]) is MetaTensor
    batch = collate_prompts([data[0], data[1]])
    assert {type(value) for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.Tensor}
