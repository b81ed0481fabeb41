"""The page of promises names tests that are there."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import ROOT
from tests.support import BUNDLE

NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (BUNDLE / "docs" / "reliability.md").read_text())


def test_the_page_names_tests():
    assert len(NAMED) > 60


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_a_named_test_is_there(file, name):
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()
