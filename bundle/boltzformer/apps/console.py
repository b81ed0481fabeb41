"""How every command ends: one line for a user's mistake or Ctrl-C, and an exit code that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from boltzformer.error_report import find_input_error

MISTAKE = 2
INTERRUPTED = 130
OUTPUT_DIR = ("--output-dir", "--output", "-o")
"""Names of the option for an output folder: the same in every command."""


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text as it is: nothing in a name or a path is markup, a colour code or an emoji."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_error(message: object) -> None:
    """Print one line to standard error, as it is: no wrapping, no markup."""
    console = plain_console(stderr=True)
    console.print("[red]Error:[/red] ", end="", markup=True)
    console.print(str(message))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `InputError`, also one that MONAI has wrapped, and Ctrl-C into one line.

    Raises:
        typer.Exit: with code 2 after a user's mistake, and 130 after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        mistake = find_input_error(error)
        if mistake is None:
            raise
        print_error(mistake)
        raise typer.Exit(MISTAKE) from None
