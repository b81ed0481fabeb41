"""A user's mistake ends a run with one sentence, not with a page of traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType

from boltzformer.errors import InputError, PartialFailure

_LOST = (
    "the run has lost another of its processes, which may have said why above; the last state that it saved is whole: "
    "start it again with `--resume true`"
)
# of gloo, and of NCCL
_MARKS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "ncclRemoteError")


def find_input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` behind an exception, following its causes.

    Args:
        error: any exception; MONAI wraps what a config's component raises in a RuntimeError.

    Returns:
        The first `InputError` of the chain, or None.
    """
    return next((one for one in _with_causes(error) if isinstance(one, InputError)), None)


def reason_of(error: BaseException) -> str:
    """One line that says why something failed: the `InputError` behind it, else its innermost cause.

    Args:
        error: any exception.
    """
    mistake = find_input_error(error)
    if mistake is not None:
        return str(mistake)
    *_, innermost = _with_causes(error)
    lines = str(innermost).strip().splitlines()
    return f"{type(innermost).__name__}: {lines[0]}" if lines else type(innermost).__name__


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception is torch.distributed's word that another process of the run is gone or does not answer."""
    return any(
        isinstance(one, RuntimeError) and any(mark in f"{type(one).__name__}: {one}" for mark in _MARKS_OF_LOSS)
        for one in _with_causes(error)  # MONAI wraps what a config's expression raises
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came of, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def report_input_errors_briefly(exit_code: int = 1) -> None:
    """Let an uncaught `InputError` print `error: <message>` alone; others keep their traceback.

    Ctrl-C is `Stopped.`, and the loss of another process is one line too.

    Configs call this first in their `run` list. It touches `sys.excepthook` only, so it changes nothing for a
    program that catches its exceptions.

    Args:
        exit_code: of the process after an `InputError`; a `PartialFailure` ends it with 1.
    """
    if getattr(sys.excepthook, "reports_input_errors", False):
        return
    usual = sys.excepthook

    def brief(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = find_input_error(error)
        if isinstance(error, KeyboardInterrupt):
            print("Stopped.", file=sys.stderr)
        elif mistake is None and is_lost_process(error):
            print(f"error: {_LOST} ({reason_of(error)[:300]}).", file=sys.stderr)
        elif mistake is None:
            usual(kind, error, trace)
        else:
            print(f"error: {mistake}", file=sys.stderr)
            code = 1 if isinstance(mistake, PartialFailure) else exit_code
            if code != 1:
                sys.stderr.flush()
                raise SystemExit(code)  # Python ends with this code where the hook raises it

    brief.reports_input_errors = True  # type: ignore[attr-defined]
    sys.excepthook = brief
