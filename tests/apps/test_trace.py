"""Which slices `boltzformer trace` draws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from boltzformer.apps.trace import choose_examples
from boltzformer.errors import InputError


class Slices:
    """A dataset of labels with the given areas."""

    def __init__(self, **areas: list[int]) -> None:
        self.items = [
            {"case": "a", "object": name, "label": torch.arange(100) < area}
            for name, listed in areas.items()
            for area in listed
        ]
        self.examples = [SimpleNamespace()] * len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]

    def counts(self) -> dict[str, int]:
        return {item["object"]: 1 for item in self.items}


def test_as_many_slices_as_asked_for_also_of_one_object():
    one = Slices(nodule=[9, 1, 5, 3, 7])
    assert choose_examples(one, None, None, 1) == [2]  # the median area
    assert choose_examples(one, None, None, 3) == [2, 3, 4]  # and its neighbours in area
    assert choose_examples(one, None, None, 9) == [0, 1, 2, 3, 4]


def test_objects_take_turns():
    two = Slices(nodule=[1, 2, 3], liver=[50])
    assert choose_examples(two, None, None, 2) == [1, 3]
    assert choose_examples(two, None, "liver", 2) == [3]
    with pytest.raises(InputError, match="'spleen'"):
        choose_examples(two, None, "spleen", 2)
