"""`python -m boltzformer`: the command line, without an installation from the bundle's folder."""

from boltzformer.apps.cli import main

if __name__ == "__main__":
    main()
