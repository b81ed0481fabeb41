"""Whole volumes: slices out, masks back on the input's grid."""
