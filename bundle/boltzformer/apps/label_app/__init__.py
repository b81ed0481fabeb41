"""A MONAI Label app: free text in 3D Slicer and OHIF, a segment named after each prompt. Started by `label-server`."""
