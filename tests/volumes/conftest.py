"""Small volumes and the small segmenter, as the rooms that use this one have them."""

from tests.data.conftest import write_nifti  # noqa: F401
from tests.inference.conftest import network, overlay, segmenter, weights  # noqa: F401
