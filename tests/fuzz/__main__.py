"""The fuzzer: damaged inputs through the real readers and commands; says how many of each kind, and what broke.

python -m tests.fuzz --count 20000 --seed 0         all of them; a worker that dies or hangs is itself a violation
python -m tests.fuzz --only nifti:0:1234 --keep     one input again, its files kept
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS_EACH = 20  # of the processor
SECONDS_WAITING = 200  # by the clock, which other programs slow down
SILENCE = 300
START = 600
MEMORY = 16 << 30  # more than any input needs; beyond it, memory runs out for this process alone


class Overtime(BaseException):
    """An input took too long; not an Exception, so that no handler takes it for a bad case."""


def main() -> int:
    """Run the fuzzer; 0 where nothing broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time; 0 is no limit")
    parser.add_argument("--kinds", default="", help="only these, separated by commas")
    parser.add_argument("--only", default="", help="KIND:SEED:NUMBER, one input again")
    parser.add_argument("--keep", action="store_true", help="keep the files of an input that broke something")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, seed, number = options.only.split(":")
        options.kinds, options.seed, options.first, options.count = kind, int(seed), int(number), 1
    if options.worker or options.only:
        return work(options)
    return supervise(options)


def supervise(options: argparse.Namespace) -> int:
    """Start workers until all inputs are tried, and sum up."""
    tried: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    took: collections.Counter[str] = collections.Counter()
    violations: list[str] = []
    began, number, end = time.monotonic(), options.first, options.first + options.count
    while number < end and not _is_late(options, began):
        for report in _reports(options, number, end):
            number = report["number"] + 1
            tried[report["kind"]] += 1
            refused[report["kind"]] += report["code"] != 0
            took[report["kind"]] += report.get("milliseconds", 0)
            for problem in report["problems"]:
                violations.append(f"{report['kind']}:{options.seed}:{report['number']}: {problem}")
                print(f"VIOLATION {violations[-1]}", flush=True)
            if not sum(tried.values()) % 1000:
                print(f"{sum(tried.values())} inputs in {time.monotonic() - began:.0f} s", flush=True)
            if _is_late(options, began):
                break
    seconds = time.monotonic() - began
    for kind in sorted(tried):
        each = took[kind] // tried[kind]
        print(f"{kind:16} {tried[kind]:6} tried, {refused[kind]:6} refused or failed, the others done; {each} ms each")
    print(f"{sum(tried.values())} inputs in {seconds:.0f} s (seed {options.seed}): {len(violations)} violations")
    return 1 if violations else 0


def _is_late(options: argparse.Namespace, began: float) -> bool:
    return bool(options.minutes) and time.monotonic() - began > 60 * options.minutes


def _reports(options: argparse.Namespace, first: int, end: int) -> Iterator[dict[str, Any]]:
    """What one worker tells, until it is done; its death or silence is a report too."""
    command = [sys.executable, "-m", "tests.fuzz", "--worker", "--seed", str(options.seed), "--kinds", options.kinds]
    command += ["--first", str(first), "--count", str(end - first), *(["--keep"] if options.keep else [])]
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1)
        assert worker.stdout is not None
        selector = selectors.DefaultSelector()
        selector.register(worker.stdout, selectors.EVENT_READ)
        number, kind, why = first - 1, "?", ""
        try:
            while True:
                patience = START if number < first else SILENCE  # the imports may be slow on a busy machine
                if not selector.select(patience):
                    why = f"no answer for {patience} s"
                    break
                line = worker.stdout.readline()
                if not line:
                    break
                report = json.loads(line)
                number, kind = report["number"], report["kind"]
                if "code" in report:
                    yield report
                    kind = "?"
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
        if why or worker.returncode not in (0, -signal.SIGKILL) or kind != "?":
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            problem = why or f"the process died (code {worker.returncode}) {' '.join(last)}"
            yield {"number": number if kind != "?" else number + 1, "kind": kind, "code": 1, "problems": [problem]}


def work(options: argparse.Namespace) -> int:
    """Try inputs one after another in this process, a line of JSON before and after each."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports, libraries and commands print is no report
    import numpy as np
    import torch

    from tests.fuzz.kinds import KINDS
    from tests.fuzz.sandbox import Sandbox
    from tests.fuzz.tools import Tools
    from tests.support import body

    torch.set_num_threads(1)
    names = [name for name in options.kinds.split(",") if name] or list(KINDS)
    weights = np.array([KINDS[name][0] for name in names], float)
    base = Path(tempfile.mkdtemp(prefix="fuzz-"))
    tools = Tools(base)
    try:
        tools.segmenter.segment(body((8, 8, 2)), "liver", affine=np.eye(4), modality="CT")  # compiles what it needs
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        for alarm in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(alarm, _overtime)
        for number in range(options.first, options.first + options.count):
            chance = np.random.default_rng([options.seed, number, 1])
            drawn = names[int(chance.choice(len(names), p=weights / weights.sum()))]
            print(json.dumps({"number": number, "kind": drawn}), file=told, flush=True)
            box, began = Sandbox(base / f"{number}"), time.process_time()
            code, problems = try_one(KINDS[drawn][1], box, np.random.default_rng([options.seed, number]), tools)
            milliseconds = round(1000 * (time.process_time() - began))  # of the processor
            report = {"number": number, "kind": drawn, "code": code, "problems": problems, "milliseconds": milliseconds}
            print(json.dumps(report), file=told, flush=True)
            if not (options.keep and problems):
                shutil.rmtree(box.root)
            else:
                print(json.dumps({"number": number, "kind": "?", "kept": str(box.root)}), file=told, flush=True)
        return 0
    finally:
        tools.close()
        if not options.keep:
            shutil.rmtree(base, ignore_errors=True)


def try_one(kind: Any, box: Any, draw: Any, tools: Any) -> tuple[int, list[str]]:
    """Make one input, run its command and judge; gives the code and what broke."""
    temporary, folder = tempfile.tempdir, os.getcwd()
    tempfile.tempdir = str(box.temporary)
    os.chdir(box.cwd)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_WAITING)
    code, problems = 1, []
    tools.box = box
    try:
        done = kind(box, draw, tools)
        code, problems = done.code, list(done.problems)
    except Overtime:
        problems = [f"took over {SECONDS_EACH} s of the processor, or waited {SECONDS_WAITING} s"]
    except Exception as error:
        problems = [f"the fuzzer itself: {type(error).__name__}: {error}"]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(folder)
        tempfile.tempdir = temporary
    return code, problems + box.problems


def _overtime(number: int, frame: FrameType | None) -> None:
    raise Overtime


if __name__ == "__main__":
    sys.exit(main())
