"""DICOM SEG: masks as an object that refers to the series they were drawn on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from boltzformer.errors import InputError
from boltzformer.volumes.dicom_source import (
    LOSSY,
    MANUFACTURER,
    SERIES_NUMBER_OFFSET,
    even_spacing,
    one_line,
    slice_positions,
    source_headers,
)
from boltzformer.volumes.segment_codes import Code as Term
from boltzformer.volumes.segment_codes import find_code
from boltzformer.volumes.segmented import Algorithm, Segment, SegmentedVolume, color_of

LABEL_LENGTH = 64
DESCRIPTION_LENGTH = 1024


def make_dicom_seg(volume: SegmentedVolume) -> Dataset:
    """Build a BINARY segmentation object (PS3.3, A.51), one segment for each prompt.

    A frame lies at the position of the slice it was drawn on, so tilted and unevenly spaced series need no resampling.
    Slices without the object have no frame. A prompt that was not found stays as a segment without frames.

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
        try:
            made = _segmentation(volume, headers)
        except (KeyError, ValueError, TypeError, AttributeError) as error:  # a header that the standard does not know
            raise InputError(
                f"{volume.volume.name}: no DICOM SEG can refer to this series ({error}); choose another format."
            ) from error
    made.ContentCreatorName = ""  # type 2: no person drew this
    return made


def _segmentation(volume: SegmentedVolume, headers: list[Dataset]) -> hd.seg.Segmentation:
    first = headers[0]
    measures = _pixel_measures(headers)
    for header in headers:  # highdicom asks each image for it, which may hold none (type 2)
        header.SliceThickness = measures[0].SliceThickness
    lossy = next((header for header in headers if "LossyImageCompression" in header), first)
    for name in LOSSY:  # highdicom asks the first image alone
        if name in lossy:
            first[name] = lossy[name]
    return hd.seg.Segmentation(
        source_images=headers,
        pixel_array=np.ascontiguousarray(volume.masks.transpose(3, 2, 1, 0)),  # slice, row, column, segment
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=describe_segments(volume.segments, volume.algorithm),
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER_OFFSET + int(first.get("SeriesNumber", 0)) % 100000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=volume.algorithm.name,
        software_versions=volume.algorithm.version,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Automatic segmentation from text prompts",
        series_description="BoltzFormer segmentation",
        pixel_measures=measures,
        plane_orientation=hd.PlaneOrientationSequence(
            hd.CoordinateSystemNames.PATIENT, [float(value) for value in first.ImageOrientationPatient]
        ),
        plane_positions=[
            hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, tuple(position))
            for position in slice_positions(headers)
        ],
    )


def describe_segments(segments: Sequence[Segment], algorithm: Algorithm) -> list[hd.seg.SegmentDescription]:
    """Describe each prompt: its label, codes, colour, and who drew it.

    Args:
        segments: the prompts; a text over 64 characters is cut as label and stands whole in the description.
        algorithm: goes into each segment, with the weights' checksum as a parameter.

    Returns:
        one description for each segment, numbered from 1.
    """
    parameters = {"weights_sha256": algorithm.weights_sha256} if algorithm.weights_sha256 else None
    described = []
    for index, segment in enumerate(segments):
        code = find_code(segment.text)
        description = hd.seg.SegmentDescription(
            segment_number=index + 1,
            segment_label=one_line(segment.text, LABEL_LENGTH),
            segmented_property_category=_concept(code.category),
            segmented_property_type=_concept(code.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=algorithm.name,
                family=codes.DCM.ArtificialIntelligence,
                version=algorithm.version,
                source=MANUFACTURER,
                parameters=parameters,
            ),
            anatomic_regions=[_concept(code.region)] if code.region else None,
            display_color=hd.color.CIELabColor.from_rgb(*color_of(index)),
        )
        description.SegmentDescription = one_line(segment.text, DESCRIPTION_LENGTH)
        if code.laterality:
            modifier = hd.sr.CodedConcept.from_code(_concept(code.laterality))
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        described.append(description)
    return described


def _pixel_measures(headers: Sequence[Dataset]) -> hd.PixelMeasuresSequence:
    spacing = even_spacing(headers)
    thickness = float(headers[0].get("SliceThickness", 0))
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in headers[0].PixelSpacing],
        # required (type 1C); where the source does not say it, slices are taken to touch
        slice_thickness=thickness if thickness > 0 else even_spacing(headers, math.inf) or 1.0,
        spacing_between_slices=spacing,
    )


def _concept(term: Term) -> Code:
    return Code(term.value, "SCT", term.meaning)
