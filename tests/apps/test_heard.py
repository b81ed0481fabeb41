"""Warnings as data: of this package, of one thread, each once."""

from __future__ import annotations

import logging
import threading

from boltzformer.apps.heard import heard
from boltzformer.apps.serve import quiet_libraries


def test_warnings_of_the_block_are_heard_once_and_nobody_elses():
    log = logging.getLogger("boltzformer.volumes.paths")
    with heard() as told:
        log.warning("%s: is odd", "a.nii")
        log.warning("a.nii: is odd")
        log.info("no warning")
        logging.getLogger("another").warning("not ours")
        logging.getLogger("boltzformer.networks.attention.gathered").warning("this machine is slow")
        other = threading.Thread(target=log.warning, args=("of another request",))
        other.start()
        other.join()
    log.warning("after it")
    assert told == ["a.nii: is odd"]


def test_the_services_log_holds_its_own_lines_alone(monkeypatch):
    """What is kept out of the log is still heard."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [Lines()])
    levels = {name: logging.getLogger(name).level for name in ("pydicom", "highdicom", "nibabel", "monai", "ignite")}
    try:
        quiet_libraries()
        with heard() as told:
            logging.getLogger("boltzformer.volumes.paths").warning("quotes a name")
        logging.getLogger("boltzformer.apps.service.jobs").warning("request 1")
        logging.getLogger("boltzformer.inference").error("an error")
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert told == ["quotes a name"]
    assert lines == ["request 1", "an error"]
