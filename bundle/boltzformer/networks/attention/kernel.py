"""Attention over sets of patches in one pass over their rows, for inference on a CPU.

The plain form is that of `gathered.gathered_attention`, which PyTorch's operations can only compute by copying a
set's rows and reading the copy twice. Here a chunk of a set's rows is scored and summed up while it is in the cache,
with the softmax's maximum and denominator carried along (Milakov and Gimelshein, arXiv:1805.02867), so that each row
comes from memory once and nothing is copied. Compiled by numba when first called, seconds once on a machine.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Function = TypeVar("Function", bound=Callable[..., Any])

CHUNK = 64  # patches: with 512 channels 128 KB, which the second-level cache holds
HEADS, ROWS = 4, 2  # scores that are summed side by side, in registers
PADDING = 4  # a chunk's patches are filled up to a multiple of this
LOWEST = np.float32(np.finfo(np.float32).min)


def _compiled(function: Function, parallel: bool = False) -> Function:
    """The function in machine code, kept on disk where there is a folder to keep it in."""
    # sums may be reordered, to use vector registers; NaN and infinity stay what they are
    reorder = {"reassoc", "contract", "nsz"}
    compiler = functools.partial(numba.njit, nogil=True, parallel=parallel, error_model="numpy", fastmath=reorder)
    try:
        return cast(Function, compiler(cache=True)(function))
    except RuntimeError:  # neither this folder nor the user's own can be written
        return cast(Function, compiler()(function))


@_compiled
def _scores(query: np.ndarray, rows: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """query[g] . rows[patch[k]] as (G, n), for four heads and two patches at a time; n is even."""
    heads, dim = query.shape
    score = np.empty((heads, len(patch)), np.float32)
    whole = heads // HEADS * HEADS
    for k in range(0, len(patch), ROWS):
        x, y = rows[patch[k]], rows[patch[k + 1]]
        for g in range(0, whole, HEADS):
            a, b, c, d = query[g], query[g + 1], query[g + 2], query[g + 3]
            ax = bx = cx = dx = ay = by = cy = dy = np.float32(0)
            for i in range(dim):
                ax += a[i] * x[i]
                bx += b[i] * x[i]
                cx += c[i] * x[i]
                dx += d[i] * x[i]
                ay += a[i] * y[i]
                by += b[i] * y[i]
                cy += c[i] * y[i]
                dy += d[i] * y[i]
            score[g, k], score[g, k + 1] = ax, ay
            score[g + 1, k], score[g + 1, k + 1] = bx, by
            score[g + 2, k], score[g + 2, k + 1] = cx, cy
            score[g + 3, k], score[g + 3, k + 1] = dx, dy
        for g in range(whole, heads):
            a = query[g]
            ax = ay = np.float32(0)
            for i in range(dim):
                ax += a[i] * x[i]
                ay += a[i] * y[i]
            score[g, k], score[g, k + 1] = ax, ay
    return score


@_compiled
def _weighted_sum(weight: np.ndarray, rows: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """sum_k weight[g, k] rows[patch[k]] as (G, d), for two heads and four patches at a time; n is a multiple of 4."""
    heads, dim = len(weight), rows.shape[1]
    context = np.zeros((heads, dim), np.float32)
    for k in range(0, len(patch), PADDING):
        x, y, z, w = rows[patch[k]], rows[patch[k + 1]], rows[patch[k + 2]], rows[patch[k + 3]]
        for g in range(0, heads - 1, 2):
            a, b = context[g], context[g + 1]
            ax, ay, az, aw = weight[g, k], weight[g, k + 1], weight[g, k + 2], weight[g, k + 3]
            bx, by, bz, bw = weight[g + 1, k], weight[g + 1, k + 1], weight[g + 1, k + 2], weight[g + 1, k + 3]
            for i in range(dim):
                a[i] += ax * x[i] + ay * y[i] + az * z[i] + aw * w[i]
                b[i] += bx * x[i] + by * y[i] + bz * z[i] + bw * w[i]
        if heads % 2:
            a = context[heads - 1]
            ax, ay = weight[heads - 1, k], weight[heads - 1, k + 1]
            az, aw = weight[heads - 1, k + 2], weight[heads - 1, k + 3]
            for i in range(dim):
                a[i] += ax * x[i] + ay * y[i] + az * z[i] + aw * w[i]
    return context


@_compiled
def _softmax_of_chunk(
    query: np.ndarray, row_bias: np.ndarray, column_bias: np.ndarray, rows: np.ndarray, patch: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A softmax over some patches of a set, not divided by its sum.

    For each head top = max score (G,), total = sum exp(score - top) (G,), context = sum exp(score - top) row (G, d).
    """
    count, width = len(patch), column_bias.shape[1]
    filled = np.full(-(-count // PADDING) * PADDING, patch[0])
    filled[:count] = patch
    weight = _scores(query, rows, filled)
    top = np.full(len(query), LOWEST)
    total = np.zeros(len(query), np.float32)
    for g in range(len(query)):
        for k in range(count):
            weight[g, k] += row_bias[g, patch[k] // width] + column_bias[g, patch[k] % width]
            top[g] = max(top[g], weight[g, k])
        for k in range(count):
            weight[g, k] = np.exp(weight[g, k] - top[g])
            total[g] += weight[g, k]
        weight[g, count:] = 0
    return top, total, _weighted_sum(weight, rows, filled)


@_compiled
def _attend_set(
    query: np.ndarray, row_bias: np.ndarray, column_bias: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """One set: query (G, d), biases (G, h) and (G, w), rows (h * w, d), kept (h * w,) -> context (G, d)."""
    heads, dim = query.shape
    patches = np.flatnonzero(kept)
    top = np.full(heads, LOWEST)
    total = np.zeros(heads, np.float32)
    context = np.zeros((heads, dim), np.float32)
    for start in range(0, len(patches), CHUNK):
        patch = patches[start : start + CHUNK]
        own_top, own_total, own_context = _softmax_of_chunk(query, row_bias, column_bias, rows, patch)
        for g in range(heads):
            highest = max(top[g], own_top[g])
            before, now = np.exp(top[g] - highest), np.exp(own_top[g] - highest)
            top[g] = highest
            total[g] = total[g] * before + own_total[g] * now
            for i in range(dim):
                context[g, i] = context[g, i] * before + own_context[g, i] * now
    for g in range(heads):
        context[g] /= total[g]
    return context


@_compiled
def _attend_nth_set(
    i: int, queries: np.ndarray, row_bias: np.ndarray, column_bias: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """One of B prompts' sets on S slices, counted through; shapes as in `gathered.gathered_attention`."""
    prompts, sets = queries.shape[:2]
    b, s = i // sets, i % sets
    own, mask = rows[b // (prompts // rows.shape[0])], kept[min(b, kept.shape[0] - 1), s]
    return _attend_set(queries[b, s], row_bias[b, s], column_bias[b, s], own, mask)


# Two functions and not one compiled twice: numba's cache on disk tells functions apart by name and place, not by how
# they were compiled, and would give one's code to the other.


def _attend_in_parallel(
    queries: np.ndarray, row_bias: np.ndarray, column_bias: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    sets = queries.shape[1]
    context = np.empty(queries.shape, np.float32)
    for i in numba.prange(queries.shape[0] * sets):
        context[i // sets, i % sets] = _attend_nth_set(i, queries, row_bias, column_bias, rows, kept)
    return context


def _attend_in_this_thread(
    queries: np.ndarray, row_bias: np.ndarray, column_bias: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    sets = queries.shape[1]
    context = np.empty(queries.shape, np.float32)
    for i in range(queries.shape[0] * sets):
        context[i // sets, i % sets] = _attend_nth_set(i, queries, row_bias, column_bias, rows, kept)
    return context


_in_parallel = _compiled(_attend_in_parallel, parallel=True)
_in_this_thread = _compiled(_attend_in_this_thread)  # several of PyTorch's threads may be here at once
_one_at_a_time = threading.Lock()  # numba's simplest pool of threads, on macOS, may not be entered twice


@contextmanager
def _as_many_threads_as_torch() -> Iterator[int]:
    """Torch's number of threads here, which stays what it is.

    Numba's threads start when it first compiles or runs; by default they are OpenMP's, whose number they set for torch.
    """
    threads = torch.get_num_threads()
    try:
        if threads > 1:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield threads
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@torch.library.custom_op("boltzformer::attend_sets", mutates_args=(), device_types="cpu")
def attend_sets(queries: Tensor, row_bias: Tensor, column_bias: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Sums of `gathered.gathered_attention`, without gradients; its arguments and shapes, float32 on the CPU.

    Raises:
        ValueError: the shapes do not belong together; the kernel itself would read past the end.
    """
    prompts, sets, heads, dim = queries.shape
    height, width = row_bias.shape[-1], column_bias.shape[-1]
    slices = rows.shape[0] if rows.shape[0] and prompts % rows.shape[0] == 0 else prompts
    expected = [(prompts, sets, heads, height), (prompts, sets, heads, width), (slices, height * width, dim)]
    expected.append((prompts if kept.shape[0] == prompts else 1, sets, height * width))
    found = [tuple(part.shape) for part in (row_bias, column_bias, rows, kept)]
    if found != expected:
        raise ValueError(f"attend_sets: expected shapes {expected} for biases, rows and sets, found {found}")
    arrays = [part.contiguous().numpy() for part in (queries, row_bias, column_bias, rows, kept)]
    with _as_many_threads_as_torch() as threads:
        if threads == 1:
            return torch.from_numpy(_in_this_thread(*arrays))
        with _one_at_a_time:
            return torch.from_numpy(_in_parallel(*arrays))


@attend_sets.register_fake
def _(queries: Tensor, row_bias: Tensor, column_bias: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    return torch.empty_like(queries, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.boltzformer.attend_sets, get_raw=True)
def _flops(
    queries: Tensor, row_bias: Tensor, column_bias: Tensor, rows: Tensor, kept: Tensor, **_: Any
) -> int:  # two products for each head and each patch of a set
    prompts, _sets, heads, dim = queries.shape
    pairs = int(kept.count_nonzero()) * (prompts // kept.shape[0])
    return 4 * pairs * heads * dim
