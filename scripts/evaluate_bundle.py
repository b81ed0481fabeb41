"""`boltzformer evaluate-bundle` as a script; needs the package (`make install`, or `pip install -e .`)."""

import typer
from boltzformer.apps.evaluate_bundle import main

if __name__ == "__main__":
    typer.run(main)
