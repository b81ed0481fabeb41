"""How fast the network is, against its plain form and against peers; every figure is a ratio from one process.

python scripts/benchmark.py decoder | training | attention-flops | prompts | volume | networks | pairs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.networks.attention.rules import AttentionRule, Full, Threshold

from scripts.decoder_case import DecoderCase
from scripts.measuring import compare, multiply_adds, report
from scripts.network_costs import networks
from scripts.training_pairs import pairs
from scripts.volume_table import paper_network, volume

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Repeats = Annotated[int, typer.Option(help="alternating pairs of runs; the median counts")]
Output = Annotated[Path | None, typer.Option(help="JSON file for the figures")]
Bfloat16 = Annotated[bool, typer.Option("--bf16", help="both sides under bfloat16 autocast; float32 otherwise")]


PEER_RULES: dict[str, AttentionRule] = {"full": Full(), "threshold": Threshold()}


def autocast(bf16: bool) -> torch.autocast:
    """The precision that both sides of a comparison compute in."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=bf16)


def precision_name(bf16: bool) -> str:
    """For a table's title."""
    return "bfloat16" if bf16 else "float32"


def check_equal(ours: Tensor, peer: Tensor) -> None:
    """Stop unless both are the same function in float32: a fast wrong answer does not count."""
    error = float((ours - peer).abs().max() / peer.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"ours differs from the plain form by {error:.1e} of the largest value")


@app.command()
@torch.no_grad()
def decoder(repeats: Repeats = 7, bf16: Bfloat16 = False, output: Output = None) -> None:
    """Forward pass of the decoder, and of decoder and semantic map, against the plain form."""
    bars = [(512, 10, False, 4, 8), (256, 10, False, 5, 10), (512, 101, False, 2.5, 4), (512, 10, True, 3, 5)]
    rows = []
    for dim, queries, with_projection, must, aim in bars:
        case = DecoderCase(dim, queries, with_projection=with_projection)
        case.decoder.eval().requires_grad_(False)
        check_equal(case.fast(), case.plain())
        name = f"decoder{' + semantic map' if with_projection else ''} d={dim} m={queries}"
        with autocast(bf16):
            rows.append(compare(name, case.fast, case.plain, repeats, must, aim))
    report(f"Decoder, forward, {precision_name(bf16)}", rows, "plain form", output)


@app.command()
def training(repeats: Repeats = 5, bf16: Bfloat16 = False, output: Output = None) -> None:
    """Training step of the decoder (forward and backward) against the plain form."""
    case = DecoderCase(256, 10, batch=4)
    name = "training step d=256 m=10 batch 4"
    with autocast(bf16):
        row = compare(name, case.step(case.fast), case.step(case.plain), repeats, 3, 6)
    report(f"Decoder, training step, {precision_name(bf16)}", [row], "plain form", output)


@app.command()
@torch.no_grad()
def attention_flops(repeats: Repeats = 5, output: Output = None) -> None:
    """Multiply-adds of cross-attention alone, and time, against full attention and threshold masking."""
    rows = []
    for dim in (512, 256):
        ours = DecoderCase(dim, 10)
        for name, rule in PEER_RULES.items():
            peer = DecoderCase(dim, 10, rule=rule)
            ours.decoder.eval().requires_grad_(False)
            peer.decoder.eval().requires_grad_(False)
            row = compare(f"d={dim} m=10 against {name} attention", ours.fast, peer.plain, repeats)
            row.ours_gmac = multiply_adds(ours.cross_attention("auto")) / 1e9
            row.peer_gmac = multiply_adds(peer.cross_attention("plain")) / 1e9
            rows.append(row)
    report("Cross-attention (GMAC columns), decoder (time)", rows, "plain form", output)
    for row in rows:
        print(f"{row.name}: {row.peer_gmac / row.ours_gmac:.1f}x fewer multiply-adds (must 10x, aim 30x)")


ORGANS = ("liver", "right kidney", "spleen", "aorta", "pancreas", "tumor", "gallbladder", "hepatic vessel")
PROMPTS = [f"{organ} in abdominal CT" for organ in ORGANS]


@app.command()
@torch.no_grad()
def prompts(repeats: Repeats = 3, bf16: Bfloat16 = False, output: Output = None) -> None:
    """Eight prompts on one slice, sharing the encoding, against eight separate calls."""
    network = paper_network()
    image = torch.rand(1, 1, 512, 512, device=next(network.parameters()).device)

    def separate() -> Tensor:
        masks = []
        for prompt in PROMPTS:
            network.text_encoder._cache.clear()  # a separate call starts without the other's embeddings
            masks.append(network(image, [prompt]))
        return torch.cat(masks, 1)

    def shared() -> Tensor:
        network.text_encoder._cache.clear()
        return network.segment(image, PROMPTS)

    check_equal(shared(), separate())
    with autocast(bf16):
        row = compare("8 prompts on one slice", shared, separate, repeats, 6, 9)
    report(f"Whole network, {precision_name(bf16)}", [row], "8 calls", output)


app.command()(volume)
app.command()(networks)
app.command()(pairs)


if __name__ == "__main__":
    app()
