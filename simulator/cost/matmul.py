"""Matrix products: tiles, waves, split-K, short loops and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost.numeric import Parts, cached_share, overlap
from simulator.graph.work import Numeric

SPLITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
SPLIT_WAVES = 2.0
"""Waves of tiles up to which k is split: beyond them all units are busy anyway."""
PARTIAL_BYTES = 8.0
"""Traffic of one element of a partial sum of split-K: written and read once in fp32."""
SCALE_BLOCK = 128.0
"""Elements of k that share a scale in block-scaled products (DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2)."""
HALF_BYTES = 2.0
"""Of an output's element that ``epilogue_rate`` is meant for."""
Array = npt.NDArray[np.float64]


def matmul_time(
    m: Numeric,
    n: Numeric,
    k: Numeric,
    count: Numeric = 1,
    *,
    peak: float,
    bandwidth: float,
    units: float,
    peak_efficiency: float,
    memory_efficiency: float,
    tile_m: float,
    tile_n: float,
    tile_edge: float,
    epilogue_rate: float,
    fill: float,
    wave_tail: float = 1.0,
    split_latency: float = 0.0,
    unit_bandwidth: float = np.inf,
    step_latency: float = 0.0,
    promotion_rate: float = np.inf,
    promotions: float = 1.0,
    cache: float = 0.0,
    cache_bandwidth: float = 1.0,
    reuse_distance: Numeric = np.inf,
    launch: float = 0.0,
    left_bytes: float = 2.0,
    right_bytes: float = 2.0,
    out_bytes: float = 2.0,
    row_padding: bool = True,
    splits: bool = True,
    tile: tuple[Numeric, Numeric] | None = None,
) -> Parts:
    """Return the time of ``count`` products (m, k) x (k, n) in one kernel, with the best tile and split.

    Parameters
    ----------
    m, n, k, count : number or array
        Dimensions [elements]; they broadcast.
    peak : float
        Dense peak of the format [FLOP/s].
    bandwidth : float
        Of the main memory [B/s].
    units : float
        What output tiles spread over (SMs, cores).
    peak_efficiency, memory_efficiency, cache_bandwidth, tile_m, tile_n, tile_edge, epilogue_rate, fill, wave_tail, \
split_latency, unit_bandwidth, step_latency, promotion_rate : float
        Constants; see :class:`simulator.specs.calibration.MatmulConstants`.
    promotions : float
        Scalings of a partial sum for each block of k, where ``step_latency`` is above 0.
    cache : float
        Usable bytes of the last-level cache.
    reuse_distance : number or array
        Bytes that pass between two uses of the operands; they are in the cache if those fit. Infinite: they are not.
    launch : float
        Added to every product [s].
    left_bytes, right_bytes, out_bytes : float
        Bytes an element of each operand.
    row_padding : bool
        Whether a tile of fewer than t_m rows takes as long as a full one (matrix units), or only as long as its rows
        (vector units: a matrix-vector product is a stream of the matrix).
    splits : bool
        Whether k may be split between units.
    tile : pair of numbers or arrays, optional
        Rows and columns of the tile, where the library takes it by a rule and splits nothing; the best if absent.

    Returns
    -------
    Parts
        Seconds; compute and memory are those of the tile that is chosen.

    Notes
    -----
    A tile of (t_m, t_n) runs on one unit at peak·efficiency / units, slowed by edge·(1/t_m + 1/t_n) more than the
    largest tile since its operands' traffic grows as its edges shrink, and no faster than the unit loads its operands.
    ceil(m/t_m)·ceil(n/t_n)·count·s tiles take ceil(tiles/units) waves (wave quantisation: NVIDIA, *Matrix
    Multiplication Background User's Guide*, sections 3 and 4), each of k/s steps and an epilogue that its elements leave
    through; of a partly filled last wave ``wave_tail`` of the idle part is lost. Split-K by s makes tiles where there are
    few, for the traffic of the partial sums and the kernel that adds them. Fewer tiles than ``fill``·units cannot saturate
    the memory. Compute and memory overlap imperfectly (:func:`simulator.cost.numeric.overlap`); libraries choose the best
    kernel, hence the minimum.
    """
    if not isinstance(m * n * count, np.ndarray) and m * n * count == 0:
        return Parts(launch, 0.0, 0.0, 0.0, launch)
    rate = peak * peak_efficiency / units
    bandwidth = bandwidth * memory_efficiency
    kept = cached_share(reuse_distance, cache)
    streamed = count * (m * k * left_bytes + k * n * right_bytes + m * n * out_bytes)
    streaming = streamed * ((1.0 - kept) + kept / cache_bandwidth) / bandwidth
    # partial sums are read right after they were written
    partial = count * m * n * PARTIAL_BYTES / (bandwidth * cache_bandwidth)
    busy = units * fill
    # the largest tile has edges tile_m and tile_n / 2
    base = 1.0 - tile_edge * (1.0 / tile_m + 2.0 / tile_n)
    rows_loaded, columns_loaded = m * left_bytes / unit_bandwidth, n * right_bytes / unit_bandwidth
    row_load, column_load = left_bytes / unit_bandwidth, right_bytes / unit_bandwidth

    per_area, per_edge = 2.0 * base / rate, 2.0 * tile_edge / rate
    per_output, per_promotion = 1.0 / epilogue_rate, promotions / (SCALE_BLOCK * promotion_rate)
    if step_latency:
        # partial and final sums fill the registers: no other tile's loop hides the way of wider outputs
        per_output *= max(1.0, out_bytes / HALF_BYTES)

    def candidate(
        tm: Any, tn: Any, split: Any, partials: Any, limit: Any, area: Any, edges: Any
    ) -> tuple[Any, Any, Any]:
        tiles = np.ceil(m / tm) * np.ceil(n / tn) * (count * split)
        waves = tiles / units
        useless = waves > limit
        # what the peak loses to power, it loses with all units at work
        droop = peak_efficiency + (1.0 - peak_efficiency) * np.minimum(waves, 1.0)
        waves = np.maximum((1.0 - wave_tail) * waves + wave_tail * np.ceil(waves), 1.0)
        if not row_padding:
            rows = np.minimum(tm, m)
            area, edges = rows * tn, rows + tn
        product = per_area * area + per_edge * edges
        if step_latency:
            product = product + area * per_promotion
        loading = np.minimum(tm * row_load, rows_loaded) + np.minimum(tn * column_load, columns_loaded)
        compute = waves * (k / split * np.maximum(product * droop, loading) + area * per_output)
        if step_latency:
            compute = np.maximum(compute, waves * (k * step_latency / SCALE_BLOCK))
        return compute, (streaming + partial * partials) / np.minimum(tiles / busy, 1.0), useless

    if tile is not None:
        # a kernel of one tile hands whole waves to the units
        wave_tail = 1.0
        chosen: Any = [(*tile, 1.0, 0.0, np.inf, tile[0] * tile[1], tile[0] + tile[1])]
    else:
        chosen = choices = _candidates(tile_m, tile_n, splits, step_latency > 0.0)
    if tile is not None or any(isinstance(x, np.ndarray) for x in (m, n, k, count, reuse_distance)):
        chosen = chosen if tile is not None else choices.T.tolist()
        time, compute, memory = _fastest(chosen, candidate, split_latency)
    else:
        computes, memories, useless = candidate(*choices)
        times = overlap(computes, memories) + split_latency * (choices[3] > 0.0)
        times[useless] = np.inf
        best = times.argmin()
        time, compute, memory = float(times[best]), float(computes[best]), float(memories[best])
    return Parts(time + launch, compute, memory, 0.0, launch)


