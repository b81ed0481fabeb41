"""`boltzformer label-server`: a MONAI Label server for 3D Slicer and OHIF, with the app of this bundle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from boltzformer.apps.console import one_line_errors
from boltzformer.apps.release import shipped_weights, weights_checksum
from boltzformer.errors import InputError
from boltzformer.output_files import check_folder

APP = Path(__file__).resolve().parent / "label_app" / "main.py"
MARK = "boltzformer.apps.label_app"


def main(
    studies: Annotated[str, typer.Argument(help="Folder of NIfTI images, or a DICOMweb address (http://...).")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's models/model.pt by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    work_dir: Annotated[
        Path, typer.Option(help="The server's own folder: log, and the weights that training makes.")
    ] = Path("label_server"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; CUDA where there is one by default.")] = None,
) -> None:
    """Serve the network to 3D Slicer and OHIF: free text in, segments named after their prompts out.

    Needs MONAI Label in an environment of its own: pip install '.[label]' -c constraints-label.txt.
    """
    with one_line_errors():
        start = weights or shipped_weights()
        command = server_command(studies, start, work_dir, host, port, device)
        trained = trained_weights(work_dir)
        if trained.is_file():
            print(
                f"{trained}, which was trained here, answers, and not {start}; to begin anew from that, give another "
                "--work-dir.",
                file=sys.stderr,
            )
    raise typer.Exit(_become(command, _environment()))


def server_command(
    studies: str, weights: Path, work_dir: Path, host: str = "127.0.0.1", port: int = 8000, device: str | None = None
) -> Sequence[str]:
    """Prepare the server's folder and say how to start it.

    Args:
        studies: folder with images, or a DICOMweb address.
        weights: a checkpoint.
        work_dir: the server's folder; made if needed.
        host: address to listen on.
        port: to listen on.
        device: where to compute, or None.

    Returns:
        the command.

    Raises:
        InputError: MONAI Label is not installed, or a folder or file is missing or holds something else.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise InputError(
            "MONAI Label is not installed: make an environment for it, pip install '.[label]' -c "
            "constraints-label.txt (it shares none with highdicom, see docs/slicer.md)."
        )
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise InputError(f"{studies}: no such folder; give one with NIfTI images, or a DICOMweb address.")
    weights_checksum(weights)  # says what to do where there are none
    check_folder(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    target = work_dir / "main.py"
    if target.is_symlink() or (target.exists() and MARK not in target.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{target}: is there already and is not ours; give another --work-dir.")
    shutil.copyfile(APP, target)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(work_dir.resolve())]
    command += ["--studies", studies, "--host", host, "--port", str(port)]
    command += ["--conf", "weights", str(weights.resolve())]
    return [*command, "--conf", "device", device] if device else command


def _become(command: Sequence[str], environment: dict[str, str]) -> int:
    """The server in place of this process, so that what ends the one ends the other; else its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(command[0], list(command), environment)
    return subprocess.run(command, env=environment).returncode


def trained_weights(work_dir: Path) -> Path:
    """Where the app keeps the weights that training made; they go before those that it was started with."""
    return work_dir / "model" / "model.pt"


def _environment() -> dict[str, str]:
    """With this package on the path of the server and of the trainings that it starts."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
