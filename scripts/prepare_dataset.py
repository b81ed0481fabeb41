"""`boltzformer prepare` as a script; needs the package (`make install`, or `pip install -e .`)."""

from boltzformer.apps.prepare import app

if __name__ == "__main__":
    app()
