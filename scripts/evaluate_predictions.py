"""`boltzformer evaluate-predictions` as a script; needs the package (`make install`, or `pip install -e .`)."""

import typer
from boltzformer.apps.evaluate_predictions import main

if __name__ == "__main__":
    typer.run(main)
