"""Public datasets (MSD, AMOS22, LIDC-IDRI, nnU-Net raw) in, Decathlon layout out: a door to `boltzformer prepare`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from boltzformer.apps.prepare import app

if __name__ == "__main__":
    app()