def _fastest(
    choices: Iterable[Any], candidate: Callable[..., tuple[Any, Any, Any]], split_latency: float
) -> tuple[Any, Any, Any]:
    # one candidate after the other, so that a large sweep needs the memory of two
    best: tuple[Any, ...] = (np.inf, 0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        for choice in choices:
            compute, memory, useless = candidate(*choice)
            if np.all(useless):
                continue
            # nothing to multiply has no tiles, and takes no time
            memory = np.where(memory >= 0.0, memory, 0.0)
            tried = (overlap(compute, memory) + (split_latency if choice[3] else 0.0), compute, memory)
            faster = (tried[0] < best[0]) & ~useless
            best = tuple(np.where(faster, new, old) for new, old in zip(tried, best, strict=True))
    return best[0], best[1], best[2]


@lru_cache(maxsize=16)
def _candidates(tile_m: float, tile_n: float, splits: bool, scaled: bool) -> Array:
    """Return the rows height, width, splits of k, partial sums an element of the output, waves at most, area, edges."""
    # accumulators have room for half of the square of the longest edges (256 x 128 on GPUs)
    shapes = [(1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25)]
    if scaled:
        # block-scaled kernels do not cut k, but take narrow tiles to occupy the units
        shapes += [(0.25, 0.125), (0.25, 0.0625)]
    grid = [
        (
            tile_m * a, tile_n * b, split, split if split > 1 else 0.0, SPLIT_WAVES if split > 1 else np.inf,
            tile_m * a * tile_n * b, tile_m * a + tile_n * b,
        )
        for a, b in shapes
        for split in (SPLITS if splits else SPLITS[:1])
    ]  # fmt: skip
    return np.array(grid).T
