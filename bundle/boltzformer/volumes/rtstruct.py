"""RTSTRUCT: masks as contours, for radiotherapy planning systems."""

from __future__ import annotations

import warnings

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy.spatial.distance import cdist
from skimage.measure import find_contours, label

from boltzformer.volumes.dicom_source import MANUFACTURER, SERIES_NUMBER_OFFSET, one_line, source_headers
from boltzformer.volumes.segmented import SegmentedVolume, color_of

NAME_LENGTH = 64
STUDY_MANAGEMENT_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Retired SOP class by which a structure set names its study; planning systems still read it."""


def make_rtstruct(volume: SegmentedVolume) -> Dataset:
    """Build a structure set (PS3.3, A.19), one region of interest for each prompt.

    Contours run half a pixel around the mask's pixels, in the plane of the slice they belong to: a pixel is in the mask
    where its centre is inside. A hole is joined to its outline by a keyhole, as CLOSED_PLANAR asks. A prompt that was
    not found stays as a region without contours.

    Args:
        volume: read from a DICOM series.

    Returns:
        the object, ready for `save_as`.

    Raises:
        InputError: the volume comes from no DICOM series, or a file of the series cannot be referred to.
    """
    headers = source_headers(volume.volume)
    with warnings.catch_warnings():  # highdicom's warnings quote the patient's name, which belongs in no log
        warnings.simplefilter("ignore")
        made = _empty_object(volume, headers)
    made.StructureSetLabel = "BOLTZFORMER"
    made.StructureSetDate, made.StructureSetTime = made.InstanceCreationDate, made.InstanceCreationTime
    made.OperatorsName = ""
    made.ApprovalStatus = "UNAPPROVED"
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = headers[0].FrameOfReferenceUID, ""
    made.ReferencedFrameOfReferenceSequence = [_frame_of_reference(headers)]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for index, segment in enumerate(volume.segments):
        region, contours, observation = Dataset(), Dataset(), Dataset()
        region.ROINumber = contours.ReferencedROINumber = observation.ReferencedROINumber = index + 1
        region.ReferencedFrameOfReferenceUID = headers[0].FrameOfReferenceUID
        region.ROIName = one_line(segment.text, NAME_LENGTH)
        region.ROIGenerationAlgorithm = "AUTOMATIC"
        region.ROIGenerationDescription = one_line(f"{volume.algorithm.name} {volume.algorithm.version}", NAME_LENGTH)
        contours.ROIDisplayColor = list(color_of(index))
        if drawn := _contours(volume.masks[index], headers):
            contours.ContourSequence = drawn
        observation.ObservationNumber = index + 1
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        made.StructureSetROISequence.append(region)
        made.ROIContourSequence.append(contours)
        made.RTROIObservationsSequence.append(observation)
    return made


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the connected parts of a mask, holes joined by keyholes.

    Args:
        mask: (rows, columns) of 0 and 1.

    Returns:
        for each part, of 4-neighbours, the polygon's corners (n, 2) as (row, column), in pixels; the first corner is
        not repeated at the end.
    """
    parts = label(mask, connectivity=1)
    polygons = []
    for number in range(1, int(parts.max()) + 1):
        rings = [ring[:-1] - 1 for ring in find_contours(np.pad(parts == number, 1).astype(np.float32), 0.5)]
        rings.sort(key=_area, reverse=True)  # a hole is smaller than the outline around it
        polygon = rings[0]
        for hole in rings[1:]:
            polygon = _join(polygon, hole)
        polygons.append(polygon)
    return polygons


def _area(ring: np.ndarray) -> float:
    row, column = ring.T
    return abs(float(np.dot(row, np.roll(column, 1)) - np.dot(column, np.roll(row, 1)))) / 2


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring: along the outline, across to the hole, around it, and back the same way."""
    at, to = np.unravel_index(np.argmin(cdist(outline, hole)), (len(outline), len(hole)))
    around = np.roll(hole, -to, axis=0)
    return np.concatenate([outline[: at + 1], around, around[:1], outline[at:]])


def _contours(mask: np.ndarray, headers: list[Dataset]) -> list[Dataset]:
    drawn = []
    for index in np.flatnonzero(mask.any(axis=(0, 1))):
        header = headers[index]
        along_row, along_column = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        row_spacing, column_spacing = (float(value) for value in header.PixelSpacing)
        for polygon in outlines(mask[:, :, index].T):
            points = (
                np.array(header.ImagePositionPatient, dtype=np.float64)
                + polygon[:, 1:] * column_spacing * along_row
                + polygon[:, :1] * row_spacing * along_column
            )
            contour = Dataset()
            contour.ContourImageSequence = [_reference(header)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
            drawn.append(contour)
    return drawn


def _empty_object(volume: SegmentedVolume, headers: list[Dataset]) -> hd.base.SOPClass:
    first = headers[0]
    return hd.base.SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER_OFFSET + 1 + int(first.get("SeriesNumber", 0)) % 100000,
        sop_instance_uid=hd.UID(),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        # implicit VR: a long contour does not fit the 16-bit length of an explicit DS
        transfer_syntax_uid=ImplicitVRLittleEndian,
        patient_id=first.PatientID,
        patient_name=first.PatientName,
        patient_birth_date=first.PatientBirthDate,
        patient_sex=first.PatientSex,
        accession_number=first.AccessionNumber,
        study_id=first.StudyID,
        study_date=first.StudyDate,
        study_time=first.StudyTime,
        referring_physician_name=first.ReferringPhysicianName,
        specific_character_set=first.SpecificCharacterSet,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=volume.algorithm.name,
        software_versions=volume.algorithm.version,
        series_description="BoltzFormer structures",
    )


def _frame_of_reference(headers: list[Dataset]) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in headers]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_MANAGEMENT_CLASS, headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(header: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return reference
