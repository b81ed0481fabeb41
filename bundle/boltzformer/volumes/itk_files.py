"""NRRD and MetaImage files, read by SimpleITK.

It is imported where it is needed: a NIfTI file does without its 90 MB and its start.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer.errors import InputError
from boltzformer.volumes.grids import check_affine, lps_affine

if TYPE_CHECKING:
    import SimpleITK as sitk

_HEADER_BYTES = 1 << 16
_LONGEST_LINE = 4096
_LONGEST_WORD = 200


def is_itk_image(source: Any) -> bool:
    """Whether something is a `SimpleITK.Image`: whoever has made one has imported SimpleITK."""
    library = sys.modules.get("SimpleITK")
    return library is not None and isinstance(source, library.Image)


def image_geometry(image: sitk.Image | sitk.ImageFileReader, where: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and RAS+ affine of a SimpleITK image, or of a reader that has read its header.

    Args:
        image: image or reader.
        where: what to name in the error.

    Returns:
        (X, Y, Z) and the (4, 4) affine in mm.

    Raises:
        InputError: no 3D image of one value a voxel.
    """
    import SimpleITK as sitk

    shape = tuple(int(n) for n in image.GetSize())
    dimension = len(shape)
    if any(n != 1 for n in shape[3:]) or dimension < 3:
        raise InputError(f"{where}: expected 3 dimensions but found {dimension} {shape}; save one volume by itself.")
    if isinstance(image, sitk.ImageFileReader):
        components = image.GetNumberOfComponents()
    else:
        components = image.GetNumberOfComponentsPerPixel()
    if components != 1:
        raise InputError(f"{where}: holds several values for each voxel; expected one, as a CT or MR volume has.")
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3].ravel().tolist()
    affine = lps_affine(direction, image.GetSpacing()[:3], image.GetOrigin()[:3])
    return shape[:3], check_affine(affine, where)


def open_itk(path: Path) -> sitk.ImageFileReader:
    """Read a file's header.

    Raises:
        InputError: it is no such file or is damaged.
    """
    import SimpleITK as sitk

    _check_text_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as a volume ({last_line(error)}); export it again.") from error
    return reader


def _check_text_header(path: Path) -> None:
    """Refuse a header that ITK would not survive: it writes past arrays of fixed length, which ends the process."""
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    text = re.split(rb"\n\s*\n|ElementDataFile", start, maxsplit=1)[0]
    stated = re.findall(rb"^\s*(?:NDims\s*=|dimension\s*:)[ \t]*([^\r\n]*)", text, re.MULTILINE | re.IGNORECASE)
    if any(not re.fullmatch(rb"[2-5]\s*", value) for value in stated):
        found = stated[0].decode("ascii", "replace").strip()[:40]
        raise InputError(f"{path}: the header states {found} dimensions; export the volume again.")
    is_meta = path.suffix.lower() in (".mha", ".mhd")  # NRRD's header may hold long lines of its own
    fields = [line for line in text.split(b"\n") if b":" in line and b":=" not in line and line[:1] != b"#"]
    known = [line for line in fields if not re.match(rb"(content|data ?file|sample units)\s*:", line, re.IGNORECASE)]
    if not is_meta and any(len(word) > _LONGEST_WORD for line in known for word in line.split()):
        raise InputError(f"{path}: cannot be read as a volume (a header entry of over {_LONGEST_WORD} bytes).")
    if is_meta and max(map(len, text.split(b"\n"))) > _LONGEST_LINE:
        raise InputError(f"{path}: cannot be read as a volume (a header line of over {_LONGEST_LINE} bytes).")


def pixel_type(reader: sitk.ImageFileReader) -> np.dtype[Any]:
    """Of the voxels that a reader would read."""
    import SimpleITK as sitk

    return sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype


def image_voxels(image: sitk.Image) -> np.ndarray:
    """The voxels of a SimpleITK image, (X, Y, Z)."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    return array.reshape(array.shape[-3:]).transpose(2, 1, 0)


def read_itk(path: Path) -> np.ndarray:
    """Read a file's voxels, (X, Y, Z).

    Raises:
        InputError: the data is cut or damaged.
    """
    import SimpleITK as sitk

    try:
        return image_voxels(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(
            f"{path}: the data is truncated or damaged ({last_line(error)}); copy or export the file again."
        ) from error


def last_line(error: Exception) -> str:
    """What ITK's long messages end with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
