"""Files and DICOM series to volumes and back: read, check, orient, compare grids, write like the input."""
