"""BoltzFormer: text-prompted segmentation of small objects in CT and MR volumes, as a MONAI bundle."""
