"""Small DICOM series for tests: any orientation, any positions, and private data that must stay behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from boltzformer.volumes.segmented import Algorithm, Segment, SegmentedVolume
from boltzformer.volumes.sources import open_volume
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (0.9, 0.8)  # between rows, between columns
ALGORITHM = Algorithm("BoltzFormer", "0.1.0", "ab" * 32)


def write_small_series(
    folder: Path,
    positions: np.ndarray,
    rotation: np.ndarray | None = None,
    shape: tuple[int, int] = (20, 24),
    without: Sequence[str] = (),
    **tags: object,
) -> tuple[Path, ...]:
    """One CT file of (columns, rows) = `shape` for each position (n, 3); returns the files in that order."""
    folder.mkdir(parents=True)
    rotation = np.eye(3) if rotation is None else rotation
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    files = []
    for k, position in enumerate(positions):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 7, k + 1
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "17", "19700102", "F"
        image.AccessionNumber, image.StudyID, image.StudyDate, image.StudyTime = "A1", "S1", "20200102", "101112"
        image.InstitutionName, image.PatientAddress, image.PatientComments = "SECRET", "SECRET", "SECRET"
        image.private_block(0x0011, "SECRET", create=True).add_new(1, "LO", "SECRET")
        image.Columns, image.Rows = shape
        image.PixelSpacing = list(SPACING)
        image.ImageOrientationPatient = [*rotation[:, 0], *rotation[:, 1]]
        image.ImagePositionPatient = list(position)
        image.SliceThickness = 3
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        image.PixelData = np.full(shape[::-1], 1000 + k, np.uint16).tobytes()
        for name, value in tags.items():
            setattr(image, name, value)
        for name in without:
            delattr(image, name)
        files.append(folder / f"I{k:03d}")
        image.save_as(files[-1], enforce_file_format=True)
    return tuple(files)


def straight(count: int, gap: float = 3.0) -> np.ndarray:
    """Positions along the third axis."""
    return np.array([[-30.0, -20.0, 10.0 + gap * k] for k in range(count)])


def random_masks(shape: tuple[int, int, int, int], seed: int = 0) -> np.ndarray:
    """Overlapping blobs and single pixels, with empty slices between."""
    random = np.random.default_rng(seed)
    masks = (random.random(shape) < 0.02).astype(np.uint8)
    masks[0, 4:9, 3:12, 1] = 1
    masks[0, 6, 6:8, 1] = 0  # a hole
    masks[-1, 5:7, 4:6, 1] = 1  # on top of the first
    masks[..., shape[3] // 2] = 0
    return masks


def segmented(files: Sequence[Path], masks: np.ndarray, prompts: Sequence[str]) -> SegmentedVolume:
    """The masks as a result on a series."""
    volume = open_volume(files[0].parent, uneven_spacing="warn")
    assert volume.series is not None
    segments = tuple(Segment(f"s{k}", prompt) for k, prompt in enumerate(prompts))
    volume = replace(volume, series=replace(volume.series, files=tuple(files)))
    return SegmentedVolume("case", volume, masks, segments, ALGORITHM)
