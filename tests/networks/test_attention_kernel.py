from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from boltzformer.networks import gathered_attention as room
from boltzformer.networks.attention_kernel import CHUNK, attend_sets
from boltzformer.networks.boltzmann_attention import BoltzmannAttention, PatchFeatures
from boltzformer.networks.gathered_attention import gathered_attention
from torch.utils.flop_counter import FlopCounterMode

from tests.support import BUNDLE


def make(slices=2, sets=3, heads=8, dim=32, grid=(9, 14), share=0.3, shared=False):
    torch.manual_seed(0)
    height, width = grid
    kept = torch.rand(1 if shared else slices, sets, height * width) < share
    kept[..., 5] = True
    queries = torch.randn(slices, sets, heads, dim)
    biases = torch.randn(slices, sets, heads, height), torch.randn(slices, sets, heads, width)
    return queries, *biases, torch.randn(slices, height * width, dim), kept


def plain(queries, row_bias, column_bias, rows, kept):
    """Dense, in double precision."""
    scores = torch.einsum("bsgd,bpd->bsgp", queries.double(), rows.double())
    scores += (row_bias[..., None] + column_bias[..., None, :]).flatten(-2)
    scores = scores.masked_fill(~kept[:, :, None], float("-inf"))
    return (scores.softmax(-1) @ rows.double()[:, None]).float()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"heads": 1, "sets": 24},
        {"heads": 2},
        {"heads": 5},
        {"heads": 7, "dim": 33},
        {"sets": 1, "slices": 1},
        {"sets": 101, "dim": 8},
        {"share": 0.0},  # sets of one patch
        {"share": 1.1},  # sets of all patches
        {"shared": True},
        {"grid": (1, CHUNK)},
        {"grid": (1, CHUNK + 1), "share": 1.1},
        {"grid": (3, CHUNK), "share": 1.1},
    ],
    ids=str,
)
def test_equals_the_plain_form(settings):
    inputs = make(**settings)
    context = attend_sets(*inputs)
    assert context.shape == inputs[0].shape
    assert (context - plain(*inputs)).abs().max() < 1e-5


def test_large_scores_neither_overflow_nor_vanish():
    queries, row_bias, column_bias, rows, kept = make(dim=16)
    for shift in (-1e4, 0.0, 1e4):
        inputs = (30 * queries, row_bias + shift, column_bias, rows, kept)
        context = attend_sets(*inputs)
        assert (context - plain(*inputs)).abs().max() < 5e-3  # float32 holds a score of 10^4 to a thousandth


def test_nan_is_not_hidden():
    queries, row_bias, column_bias, rows, kept = make(slices=1)
    rows[0, 5] = float("nan")
    assert attend_sets(queries, row_bias, column_bias, rows, kept).isnan().all()


def test_views_are_read_as_what_they_are():
    queries, row_bias, column_bias, rows, kept = make(slices=1)
    expected = attend_sets(queries, row_bias, column_bias, rows, kept)
    strided = queries.transpose(1, 2).contiguous().transpose(1, 2)
    turned = rows.transpose(1, 2).contiguous().transpose(1, 2)
    many = attend_sets(strided.expand(3, -1, -1, -1), *(x.expand(3, -1, -1, -1) for x in (row_bias, column_bias)),
                       turned.expand(3, -1, -1), kept)  # fmt: skip
    assert all(torch.equal(context, expected[0]) for context in many)


@pytest.mark.parametrize("wrong", [1, 2, 3, 4])
def test_shapes_that_do_not_belong_together_are_refused(wrong):
    inputs = list(make())
    inputs[wrong] = inputs[wrong][..., :-1]
    with pytest.raises(ValueError, match="expected shapes"):
        attend_sets(*inputs)


def test_threads_change_no_bit():
    inputs = make(sets=10)
    before = torch.get_num_threads()
    try:
        contexts = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            contexts.append(attend_sets(*inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*contexts)
    with ThreadPoolExecutor(4) as pool:
        for context in pool.map(lambda _: attend_sets(*inputs), range(16)):
            assert torch.equal(context, contexts[0])


def test_torch_keeps_its_number_of_threads():
    # in a process of its own, where numba's threads are not started yet
    script = """
import torch
from tests.networks.test_attention_kernel import attend_sets, make
torch.set_num_threads(1)
for _ in range(2):
    attend_sets(*make())
    assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BUNDLE), str(BUNDLE.parent)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_chosen_where_no_gradient_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(room, "_kernel", lambda: lambda *inputs: calls.append(inputs) or attend_sets(*inputs))
    queries, *others, kept = make()
    gathered, rows = gathered_attention(queries, *others, kept)
    assert len(calls) == 1
    assert rows is others[-1]
    assert not gathered.requires_grad
    learned, _ = gathered_attention(queries.requires_grad_(), *others, kept)
    assert len(calls) == 1
    assert torch.allclose(learned, gathered, atol=1e-5)
    assert torch.autograd.grad(learned.sum(), queries)[0].abs().sum() > 0
    with torch.no_grad():
        gathered_attention(queries, *others, kept)
    assert len(calls) == 2
    gathered_attention(*(x.detach().double() for x in (queries, *others)), kept)
    assert len(calls) == 2


@pytest.mark.parametrize(("own_sets", "density", "gathers"), [(1, 0.7, True), (1, 0.8, False), (8, 0.2, True),
                                                              (8, 0.3, False)])  # fmt: skip
@torch.no_grad()
def test_dense_above_the_break_even(own_sets, density, gathers, monkeypatch):
    attention, called = BoltzmannAttention(16, 8), []
    monkeypatch.setattr(attention, "_attend_gathered", lambda *a: called.append(a) or attention._attend_folded(*a))
    kept = torch.zeros(1, own_sets, 2, 100, dtype=torch.bool)
    kept[..., : round(100 * density)] = True
    attention(
        torch.randn(1, 2, 16), torch.randn(2, 16), PatchFeatures(torch.randn(1, 16, 10, 10)), torch.zeros(16), kept
    )
    assert bool(called) == gathers


def test_without_numba_the_same_comes_slower_and_that_is_said(monkeypatch, caplog):
    inputs = make()
    expected, _ = gathered_attention(*inputs)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "boltzformer.networks.attention_kernel")
    room._kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                without, _ = gathered_attention(*inputs)
    finally:
        room._kernel.cache_clear()
    assert torch.allclose(without, expected, atol=1e-5)
    assert caplog.text.count("slower than numba's") == 1


def test_products_are_counted():
    inputs = make(slices=2, sets=3, heads=8, dim=32, shared=True)
    with FlopCounterMode(display=False) as counter:
        attend_sets(*inputs)
    assert counter.get_total_flops() == 2 * 2 * 2 * int(inputs[-1].sum()) * 8 * 32
