"""The commands in docs/command_line.md and docs/hospital.md are commands that exist, with options that exist."""

from __future__ import annotations

import pytest
from boltzformer.apps import cli
from boltzformer.inference.formats import output_formats

from tests.docs.blocks import commands
from tests.support import BUNDLE

PAGES = [BUNDLE / "docs" / name for name in ("command_line.md", "hospital.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_parses(page):
    found = [words for words in commands(page) if words[0] == "boltzformer"]
    assert len(found) >= 2
    for _, name, *arguments in found:
        redirected = arguments.index(">") if ">" in arguments else len(arguments)
        context = cli.load(name).make_context(name, arguments[:redirected])
        assert set(context.params.get("formats") or []) <= set(output_formats())


def test_every_format_is_in_the_table():
    text = PAGES[0].read_text()
    assert all(f"| `{name}`" in text for name in output_formats())
