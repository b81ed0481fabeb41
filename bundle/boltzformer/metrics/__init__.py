"""How good a segmentation is, by object size."""
