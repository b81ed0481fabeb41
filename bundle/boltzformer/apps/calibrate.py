"""`boltzformer calibrate`: the existence score's temperature and threshold, from validation into the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.optimize import minimize_scalar

from boltzformer.apps.console import one_line_errors
from boltzformer.errors import InputError
from boltzformer.metrics.files import read_csv, write_json
from boltzformer.metrics.summary.existence import calibration_error, describe_existence, volume_dice
from boltzformer.recipe import read_recipe, update_recipe

THRESHOLDS = np.round(np.arange(0.02, 0.96, 0.02), 2)
TEMPERATURES = (0.2, 5.0)


def main(
    report: Annotated[Path, typer.Argument(help="Folder of an evaluation of whole volumes made with the next line.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that were evaluated; their recipe gets the numbers.")],
    output: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
) -> None:
    """Choose temperature and threshold of the existence score.

    The evaluation must score slices that were not gated and with the score as the network gives it:
    boltzformer evaluate-bundle --set existence_threshold=0 --output-dir REPORT ...
    """
    with one_line_errors():
        recipe = read_recipe(checkpoint)
        if recipe is None:
            raise InputError(f"{checkpoint}: carries no recipe to write into; train it with this bundle")
        rows = read_rows(report / "slices.csv")
        old = recipe.get("thresholds", {}).get("existence_temperature") or 1.0
        numbers = calibrate(rows, old)
        update_recipe(
            checkpoint,
            thresholds={"existence": numbers["threshold"], "existence_temperature": numbers["temperature"]},
        )
        if output is not None:
            write_json(output, numbers)
    for name, value in numbers.items():
        print(f"{name}: {value}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Slice rows of an evaluation, with numbers as numbers.

    Raises:
        InputError: the file is missing, or a row has no existence score or no pixel counts.
    """
    rows: list[dict[str, Any]] = []
    for row in read_csv(path):
        try:
            numbers = {key: int(row[key]) for key in ("label_pixels", "predicted_pixels", "overlap_pixels")}
            rows.append({**row, **numbers, "existence": float(row["existence"]), "dice": _number(row["dice"])})
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: a row has no existence score or pixel counts ({error}); evaluate a network with an existence "
                "head by `boltzformer evaluate-bundle`"
            ) from error
    return rows


def calibrate(rows: list[dict[str, Any]], old_temperature: float = 1.0) -> dict[str, Any]:
    """Temperature by likelihood, then the threshold by the Dice of whole volumes.

    Args:
        rows: slices of whole volumes, not gated.
        old_temperature: that the scores were made with.

    Returns:
        `temperature`; `threshold`, of the calibrated probability, with the best mean Dice over whole volumes; and
        what they give: `auroc`, `ece` before and after, `specificity` (slices without the object that stay
        empty) and `sensitivity` (slices with it that are kept), and volume Dice of positive slices alone, of all
        slices, and gated.

    Raises:
        InputError: all slices hold the object, or none does.
    """
    probability = np.array([row["existence"] for row in rows], dtype=np.float64)
    present = np.array([row["label_pixels"] > 0 for row in rows])
    if present.all() or not present.any():
        raise InputError("calibration needs slices with the objects and slices without: evaluate whole volumes")
    clipped = probability.clip(1e-6, 1 - 1e-6)
    logit = np.log(clipped / (1 - clipped)) * old_temperature
    sign = np.where(present, 1.0, -1.0)

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -sign * logit / temperature).mean())

    temperature = float(minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x)
    scored = [
        {**row, "existence": float(p)} for row, p in zip(rows, 1 / (1 + np.exp(-logit / temperature)), strict=True)
    ]
    gated = {float(t): volume_dice(scored, float(t))["gated"] for t in THRESHOLDS}
    threshold = max(gated, key=lambda t: gated[t])
    calibrated = np.array([row["existence"] for row in scored])
    empty = np.array([row["predicted_pixels"] == 0 for row in rows])
    described = describe_existence(scored)
    assert described is not None  # every row has a score
    return {
        "slices": len(rows),
        "temperature": round(temperature, 4),
        "threshold": threshold,
        "auroc": described["auroc"],
        "ece_before": calibration_error(probability, present),
        "ece": described["ece"],
        "specificity_ungated": float(empty[~present].mean()),
        "specificity": float((empty | (calibrated < threshold))[~present].mean()),
        "sensitivity": float((calibrated >= threshold)[present].mean()),
        **{f"volume_dice_{name}": value for name, value in volume_dice(scored, threshold).items() if name != "n"},
    }


def _number(text: str | None) -> float | None:
    return float(text) if text else None
