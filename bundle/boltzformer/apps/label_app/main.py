"""The app that a MONAI Label server loads. `boltzformer label-server` copies this file into its working folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from boltzformer.apps.label_app.infer_task import PromptTask
from boltzformer.apps.label_app.requests import release_notes
from boltzformer.apps.label_app.train_task import LabelTraining
from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

MODEL = "boltzformer"


class BoltzFormerApp(MONAILabelApp):
    """Free text in, segments named after their prompts out; bad input is answered with 400 and the reason."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.version_here, self.about = release_notes()
        self.weights = Path(conf["weights"])
        device = conf.get("device")
        self.device = torch.device(device) if device else None
        self.folder = Path(app_dir) / "model"
        super().__init__(app_dir, studies, conf, "BoltzFormer", self.about, self.version_here)

    def init_infers(self) -> dict[str, Any]:
        """One model, whatever the prompt."""
        return {MODEL: PromptTask(self.weights, self.folder / "model.pt", self.about, self.device)}

    def init_trainers(self) -> dict[str, Any]:
        """Training from the final labels."""
        return {MODEL: LabelTraining(self.weights, self.folder, self.about)}

    def init_strategies(self) -> dict[str, Any]:
        """Which image comes next."""
        return {"random": Random(), "first": First()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """See `MONAILabelApp.infer`.

        Raises:
            HTTPException: 400 and the reason for an image, model or request that cannot be used.
        """
        image = request.get("image")
        known = (datastore or self.datastore()).get_image_uri(image) if isinstance(image, str) and image else ""
        if not known and not (isinstance(image, str) and os.path.exists(image)):
            raise HTTPException(400, f"image: {json.dumps(image)} is not among the studies.")
        return _answered(super().infer, request, datastore)

    def train(self, request: dict[str, Any]) -> Any:
        """See `MONAILabelApp.train`.

        Raises:
            HTTPException: 400 and the reason for labels or a request that cannot be used.
        """
        return _answered(super().train, request)


def _answered(call: Any, *arguments: Any) -> Any:
    """What the call gives; a user's mistake as HTTP 400."""
    try:
        return call(*arguments)
    except MONAILabelException as error:
        raise HTTPException(400, str(error.msg)) from error
    except (InputError, RuntimeError, OSError) as error:
        mistake = find_input_error(error)
        if mistake is None:
            raise
        logger.info("refused: %s", mistake)
        raise HTTPException(400, str(mistake)) from error
