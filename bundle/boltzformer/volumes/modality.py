"""One spelling for each modality, wherever its name came from."""

from __future__ import annotations

import re

from boltzformer.errors import InputError

_CT = re.compile(r"(CB|HR|LD|CE|NC|PC)?CTA?|COMPUTED")
_MR = re.compile(r"(MP|CE|DCE|F)?MR[IA]?|FLAIR|T[12].*|ADC|DWI|DCE|DTI|SWI|PDW?|PROTON|MAGNETIC|BOLD|MPRAGE")
_OTHERS = {
    **{name: name for name in ("US", "NM", "XA", "CR", "DX", "MG", "RF", "OPT")},
    **{"PET": "PET", "PT": "PET", "SPECT": "NM", "ULTRASOUND": "US", "OCT": "OPT", "MAMMOGRAPHY": "MG"},
}


def normal_modality(name: object, where: str = "modality") -> str:
    """Bring a modality's name to one spelling, the same for training and inference.

    Args:
        name: as a user, a datalist or a DICOM file gives it: "ct", "CTA", "non-contrast CT ", "MRI", "T2w", "FLAIR"...
        where: what to name in the error.

    Returns:
        "CT", "MR", "PET", a DICOM code such as "US", or "" for None and empty text.

    Raises:
        InputError: no text, or a name that is not known or says two things.
    """
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InputError(f"{where}: the modality must be text such as CT or MR, found {name!r}.")
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    found = {_code(word) for word in words} - {""}
    if words and len(found) != 1:
        raise InputError(
            f"{where}: the modality {name!r} is not known; write CT, MR or a DICOM code ({', '.join(sorted(_OTHERS))})."
        )
    return found.pop() if found else ""


def _code(word: str) -> str:
    if _CT.fullmatch(word):
        return "CT"
    if _MR.fullmatch(word):
        return "MR"
    return _OTHERS.get(word, "")
