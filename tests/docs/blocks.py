"""The code blocks of the project's Markdown pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support import BUNDLE

ROOT = BUNDLE.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((BUNDLE / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words behind it, its text and its page."""

    page: Path
    language: str
    about: str
    text: str


def blocks(page: Path, language: str = "", about: str | None = None) -> list[Block]:
    """All blocks of a page; of one language, and with these words behind it, where they are given."""
    found = [Block(page, kind, words.strip(), text) for kind, words, text in _FENCE.findall(page.read_text())]
    return [b for b in found if language in ("", b.language) and about in (None, b.about)]


def commands(page: Path) -> list[list[str]]:
    """The words of each shell command of a page."""
    shell = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in ("bash", "")]
    lines = [line for text in shell for line in text.splitlines()]
    parsed = [shlex.split(line, comments=True) for line in lines]
    return [words for words in parsed if words]


def bundle_runs(page: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """(run id, config files, settings) of each `python -m monai.bundle run` or `torchrun` command of a page."""
    runs = []
    for words in commands(page):
        if "monai.bundle" not in words:
            continue
        after = words[words.index("run") + 1 :]
        given = dict(zip(after[1::2], after[2::2], strict=True))
        files = re.findall(r"configs/[\w/]+\.json", given.pop("--config_file"))
        runs.append((after[0], files, {key.removeprefix("--"): value for key, value in given.items()}))
    return runs
