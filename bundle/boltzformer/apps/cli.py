"""The command `boltzformer`: one subcommand for each thing to do; also `python -m boltzformer`."""

from __future__ import annotations

import typer

from boltzformer.apps import (
    cache,
    calibrate,
    convert,
    cost,
    demo,
    doctor,
    dynunet,
    evaluate_bundle,
    evaluate_predictions,
    experiment,
    export,
    info,
    label_server,
    launch,
    nnunet,
    phantoms,
    prepare,
    proof,
    publish,
    runs,
    segment,
    serve,
    small_proof,
    statistics,
    trace,
)

app = typer.Typer(
    name="boltzformer",
    help="Text-prompted segmentation of small objects in CT and MR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("segment")(segment.main)
app.command("serve")(serve.main)
app.command("info")(info.main)
app.command("doctor")(doctor.main)
app.command("train")(runs.train)
app.command("finetune")(runs.finetune)
app.command("evaluate")(runs.evaluate)
app.command("phantoms")(phantoms.main)
app.command("label-server")(label_server.main)
app.add_typer(launch.app, name="launch")
app.add_typer(prepare.app, name="prepare")
app.command("cache")(cache.main)
app.command("experiment")(experiment.main)
app.add_typer(nnunet.app, name="nnunet")
app.command("dynunet")(dynunet.main)
app.command("small-proof")(small_proof.main)
app.command("cost")(cost.main)
app.command("evaluate-bundle")(evaluate_bundle.main)
app.command("evaluate-predictions")(evaluate_predictions.main)
app.add_typer(proof.app, name="proof")
app.command("statistics")(statistics.main)
app.command("trace")(trace.main)
app.command("export")(export.main)
app.command("calibrate")(calibrate.main)
app.command("convert")(convert.main)
app.command("publish")(publish.main)
app.command("demo")(demo.main)


def main() -> None:
    """Run the command line."""
    app()
