"""A JSON summary: for each prompt what was found."""

from __future__ import annotations

import json
from pathlib import Path

from boltzformer.inference.formats.output_format import OutputFormat
from boltzformer.output_files import write_bytes
from boltzformer.volumes.segmented import SegmentedVolume


def _write(volume: SegmentedVolume, folder: Path) -> list[Path]:
    content = {
        "case": volume.case,
        # the name alone: a path tells more about the place than a result should
        "image": volume.volume.path.name if volume.volume.path else None,
        "algorithm": {
            "name": volume.algorithm.name,
            "version": volume.algorithm.version,
            "weights_sha256": volume.algorithm.weights_sha256,
            "computation": volume.computation,
        },
        "window": volume.window,
        "findings": [dict(finding) for finding in volume.findings],
    }
    text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
    return [write_bytes(folder / f"{volume.case}.summary.json", text.encode(), volume.files)]


FORMAT = OutputFormat("json", "one JSON file with what was found and how large it is", _write)
