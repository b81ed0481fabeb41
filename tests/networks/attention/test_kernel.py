from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks.attention import gathered as room
from boltzformer.networks.attention.dense import attend_dense
from boltzformer.networks.attention.gathered import attend_gathered, attend_kernel, gathered_attention, kernel_computes
from boltzformer.networks.attention.kernel import CHUNK, attend_sets
from boltzformer.networks.attention.layer import BoltzmannAttention, form_for
from boltzformer.networks.attention.patches import Patches
from torch.utils.flop_counter import FlopCounterMode

from tests.support import BUNDLE


def make(slices=2, sets=3, heads=8, dim=32, grid=(9, 14), share=0.3, shared=False, prompts=1):
    torch.manual_seed(0)
    height, width = grid
    slices, of_one_slice = slices * prompts, slices
    kept = torch.rand(1 if shared else slices, sets, height * width) < share
    kept[..., 5] = True
    queries = torch.randn(slices, sets, heads, dim)
    biases = torch.randn(slices, sets, heads, height), torch.randn(slices, sets, heads, width)
    return queries, *biases, torch.randn(of_one_slice, height * width, dim), kept


def plain(queries, row_bias, column_bias, rows, kept):
    """Dense, in double precision."""
    rows = rows.repeat_interleave(queries.shape[0] // rows.shape[0], 0)
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
        {"prompts": 3},
        {"prompts": 3, "slices": 1, "shared": True},
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


def test_torch_keeps_its_number_of_threads(tmp_path):
    # in processes of their own: in the first numba has compiled nothing, in the second it has compiled both forms
    script = """
import sys
import numba, torch
from tests.networks.attention.test_kernel import attend_sets, make
for threads in map(int, sys.argv[1:]):  # numba may have two: it would set them for torch
    torch.set_num_threads(threads)
    attend_sets(*make())
    assert torch.get_num_threads() == threads, torch.get_num_threads()
try:
    print(numba.threading_layer())
except ValueError:
    print("no threads of numba's")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BUNDLE), str(BUNDLE.parent)])}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path)
    for order, threads_of_numba in ((("3", "1", "3"), True), (("1", "1"), False)):
        command = [sys.executable, "-c", script, *order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("no threads" not in done.stdout) == threads_of_numba


@pytest.mark.parametrize("settings", [{}, {"prompts": 3}, {"prompts": 2, "slices": 1, "shared": True}], ids=str)
def test_gathering_equals_the_plain_form_and_its_gradients(settings):
    *leaves, kept = make(**settings)
    for leaf in leaves:
        leaf.requires_grad_()
    weight = torch.randn_like(leaves[0])
    ours, expected = gathered_attention(*leaves, kept)[0], plain(*leaves, kept)
    assert torch.allclose(ours, expected, atol=1e-5)
    gradients = [torch.autograd.grad((sums * weight).sum(), leaves) for sums in (ours, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def asked(own_sets=1, density=0.1, side=50, **settings):
    kept = torch.zeros(1, own_sets, 2, side * side, dtype=torch.bool)
    kept[..., : round(side * side * density)] = True
    return torch.randn(1, 2, 16, **settings), Patches.of(torch.randn(1, 16, side, side)), kept


def test_chosen_where_no_gradient_is_asked_for():
    queries, patches, kept = asked()
    assert kernel_computes(queries, patches.rows)
    assert form_for("auto", queries, patches, kept) is attend_kernel
    learning = queries.requires_grad_()
    assert form_for("auto", learning, patches, kept) is attend_gathered
    with torch.no_grad():
        assert form_for("auto", learning, patches, kept) is attend_kernel
    assert form_for("auto", queries, patches, None) is attend_dense


@pytest.mark.parametrize(("own_sets", "density", "gathers"), [(1, 0.7, True), (1, 0.8, False), (8, 0.2, True),
                                                              (8, 0.3, False)])  # fmt: skip
def test_dense_above_the_break_even(own_sets, density, gathers):
    assert form_for("auto", *asked(own_sets, density)) is (attend_kernel if gathers else attend_dense)


@pytest.mark.parametrize(("density", "gathers"), [(0.14, True), (0.16, False)])
def test_dense_above_the_break_even_in_training(density, gathers):
    form = form_for("auto", *asked(1, density, requires_grad=True))
    assert form is (attend_gathered if gathers else attend_dense)


def test_a_small_grid_is_dense_in_training():
    assert form_for("auto", *asked(1, 0.01, side=45, requires_grad=True)) is attend_dense
    assert form_for("auto", *asked(1, 0.01, side=46, requires_grad=True)) is attend_gathered


def test_without_numba_the_same_comes_slower_and_that_is_said(monkeypatch, caplog):
    attention, (queries, patches, kept) = BoltzmannAttention(16, 8).requires_grad_(False), asked()
    inputs = (queries, torch.randn(2, 16), patches, torch.zeros(16), kept)
    expected, _ = attention(*inputs)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "boltzformer.networks.attention.kernel")
    room._kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                without, _ = attention(*inputs)
        attention.form = "kernel"
        with pytest.raises(InputError, match="numba"):
            attention(*inputs)
    finally:
        room._kernel.cache_clear()
    assert torch.allclose(without, expected, atol=1e-5)
    assert caplog.text.count("slower than numba's") == 1


def test_products_are_counted():
    inputs = make(slices=2, sets=3, heads=8, dim=32, shared=True)
    with FlopCounterMode(display=False) as counter:
        attend_sets(*inputs)
    assert counter.get_total_flops() == 2 * 2 * 2 * int(inputs[-1].sum()) * 8 * 32
