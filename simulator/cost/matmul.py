"""Matrix products: tiles, waves, split-K, short loops and the roofline."""

from __future__ import annotations

from collections.abc import Iterable
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
    prologue_k: float,
    fill: float,
    wave_tail: float = 1.0,
    split_latency: float = 0.0,
    unit_bandwidth: float = np.inf,
    step_latency: float = 0.0,
    cache: float = 0.0,
    cache_bandwidth: float = 1.0,
    reuse_distance: Numeric = np.inf,
    launch: float = 0.0,
    left_bytes: float = 2.0,
    right_bytes: float = 2.0,
    out_bytes: float = 2.0,
    row_padding: bool = True,
    splits: bool = True,
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
    peak_efficiency, memory_efficiency, tile_m, tile_n, tile_edge, prologue_k, fill, wave_tail, split_latency, unit_bandwidth, \
step_latency, cache_bandwidth : float
        Constants; see :class:`simulator.specs.calibration.MatmulConstants`.
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

    Returns
    -------
    Parts
        Seconds; compute and memory are those of the tile that is chosen.

    Notes
    -----
    A tile of (t_m, t_n) runs on one unit at peak·efficiency / units, slowed by edge·(1/t_m + 1/t_n) more than the
    largest tile since its operands' traffic grows as its edges shrink, and no faster than the unit loads its operands.
    ceil(m/t_m)·ceil(n/t_n)·count·s tiles take ceil(tiles/units) waves (wave quantisation: NVIDIA, *Matrix
    Multiplication Background User's Guide*, sections 3 and 4), each of k/s + prologue steps; of a partly filled last
    wave ``wave_tail`` of the idle part is lost. Split-K by s makes tiles where there are few, for the traffic of the
    partial sums and the kernel that adds them. Fewer tiles than ``fill``·units cannot saturate the memory. Compute and
    memory overlap imperfectly (:func:`simulator.cost.numeric.overlap`); libraries choose the best kernel, hence the
    minimum.
    """
    rate = peak * peak_efficiency / units
    bandwidth = bandwidth * memory_efficiency
    kept = cached_share(reuse_distance, cache)
    streamed = count * (m * k * left_bytes + k * n * right_bytes + m * n * out_bytes)
    streaming = streamed * ((1.0 - kept) + kept / cache_bandwidth) / bandwidth
    # partial sums are read right after they were written
    partial_sums = count * m * n * PARTIAL_BYTES / (bandwidth * cache_bandwidth)
    busy = units * fill
    # the largest tile has edges tile_m and tile_n / 2
    base = 1.0 - tile_edge * (1.0 / tile_m + 2.0 / tile_n)
    shortest = k * (step_latency / SCALE_BLOCK)

    def candidate(tm: Any, tn: Any, split: Any, again: Any) -> tuple[Any, Any]:
        tiles = np.ceil(m / tm) * np.ceil(n / tn) * (count * split)
        full = tiles / units
        waves = np.maximum(full + wave_tail * (np.ceil(full) - full), 1.0) * (tiles > 0.0)
        rows = tm if row_padding else np.minimum(tm, m)
        product = (2.0 * base * rows * tn + 2.0 * tile_edge * (rows + tn)) / rate
        loading = (left_bytes * np.minimum(tm, m) + right_bytes * np.minimum(tn, n)) / unit_bandwidth
        compute = waves * np.maximum((k / split + prologue_k) * np.maximum(product, loading), shortest)
        busy_share = np.minimum(np.maximum(tiles, 1.0) / busy, 1.0)
        memory = (streaming + partial_sums * (split * again)) / busy_share
        useless = again * (full > SPLIT_WAVES)
        return np.where(useless > 0.0, np.inf, compute), memory

    choices = _candidates(tile_m, tile_n, splits)
    if any(isinstance(x, np.ndarray) for x in (m, n, k, count, reuse_distance)):
        time, compute, memory = _fastest((candidate(*choice), split_latency * choice[3]) for choice in choices.T.tolist())
    else:
        computes, memories = candidate(*choices)
        times = overlap(computes, memories) + split_latency * choices[3]
        best = times.argmin()
        time, compute, memory = float(times[best]), float(computes[best]), float(memories[best])
    return Parts(time + launch, compute, memory, 0.0, launch)


def _fastest(candidates: Iterable[tuple[tuple[Any, Any], float]]) -> tuple[Any, Any, Any]:
    # one candidate after the other, so that a large sweep needs the memory of two
    best: tuple[Any, ...] = (np.inf, 0.0, 0.0)
    for (compute, memory), latency in candidates:
        tried = (overlap(compute, memory) + latency, compute, memory)
        faster = tried[0] < best[0]
        best = tuple(np.where(faster, new, old) for new, old in zip(tried, best, strict=True))
    return best[0], best[1], best[2]


@lru_cache(maxsize=16)
def _candidates(tile_m: float, tile_n: float, splits: bool) -> Array:
    """Return the rows tile height, tile width, splits, and 1 where k is split."""
    # accumulators have room for half of the square of the longest edges (256 x 128 on GPUs)
    shapes = [(1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25)]
    grid = [
        (tile_m * a, tile_n * b, split, float(split > 1))
        for a, b in shapes
        for split in (SPLITS if splits else SPLITS[:1])
    ]
    return np.array(grid).T
