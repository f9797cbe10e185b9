"""Matrix products: tiles, waves, split-K, short loops and the roofline."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost.numeric import Parts, overlap
from simulator.graph.work import Numeric

SPLITS = (1.0, 2.0, 4.0, 8.0)
PARTIAL_BYTES = 8.0
"""Traffic of one element of a partial sum of split-K: written and read once in fp32."""
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
    launch: float = 0.0,
    left_bytes: float = 2.0,
    right_bytes: float = 2.0,
    out_bytes: float = 2.0,
    row_padding: bool = True,
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
    peak_efficiency, memory_efficiency, tile_m, tile_n, tile_edge, prologue_k, fill : float
        Constants; see :class:`simulator.specs.calibration.MatmulConstants`.
    launch : float
        Added to every product [s].
    left_bytes, right_bytes, out_bytes : float
        Bytes an element of each operand.
    row_padding : bool
        Whether a tile of fewer than t_m rows takes as long as a full one (matrix units), or only as long as its rows
        (vector units: a matrix-vector product is a stream of the matrix).

    Returns
    -------
    Parts
        Seconds; compute and memory are those of the tile that is chosen.

    Notes
    -----
    A tile of (t_m, t_n) runs on one unit at peak·efficiency / units, slowed by 1 + edge·(1/t_m + 1/t_n) since
    its operands' traffic grows as its edges shrink. ceil(m/t_m)·ceil(n/t_n)·count·s tiles take
    ceil(tiles/units) waves (wave quantisation: NVIDIA, *Matrix Multiplication Background User's Guide*,
    sections 3 and 4), each of k/s + prologue steps. Split-K by s in 1, 2, 4, 8 makes tiles where there are
    few, for the traffic of the partial sums. Fewer tiles than ``fill``·units cannot saturate the memory.
    Compute and memory overlap imperfectly (:func:`simulator.cost.numeric.overlap`); libraries choose the best
    kernel, hence the minimum.
    """
    rate = peak * peak_efficiency / units
    streamed = count * (m * k * left_bytes + k * n * right_bytes + m * n * out_bytes)
    written = count * m * n
    bandwidth = bandwidth * memory_efficiency
    busy = units * fill

    def candidate(tm: Any, tn: Any, split: Any, partial: Any) -> tuple[Any, Any]:
        tiles = np.ceil(m / tm) * np.ceil(n / tn) * (count * split)
        steps = np.ceil(tiles / units) * (k / split + prologue_k)
        rows = tm if row_padding else np.minimum(tm, m)
        compute = steps * ((2.0 * rows * tn + 2.0 * tile_edge * (rows + tn)) / rate)
        busy_share = np.minimum(np.maximum(tiles, 1.0) / busy, 1.0)
        return compute, (streamed + written * partial) / (bandwidth * busy_share)

    choices = _candidates(tile_m, tile_n)
    if any(isinstance(x, np.ndarray) for x in (m, n, k, count)):
        time, compute, memory = _fastest(candidate(*choice) for choice in choices.T.tolist())
    else:
        computes, memories = candidate(*choices)
        times = overlap(computes, memories)
        best = times.argmin()
        time, compute, memory = float(times[best]), float(computes[best]), float(memories[best])
    return Parts(time + launch, compute, memory, 0.0, launch)


def _fastest(candidates: Iterable[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    # one candidate after the other, so that a large sweep needs the memory of two
    best: tuple[Any, ...] = (np.inf, 0.0, 0.0)
    for compute, memory in candidates:
        tried = (overlap(compute, memory), compute, memory)
        faster = tried[0] < best[0]
        best = tuple(np.where(faster, new, old) for new, old in zip(tried, best, strict=True))
    return best[0], best[1], best[2]


@lru_cache(maxsize=16)
def _candidates(tile_m: float, tile_n: float) -> Array:
    """Return the rows tile height, tile width, splits and bytes of partial sums an element of the output."""
    # accumulators have room for half of the square of the longest edges (256 x 128 on GPUs)
    shapes = [(1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25)]
    grid = [
        (tile_m * a, tile_n * b, split, PARTIAL_BYTES * split if split > 1 else 0.0)
        for a, b in shapes
        for split in SPLITS
    ]
    return np.array(grid).T
