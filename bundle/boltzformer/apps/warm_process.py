"""A command in a process of its own that does not have to import PyTorch and MONAI first.

A server process imports them once and forks for each call (Python's `forkserver`). It computes nothing itself, so no
thread and no GPU is lost in the fork, and every call begins from the same state.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_IMPORTED = ("monai.bundle", "monai.engines", "monai.handlers", "timm", "transformers", "boltzformer.weights")


def run_module(module: str, arguments: Sequence[str], folder: Path, log: Path) -> int:
    """Run `python -m module arguments` in a folder and wait for its end.

    Args:
        module: with a `__main__`, such as `monai.bundle`.
        arguments: of its command line.
        folder: where it runs.
        log: gets all output, behind what is there.

    Returns:
        the exit code; negative for a signal.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    process = context.Process(target=_run, args=(module, list(arguments), str(folder), str(log)))
    process.start()
    try:
        process.join()
    except BaseException:  # Ctrl-C reaches the process too; it saves its state before it ends
        process.join()
        raise
    return process.exitcode or 0


def _run(module: str, arguments: list[str], folder: str, log: str) -> None:
    with open(log, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    sys.path.insert(0, folder)  # as `python -m` does
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException as error:
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit:
            raise
        raise SystemExit(1) from None
