"""Matrix products: tiles, waves, split-K, short loops and the roofline."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

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
        compute = steps * ((2.0 * tm * tn + 2.0 * tile_edge * (tm + tn)) / rate)
        busy_share = np.minimum(np.maximum(tiles, 1.0) / busy, 1.0)
        return compute, (streamed + written * partial) / (bandwidth * busy_share)

    tm, tn, split, partial = _candidates(tile_m, tile_n)
    if not any(isinstance(x, np.ndarray) for x in (m, n, k, count)):
        all_compute, all_memory = candidate(tm, tn, split, partial)
        times = overlap(all_compute, all_memory)
        best = times.argmin()
        time, compute, memory = float(times[best]), float(all_compute[best]), float(all_memory[best])
        return Parts(time + launch, compute, memory, 0.0, launch)
    result: tuple[Any, Any, Any] | None = None
    for choice in zip(tm.tolist(), tn.tolist(), split.tolist(), partial.tolist(), strict=True):
        compute, memory = candidate(*choice)
        tried = (overlap(compute, memory), compute, memory)
        if result is None:
            result = tried
        else:
            better = tried[0] < result[0]
            result = tuple(np.where(better, new, old) for new, old in zip(tried, result, strict=True))
    time, compute, memory = cast(tuple[Any, Any, Any], result)
    return Parts(time + launch, compute, memory, 0.0, launch)


@lru_cache(maxsize=16)
def _candidates(tile_m: float, tile_n: float) -> tuple[Array, Array, Array, Array]:
    # the largest tile that accumulators have room for is half of the square of the longest edges (256 x 128 on GPUs)
    shapes = [(1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25)]
    grid = [
        (tile_m * a, tile_n * b, s, PARTIAL_BYTES * s if s > 1 else 0.0) for a, b in shapes for s in SPLITS
    ]
    columns = np.array(grid).T
    return columns[0], columns[1], columns[2], columns[3]
