"""A segmentation as what every output format writes, with what was measured of it."""

from __future__ import annotations

from boltzformer.apps.findings import Finding, measure
from boltzformer.inference.api import Segmentation
from boltzformer.volumes.segmented import Algorithm, Segment, SegmentedVolume
from boltzformer.volumes.write import Grid


def as_segmented(result: Segmentation, case: str, algorithm: Algorithm) -> tuple[SegmentedVolume, tuple[Finding, ...]]:
    """Measure a segmentation and make it ready for `save_as`.

    Args:
        result: of one volume.
        case: name of the results.
        algorithm: what made the masks.

    Returns:
        the masks with their volume, and a finding for each prompt.
    """
    masks = result.mask_array
    grid = Grid.of_volume(result.source)
    findings = tuple(measure(masks, result.prompts, grid, result.existence, result.nearest_known))
    made = SegmentedVolume(
        case=case,
        volume=result.source,
        masks=masks,
        segments=tuple(Segment(prompt.name, prompt.text) for prompt in result.prompts),
        algorithm=algorithm,
        label_map=result.label_map,
        findings=tuple(finding.as_dict() for finding in findings),
        computation=result.computation,
        window=result.window,
    )
    return made, findings
