"""Training as MONAI Label calls it: the labels that annotators saved improve the network that they work with."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.train import TrainTask

from boltzformer.apps.label_app.requests import read_train_request, training_items
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.recipe import read_recipe

logger = logging.getLogger(__name__)


class LabelTraining(TrainTask):
    """Fine-tunes the served weights on the final labels; a segment's name is its prompt.

    Args:
        shipped: the weights to begin with; never changed.
        folder: of the app's own weights (`model.pt`), runs and cache.
        description: shown by viewers.
    """

    def __init__(self, shipped: Path, folder: Path, description: str) -> None:
        super().__init__(description)
        self._shipped, self._folder = shipped, folder

    @property
    def trained(self) -> Path:
        """Where the new weights go."""
        return self._folder / "model.pt"

    def config(self) -> dict[str, Any]:
        """The options of a training."""
        return {"max_epochs": 50, "val_split": 0.2, "learning_rate": "", "modality": "", "body_part": ""}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on every image with a final label.

        Args:
            request: see `read_train_request`.
            datastore: of the server.

        Returns:
            the weights' file and the result of the best validation.

        Raises:
            InputError: a request, or labels, that cannot be used.
        """
        wanted = read_train_request(request)
        start = self.trained if self.trained.is_file() else self._shipped
        known = (read_recipe(start) or {}).get("trained_on", {}).get("modalities", [])
        modality = wanted.modality or (known[0] if len(known) == 1 else "")
        items = training_items(_labelled(datastore), modality, wanted.body_part)
        datalist = self._folder / "datalist.json"
        datalist.parent.mkdir(parents=True, exist_ok=True)
        datalist.write_text(json.dumps({"name": "MONAI Label", "training": items}, indent=4), encoding="utf-8")
        start = Path(shutil.copy(start, self._folder / "start.pt"))  # the run replaces what it begins with
        logger.info("training on %d labelled images from %s", len(items), start)
        configs = bundle_folder() / "configs"
        settings: dict[str, Any] = {
            "bundle_root": str(bundle_folder()),
            "dataset_dir": str(datalist),
            "initial_weights": start,
            "checkpoint": str(self.trained),
            "runs_dir": str(self._folder / "runs"),
            "cache_dir": str(self._folder / "cache"),
            "max_epochs": wanted.max_epochs,
            "validation_share": wanted.val_split,
            **({} if wanted.learning_rate is None else {"learning_rate": wanted.learning_rate}),
        }
        workflow = ConfigWorkflow(
            [str(configs / "train.json"), str(configs / "fine_tune.json")],
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **settings,
        )
        workflow.initialize()
        workflow.run()
        if not self.trained.is_file():
            raise InputError("training ended without weights: no validation was the best; see the server's log.")
        return {"weights": str(self.trained), "result": (read_recipe(self.trained) or {}).get("result", {})}


def _labelled(datastore: Datastore) -> list[dict[str, Any]]:
    tag = DefaultLabelTag.FINAL
    pairs = []
    for image in sorted(datastore.get_labeled_images(tag)):
        label = datastore.get_label_by_image_id(image, tag)
        info = datastore.get_label_info(label, tag)
        segments = info.get("label_info") or (info.get("params") or {}).get("label_info")
        paths = {"image": datastore.get_image_uri(image), "label": datastore.get_label_uri(label, tag)}
        pairs.append({**paths, "segments": segments})
    return pairs
