"""Fair measurements: alternating runs in one process, multiply-adds, peak memory, a table and JSON."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import monai
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from boltzformer.inference.memory import measure_peak

Run = Callable[[], Any]


@dataclass
class Comparison:
    """One measured line: ours against a peer.

    Attributes:
        name: what was run.
        ours_s: median seconds of ours.
        peer_s: median seconds of the peer.
        faster: median over the pairs of (peer / ours).
        ours_gmac: multiply-adds of ours, in units of 10^9; likewise `peer_gmac`.
        ours_mib: peak memory of tensors beyond inputs and weights, MiB; likewise `peer_mib`.
        must: factor that has to be reached, or None.
        aim: factor that is hoped for, or None.
    """

    name: str
    ours_s: float
    peer_s: float
    faster: float
    ours_gmac: float
    peer_gmac: float
    ours_mib: float
    peer_mib: float
    must: float | None = None
    aim: float | None = None


def compare(
    name: str, ours: Run, peer: Run, repeats: int, must: float | None = None, aim: float | None = None
) -> Comparison:
    """Run both in turn, ours first, and count their work and memory once.

    Each timed run follows an untimed one of the same, so that neither is timed on caches and memory that the other
    has left behind.
    """
    _settle_allocator()
    pairs = [(_seconds_when_warm(ours), _seconds_when_warm(peer)) for _ in range(repeats)]
    return Comparison(
        name,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
        multiply_adds(ours) / 1e9,
        multiply_adds(peer) / 1e9,
        peak_mib(ours),
        peak_mib(peer),
        must,
        aim,
    )


def multiply_adds(run: Run) -> float:
    """Multiply-adds of a run by PyTorch's counter (half its FLOPs)."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not in the counter's own table

    def fused_flop(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop(query, key, value)

    with FlopCounterMode(display=False, custom_mapping={fused: fused_flop}) as counter:
        run()
    return counter.get_total_flops() / 2


def peak_mib(run: Run) -> float:
    """Highest memory of tensors alive at once during a run, beyond those alive before it, in MiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure_peak(run, device)[1] / 2**20


def report(title: str, rows: list[Comparison], peer: str, output: Path | None) -> None:
    """Print a table and, if asked, write JSON with the machine, the versions and the date beside the figures."""
    table = Table(
        "what", "ours", peer, "faster", "must", "aim", "GMAC", f"GMAC {peer}", "peak MiB", f"MiB {peer}", title=title
    )
    for row in rows:
        faster = f"{row.faster:.1f}x"
        if row.must is not None:
            faster = f"[{'green' if row.faster >= row.must else 'red'}]{faster}[/]"
        bars = [_optional(row.must, "x"), _optional(row.aim, "x")]
        work = [f"{row.ours_gmac:.1f}", f"{row.peer_gmac:.1f}", _optional(row.ours_mib), _optional(row.peer_mib)]
        table.add_row(row.name, _time(row.ours_s), _time(row.peer_s), faster, *bars, *work)
    machine = describe_machine()
    print_table(table, machine, width=150)
    if output is not None:
        write_figures(output, machine, rows, title=title, peer=peer)
        print(f"Written to {output}")


def print_table(table: Table, machine: dict[str, str], width: int = 120) -> None:
    """Print a table, and the machine below it."""
    console = Console(width=width)
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), style="dim")


def write_figures(output: Path, machine: dict[str, str], rows: Sequence[Any], **about: str) -> None:
    """Write a table's rows, which are dataclasses, as JSON, with the machine and what is said `about` them."""
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {**about, "machine": machine, "rows": [asdict(row) for row in rows]}
    output.write_text(json.dumps(document, indent=4) + "\n")


def seconds_of(run: Run, device: torch.device) -> float:
    """What a run takes: seconds of processor time, or on a GPU of the clock."""
    if device.type == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def describe_machine() -> dict[str, str]:
    """Processor, threads, versions and date."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "date": date.today().isoformat(),
    }


def _settle_allocator() -> None:
    """Bring the C library's allocator where encoding one slice brings it.

    glibc returns a block to the system, to be paid for again page by page, if it is larger than any freed so far, up
    to 32 MiB. A decoder alone would be timed on that for as long as it runs.
    """
    torch.ones(31 * 2**18)


def _seconds_when_warm(run: Run) -> float:
    run()
    return _seconds(run)


def _seconds(run: Run) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _optional(value: float | None, unit: str = "") -> str:
    return (
        "-" if value is None else f"{value:.0f}{unit}" if value >= 10 or value == int(value) else f"{value:.1f}{unit}"
    )


def peak_bytes() -> int:
    """Highest memory of this process so far, or since `/proc/self/clear_refs` was told to forget."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
