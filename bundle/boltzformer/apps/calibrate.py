"""`boltzformer calibrate`: what validation says of the existence score, into the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import nibabel as nib
import numpy as np
import torch
import typer
from scipy import special
from scipy.optimize import minimize_scalar

from boltzformer.apps.console import one_line_errors
from boltzformer.apps.evaluate_bundle import file_names
from boltzformer.errors import InputError
from boltzformer.inference.agreement import weights_of
from boltzformer.inference.coarse import after_looks, first_looks, step_of
from boltzformer.inference.existence import IMPROBABLE
from boltzformer.json_file import read_json
from boltzformer.metrics.files import read_csv, write_json
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.summary.existence import calibration_error, describe_existence, volume_dice
from boltzformer.recipe import read_recipe, update_recipe

THRESHOLDS = np.round(np.arange(0.02, 0.96, 0.02), 2)
TEMPERATURES = (0.2, 5.0)
DISTANCES_MM = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0)


def main(
    report: Annotated[Path, typer.Argument(help="Folder of an evaluation of whole volumes made with the next line.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that were evaluated; their recipe gets the numbers.")],
    output: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
    specificity: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the slices without an object that have to stay empty.")
    ] = 0.97,
) -> None:
    """Choose temperature and threshold of the existence score, and the distance of a coarse pass's first looks.

    The evaluation must score slices that were not gated:
    boltzformer evaluate-bundle --set existence_threshold=0 --output-dir REPORT ...
    Where `--set agreement_mm=...` was given too, the recipe gets it. Both are for the objects found there. Cases whose
    voxel size is unknown have no part in either distance.
    """
    with one_line_errors():
        recipe = read_recipe(checkpoint)
        if recipe is None:
            raise InputError(f"{checkpoint}: carries no recipe to write into; train it with this bundle")
        rows = read_rows(report / "slices.csv")
        told = settings_of(report)
        if told.get("network_sha256", recipe["sha256"]) != recipe["sha256"]:
            raise InputError(
                f"{report}: was made with other weights than {checkpoint}; evaluate these (boltzformer evaluate-bundle "
                f"--checkpoint {checkpoint} ...), or name those."
            )
        axis = recipe["input"]["axis"]
        sized = of_known_spacing(rows)
        spacing = spacings(report, sized, axis)
        if sized and told.get("agreement_mm") != 0:
            add_scores_alone(report, sized, axis, spacing, told.get("agreement_mm") or 0.0)
        numbers, scored = calibrate(rows, float(told["existence_temperature"] or 1.0), specificity)
        in_mm = of_known_spacing(scored)
        looks = coarse_distances(in_mm, spacing)
        distance = coarse_mm(looks) if in_mm else 0.0
        # of an object that no mask has hit here nothing is lost at any distance, which says nothing of the next scan
        objects = sorted({row["object"] for row in in_mm or rows if row["overlap_pixels"]})
        agreement_mm = told.get("agreement_mm") if in_mm else None
        numbers |= {"coarse_mm": distance, "lost_pixels_at_mm": looks}
        update_recipe(
            checkpoint,
            thresholds={"existence": numbers["threshold"], "existence_temperature": numbers["temperature"]},
            coarse={"mm": distance, "objects": objects},
            **({} if agreement_mm is None else {"agreement": {"mm": agreement_mm, "objects": objects}}),
        )
        if output is not None:
            write_json(output, numbers)
    for name, value in numbers.items():
        print(f"{name}: {value}")


def settings_of(report: Path) -> dict[str, Any]:
    """What an evaluation's scores and masks were made with, from its account.

    Raises:
        InputError: the account is missing or does not say it, or the masks went through a gate.
    """
    told = read_json(report / "manifest.json", "account of an evaluation").get("settings", {})
    if "existence_threshold" not in told:
        raise InputError(f"{report}: its account does not say how existence was scored; evaluate once more.")
    if told["existence_threshold"]:
        raise InputError(
            f"{report}: its masks went through a gate at {told['existence_threshold']}; evaluate with --set "
            "existence_threshold=0, so that the best threshold can be found."
        )
    return dict(told)


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


def calibrate(
    rows: list[dict[str, Any]], old_temperature: float = 1.0, least_specificity: float = 0.0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Temperature by likelihood, then the threshold by the Dice of whole volumes.

    Args:
        rows: slices of whole volumes, not gated; `alone` in them is a slice's own score where `existence` is a mean
            over the slices around.
        old_temperature: that the scores were made with.
        least_specificity: share of the slices without the object that the gate has to leave empty.

    Returns:
        `temperature`; `threshold`, of the calibrated probability: of those that leave enough slices empty, the one with
        the best mean Dice over whole volumes; and what they give: `auroc`, `ece` before and after, `specificity`
        (slices without the object that stay empty) and `sensitivity` (slices with it that are kept), and volume Dice
        of positive slices alone, of all slices, and gated; and the rows with calibrated scores, and with `shown`,
        whether the gate lets a mask through. A slice whose own score rules the object out is emptied, whatever the
        slices around it say (`inference.existence.IMPROBABLE`).

    Raises:
        InputError: all slices hold the object, or none does; or no threshold leaves enough empty.
    """
    probability = np.array([row["existence"] for row in rows], dtype=np.float64)
    present = np.array([row["label_pixels"] > 0 for row in rows])
    if present.all() or not present.any():
        raise InputError("calibration needs slices with the objects and slices without: evaluate whole volumes")
    own = np.array([row.get("alone", row["existence"]) for row in rows], dtype=np.float64)
    logit, own_logit = (old_temperature * special.logit(p.clip(1e-6, 1 - 1e-6)) for p in (probability, own))
    sign = np.where(present, 1.0, -1.0)

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -sign * logit / temperature).mean())

    temperature = float(minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x)
    calibrated, alone = (special.expit(one / temperature) for one in (logit, own_logit))
    scored = [
        {**row, "existence": float(p), "alone": float(q)} for row, p, q in zip(rows, calibrated, alone, strict=True)
    ]
    # the gate at any t, as one number: a mask stays if its mean reaches t, and its own score min(t, IMPROBABLE)
    gate = np.where(alone < IMPROBABLE, np.minimum(calibrated, alone), calibrated)
    gated = [{**row, "existence": float(p)} for row, p in zip(scored, gate, strict=True)]
    empty = np.array([row["predicted_pixels"] == 0 for row in rows])
    left_empty = {float(t): float((empty | (gate < t))[~present].mean()) for t in THRESHOLDS}
    dice = {t: volume_dice(gated, t) for t, share in left_empty.items() if share >= least_specificity}
    if not dice:
        raise InputError(
            f"no threshold leaves {100 * least_specificity:g} % of the slices without the object empty, at best "
            f"{100 * max(left_empty.values()):.1f} %: ask for less with --specificity, or train the score for longer"
        )
    threshold = max(dice, key=lambda t: dice[t]["gated"])
    scored = [{**row, "shown": bool(p >= threshold)} for row, p in zip(scored, gate, strict=True)]
    described = describe_existence(scored)
    assert described is not None  # every row has a score
    numbers = {
        "slices": len(rows),
        "temperature": round(temperature, 4),
        "threshold": threshold,
        "auroc": described["auroc"],
        "ece_before": calibration_error(probability, present),
        "ece": described["ece"],
        "specificity_ungated": float(empty[~present].mean()),
        "specificity": left_empty[threshold],
        "sensitivity": float((gate >= threshold)[present].mean()),
        **{f"volume_dice_{name}": value for name, value in dice[threshold].items() if name != "n"},
    }
    return numbers, scored


