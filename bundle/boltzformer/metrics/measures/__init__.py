"""What measures: masks and labels -> typed rows, by the one list of measures in `catalogue.py`."""
