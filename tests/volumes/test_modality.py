from __future__ import annotations

import pytest
from boltzformer.errors import InputError
from boltzformer.volumes.modality import normal_modality


@pytest.mark.parametrize("name", ["CT", "ct ", "CTA", "non-contrast CT", "CBCT", "Computed Tomography"])
def test_ct(name):
    assert normal_modality(name) == "CT"


@pytest.mark.parametrize("name", ["MR", "mri", "FLAIR", "T1gd", "T2w", "ADC", "Magnetic resonance", "MRA", "t1 mri"])
def test_mr(name):
    assert normal_modality(name) == "MR"


def test_others_and_nothing():
    assert [normal_modality(name) for name in ("PET", "pt", "US", "", None, "  ")] == ["PET", "PET", "US", "", "", ""]


@pytest.mark.parametrize("name", [5, ["CT"], "CTX", "PET-CT", "scan", "unknown"])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match=r"a\.json: the modality"):
        normal_modality(name, "a.json")
