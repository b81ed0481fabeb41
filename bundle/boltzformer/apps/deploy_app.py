"""A MONAI Deploy application: a DICOM series in, DICOM SEG out, by the SDK's own operators around this bundle.

    python -m boltzformer.apps.deploy_app /data/dicom_ct /data/results "lung nodule in chest CT"

It needs MONAI Deploy's SDK (`pip install '.[deploy]'`). `boltzformer segment -f dicom-seg` writes the same masks
without it, and checks the series more closely; this application is for those who build on Deploy.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.dicom_utils import ModelInfo
from monai.deploy.operators.monai_bundle_inference_operator import (
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
)
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from boltzformer.apps.console import one_line_errors
from boltzformer.apps.release import NAME, bundle_version, weights_checksum
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import Prompt, make_prompts, read_prompt_list
from boltzformer.errors import InputError
from boltzformer.inference.known_terms import nearest_known
from boltzformer.volumes.dicom_source import MANUFACTURER, one_line
from boltzformer.volumes.segment_codes import Code as Term
from boltzformer.volumes.segment_codes import find_code

LABEL_LENGTH = 64
CT_OR_MR = '{"selections": [{"name": "CT or MR", "conditions": {"Modality": "(?i)(CT|MR)"}}]}'


class SeriesWithBodyPart(DICOMSeriesToVolumeOperator):
    """Deploy's operator that also tells the body part, which chooses the intensity window."""

    def create_metadata(self, series: Any) -> dict[str, Any]:
        """What Deploy reads, and `BodyPartExamined`."""
        first = series.get_sop_instances()[0].get_native_sop_instance()
        return {**super().create_metadata(series), "BodyPartExamined": str(first.get("BodyPartExamined", "") or "")}


class PromptedBundleOperator(MonaiBundleInferenceOperator):
    """Deploy's bundle operator that asks for prompts of its own in place of the bundle's list.

    Args:
        args: of the parent.
        prompts: what to segment.
        kwargs: of the parent.
    """

    def __init__(self, *args: Any, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        self.prompts = list(prompts)
        super().__init__(*args, **kwargs)

    def predict(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits of the prompts; prompts are data and pass by the config. Tells which of them were never trained."""
        nearest_known(self.parser.get_parsed_content("recipe"), self._model_network, self.prompts)
        return self._inferer(inputs=data, network=self._model_network, prompts=self.prompts)


class DicomToSeg(Application):
    """Load, select, stack, segment, write.

    Args:
        input_dir: with the DICOM files of one study.
        output_dir: gets the DICOM SEG.
        prompts: what to segment; None takes the bundle's own list, with Deploy's operator as it is.
        bundle: the bundle's folder, with weights in `models/model.pt`.
    """

    def __init__(
        self, input_dir: Path, output_dir: Path, prompts: Sequence[Prompt] | None = None, bundle: Path | None = None
    ) -> None:
        super().__init__([sys.argv[0]])
        self.input_dir, self.output_dir = Path(input_dir).resolve(), Path(output_dir).resolve()
        self.prompts = prompts
        self.bundle = Path(bundle or bundle_folder()).resolve()

    def compose(self) -> None:
        """Connect the operators."""
        loader = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=self.input_dir, name="load")
        select = DICOMSeriesSelectorOperator(self, rules=CT_OR_MR, name="select")
        stack = SeriesWithBodyPart(self, name="stack")
        settings: dict[str, Any] = {
            "app_context": _context_without_models(),
            "input_mapping": [IOMapping("image", Image, IOType.IN_MEMORY)],
            "output_mapping": [IOMapping("pred", Image, IOType.IN_MEMORY)],
            "bundle_config_names": BundleConfigNames(config_names=["inference"]),
            "bundle_path": str(self.bundle),
            "name": "segment",
        }
        if self.prompts is None:
            segment: Any = MonaiBundleInferenceOperator(self, **settings)
            prompts = read_prompt_list(self.bundle / "configs" / "prompts.json")
        else:
            prompts = list(self.prompts)
            segment = PromptedBundleOperator(self, prompts=prompts, **settings)
        write = DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=[_describe(prompt) for prompt in prompts],
            model_info=ModelInfo(MANUFACTURER, NAME, bundle_version(), self._device_uid()),
            output_folder=self.output_dir,
            name="write",
        )
        self.add_flow(loader, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, stack, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(stack, segment, {("image", "image")})
        self.add_flow(select, write, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(segment, write, {("pred", "seg_image")})

    @property
    def weights(self) -> Path:
        """The checkpoint that Deploy's operator loads."""
        return self.bundle / "models" / "model.pt"

    def _device_uid(self) -> str:
        """One for each set of weights."""
        return str(generate_uid(entropy_srcs=[weights_checksum(self.weights)]))


def _context_without_models() -> AppContext:
    """Deploy takes a folder `models` in the working directory for its own; here the bundle says where they are."""
    with tempfile.TemporaryDirectory() as empty:
        context = AppContext({"model": empty})
    context.models = None
    return context


def _describe(prompt: Prompt) -> SegmentDescription:
    code = find_code(prompt.text)
    return SegmentDescription(
        segment_label=one_line(prompt.text, LABEL_LENGTH),
        segmented_property_category=_concept(code.category),
        segmented_property_type=_concept(code.type),
        algorithm_name=NAME,
        algorithm_version=bundle_version(),
        anatomic_regions=[_concept(code.region)] if code.region else None,
    )


def _concept(term: Term) -> Code:
    return Code(term.value, "SCT", term.meaning)


def main(
    input_dir: Annotated[Path, typer.Argument(help="Folder with a DICOM study.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder of the DICOM SEG; made if needed.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="What to segment; the bundle's list by default.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle with weights in models/model.pt.")] = None,
) -> None:
    """Segment one CT or MR series by MONAI Deploy's operators and write a DICOM SEG."""
    with one_line_errors():
        if not input_dir.is_dir():
            raise InputError(f"{input_dir}: no such folder; give one with DICOM files.")
        wanted = make_prompts([(prompt, None) for prompt in prompts]) if prompts else None
        app = DicomToSeg(input_dir, output_dir, wanted, bundle)
        weights_checksum(app.weights)  # says what to do where there are none
        earlier = set(app.output_dir.glob("*.dcm"))
        app.run()
        written = sorted(set(app.output_dir.glob("*.dcm")) - earlier)
        if not written:
            raise InputError(f"{input_dir}: no CT or MR series was segmented; see the messages above.")
        for path in written:
            print(os.fspath(path))


if __name__ == "__main__":
    typer.run(main)