def of_known_spacing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the cases whose slices are measured in mm: no distance in mm was tried on the others.

    A slice that holds its object has a diameter, and one without it an area that was marked wrongly, if only of 0 mm2.
    """
    sizes = [size for size in ("diameter_mm", "false_positive_mm2") if rows and size in rows[0]]
    known = {row["case"] for row in rows if not sizes or any(row[size] not in (None, "") for size in sizes)}
    return [row for row in rows if row["case"] in known]


def spacings(report: Path, rows: list[dict[str, Any]], axis: int) -> dict[str, float]:
    """Distance of neighbouring slices in mm, by case, from the predictions of an evaluation.

    Args:
        report: its folder.
        rows: its slices.
        axis: of the slices, in RAS orientation.

    Raises:
        InputError: a prediction is missing.
    """
    found = {}
    for case in {row["case"] for row in rows}:
        path = report / "predictions" / f"{case}.nii.gz"
        if not path.is_file():
            raise InputError(f"{path}: missing; calibrate with a report of `boltzformer evaluate-bundle`, kept whole")
        affine = nib.as_closest_canonical(cast(Any, nib.load(path))).affine
        found[case] = float(np.linalg.norm(affine[:3, axis]))
    return found


def add_scores_alone(
    report: Path, rows: list[dict[str, Any]], axis: int, spacing: dict[str, float], sigma_mm: float
) -> None:
    """Put `alone` into rows: a slice's score before it was averaged, by which a coarse pass decides.

    Args:
        report: folder of an evaluation.
        rows: its slices.
        axis: of the slices, in RAS orientation.
        spacing: of slices in mm, by case.
        sigma_mm: of the agreement that every prompt was asked for with; 0 where some may not have been.

    Raises:
        InputError: scores were averaged, and what they were before does not stand beside the predictions.
    """
    folder = PredictionFolder(report / "predictions", file_names(row["object"] for row in rows))
    scores: dict[tuple[str, str], list[float] | None] = {}
    for row in rows:
        key = (row["case"], row["object"])
        if key not in scores:
            scores[key] = folder.existence([row["case"]], row["object"], axis, "slice_probability_alone")
        found = scores[key]
        if found is not None:
            row["alone"] = found[int(row["slice"])]
        elif weights_of(sigma_mm, spacing[row["case"]])[1:]:
            raise InputError(
                f"{folder.folder / row['case']}.json: does not say what the scores were before neighbouring slices "
                "were averaged, by which a coarse pass decides; evaluate once more (boltzformer evaluate-bundle)."
            )


def coarse_distances(rows: list[dict[str, Any]], spacing: dict[str, float]) -> dict[float, int]:
    """Pixels of objects that a coarse pass would lose, for each distance of two looks (`inference.coarse`).

    Args:
        rows: slices with calibrated scores, and whether the gate shows their masks. A look decides by the slice's own
            score, `alone`: no mean over its neighbours is known then.
        spacing: of slices in mm, by case.

    Returns:
        distance in mm -> pixels that are in an object and in its mask, in slices that are shown and would be skipped.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["object"]), []).append(row)
    lost = dict.fromkeys(DISTANCES_MM, 0)
    for (case, _), of_object in groups.items():
        ordered = sorted(of_object, key=lambda row: int(row["slice"]))
        score = torch.tensor([row.get("alone", row["existence"]) for row in ordered])[:, None]
        right = np.array([row["overlap_pixels"] if row["shown"] else 0 for row in ordered])
        slices = torch.arange(len(ordered))
        for distance in DISTANCES_MM:
            step = step_of(distance, spacing[case])
            looks = first_looks(slices, [step], len(ordered))
            computed = looks | after_looks(slices, looks, score, [step])[:, 0]
            lost[distance] += int(right[~computed.numpy()].sum())
    return lost


def coarse_mm(lost: dict[float, int]) -> float:
    """Half of the largest distance up to which nothing is lost; 0 where the smallest already loses something."""
    safe = 0.0
    for distance, pixels in sorted(lost.items()):
        if pixels:
            break
        safe = distance
    return safe / 2


def _number(text: str | None) -> float | None:
    return float(text) if text else None
