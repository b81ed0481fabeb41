"""Each mutant's place is still there, once, and its tests exist."""

from __future__ import annotations

import pytest

from tests.mutation.__main__ import ROOT, read_table


@pytest.mark.parametrize("mutant", read_table(), ids=lambda mutant: f"{mutant['file']}: {mutant['find'][:40]}")
def test_a_mutant_changes_one_place(mutant):
    assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["find"]) == 1
    assert mutant["find"] != mutant["put"]
    assert mutant["tests"]
    for test in mutant["tests"]:
        file, _, name = test.partition("::")
        assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert (ROOT / "tests" / file).is_file()
