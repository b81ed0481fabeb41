"""`boltzformer serve`: the service and its page."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from boltzformer.apps.console import one_line_errors
from boltzformer.apps.release import NAME, bundle_version, shipped_weights, weights_checksum
from boltzformer.apps.segment import window_of
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.recipe import lasting_objects, read_recipe
from boltzformer.settings import usable_device
from boltzformer.volumes.segmented import Algorithm

TOKEN_VARIABLE = "BOLTZFORMER_TOKEN"
SHORTEST_TOKEN = 16
MOST_SUGGESTIONS = 12


def main(
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's models/model.pt by default.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option(help="Config on top of inference.json; repeatable.")] = None,
    window: Annotated[
        str | None, typer.Option(help='Name of an intensity window or "lower,upper"; the recipe\'s by default.')
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; CUDA where there is one by default.")] = None,
    memory_gb: Annotated[float, typer.Option(min=0.01, help="For the tensors of a batch of slices.")] = 2.0,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients must show; or the variable {TOKEN_VARIABLE}.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name that the service is called by; repeatable.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 4,
    upload_mb: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 2000.0,
    megavoxels: Annotated[float, typer.Option(min=0.001, help="Largest volume, in million voxels.")] = 200.0,
    job_seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for a request.")] = 1800.0,
    keep_minutes: Annotated[float, typer.Option(min=0.1, help="Until a result is deleted.")] = 30.0,
) -> None:
    """Serve the network: a page for the browser, and HTTP for programs.

    The network is loaded once. One request is worked on at a time, a few wait, and more are asked to come back later.
    What is sent is deleted when its request is over, and the results after --keep-minutes.
    """
    with one_line_errors():
        try:
            import uvicorn

            from boltzformer.apps.service.access import Access, allowed_hosts
            from boltzformer.apps.service.app import make_app
            from boltzformer.apps.service.limits import Limits
        except ModuleNotFoundError as error:
            raise InputError(
                f"serve needs {error.name}, which is not installed: pip install 'boltzformer[serve]'."
            ) from None
        token = read_token(token_file)
        check_exposure(host, token, tls_cert, tls_key)
        place = taken_place(host, port)
        file = weights or shipped_weights()
        algorithm = Algorithm(NAME, bundle_version(), weights_checksum(file))
        settings: dict[str, Any] = {"memory_gb": memory_gb, "keep_logits": False}
        settings |= {} if window is None else {"window": window_of(window)}
        segmenter = Segmenter.from_bundle(
            bundle_folder(),
            file,
            [path.resolve() for path in overlay or []],
            None if device is None else usable_device(device),
            **settings,
        )
        limits = Limits(
            upload_mb=upload_mb,
            voxels=round(megavoxels * 1e6),
            waiting=waiting,
            job_seconds=job_seconds,
            keep_minutes=keep_minutes,
        )
        access = Access(allowed_hosts(host, allow_host or []), token)
        app = make_app(segmenter, algorithm, limits, access, {"suggestions": suggestions(file)})
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        quiet_libraries()
        listener = uvicorn.Config(
            app,
            access_log=False,  # it holds the keys of jobs
            log_config=None,
            server_header=False,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
            timeout_graceful_shutdown=5,
        )
        scheme = "http" if tls_cert is None else "https"
        place.listen()  # whoever reads the next line may call at once
        address = f"{scheme}://{shown(host)}:{place.getsockname()[1]}"
        Console(highlight=False, soft_wrap=True).print(f"{NAME} on {address} (Ctrl-C stops it)")
        uvicorn.Server(listener).run(sockets=[place])


def taken_place(host: str, port: int) -> socket.socket:
    """A socket that holds a port, but does not listen yet; uvicorn itself would find one in use when all is loaded.

    Args:
        host: a name or an address.
        port: 0 takes a free one.

    Raises:
        InputError: the port is in use or not allowed, or the host is none of this machine's.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # a service that is started again need not wait for the last one's connections
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise InputError(
            f"cannot listen on {shown(host)}:{port} ({error.strerror or error}); give another --port, or a --host of "
            "this machine."
        ) from None
    return place


def read_token(file: Path | None) -> str:
    """The token of a file, else of the environment; empty where there is none.

    Raises:
        InputError: the file cannot be read, or the token is short or holds other than printable ASCII characters.
    """
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    else:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: the token cannot be read ({type(error).__name__}).") from None
        if not token:
            raise InputError(f"{file}: holds no token.")
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(
            f"the token must have {SHORTEST_TOKEN} or more printable ASCII characters without spaces; "
            "`openssl rand -hex 32` makes one."
        )
    return token


def check_exposure(host: str, token: str, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Refuse to stand open to a network.

    Raises:
        InputError: an address other than loopback without token, or half of what TLS needs.
    """
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key belong together; give both.")
    for path in (tls_cert, tls_key):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file.")
    if not is_loopback(host):
        if not token:
            raise InputError(
                f"--host {host}: others can reach it; give a token as well (--token-file or {TOKEN_VARIABLE}), or stay "
                "on 127.0.0.1."
            )
        if tls_cert is None:
            logging.getLogger(__name__).warning(
                "without --tls-cert, scans and token travel over the network as plain text"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def shown(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def suggestions(weights: Path) -> list[str]:
    """A wording of each object that the network was trained on, as many as fit a page."""
    objects = lasting_objects(read_recipe(weights) or {})
    return [wordings[0] for wordings in objects.values() if wordings][:MOST_SUGGESTIONS]


def quiet_libraries() -> None:
    """Keep lines that quote names, prompts and headers of files out of the log: only the service's own go there.

    What this package warns of is still made, for the client that it concerns (`boltzformer.apps.heard`).
    """
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "nibabel", "monai", "ignite", "multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_may_be_logged)


def _may_be_logged(record: logging.LogRecord) -> bool:
    own = record.name.startswith(f"{__package__}.service.")
    return own or record.levelno >= logging.ERROR or not record.name.startswith("boltzformer")
