"""Grouped products of a mixture of experts: tiles of every expert, loops with exposed latency, weights read once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.cost.numeric import Parts
from simulator.graph.routing import load_nodes
from simulator.graph.work import Matmul

SCALE_BLOCK = 128.0
"""Elements of k that share a scale in block-scaled products (DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2)."""
STEP_BYTES = 128.0
"""Bytes of a row that one step of the loop loads, where the kernel's step is not given: a cache line, or a TMA swizzle."""
FILL = 0.2
"""Share of the units that must be busy to saturate the memory."""
MISS_CORNER = 4.0
"""Exponent of the rounded step from rows that lie in the last-level cache to rows that do not."""
_HERMITE = (np.array([-(3.0**0.5), 0.0, 3.0**0.5]), np.array([1.0, 4.0, 1.0]) / 6.0)
# tiles as shares of the longest edges (256 x 256 on GPUs): rows, columns
_SHAPES = (
    (0.0625, 0.125), (0.0625, 0.25), (0.0625, 0.5), (0.125, 0.25), (0.125, 0.5),
    (0.25, 0.25), (0.25, 0.5), (0.25, 1.0), (0.5, 0.5), (0.5, 1.0),
)  # fmt: skip
Array = npt.NDArray[np.float64]


class GroupedKernel(NamedTuple):
    """What a device's grouped kernels reach; see :class:`simulator.specs.calibration.GroupedConstants`."""

    peak_efficiency: float
    memory_efficiency: float
    step_latency: float
    uncached_step: float
    exposed: float
    promotion_rate: float
    dequantised_efficiency: float


def grouped_time(
    work: Matmul,
    kernel: GroupedKernel,
    *,
    peak: float,
    bandwidth: float,
    units: float,
    tile_m: float,
    tile_n: float,
    cache: float = 0.0,
    row_padding: bool = True,
) -> Parts:
    """Return the time of one kernel over ``work.count`` active experts.

    Parameters
    ----------
    work : Matmul
        ``m`` is the mean number of rows of an active expert; ``spread``, ``skew`` and ``reach`` say how they differ.
    kernel : GroupedKernel
        Constants.
    peak, bandwidth, units : float
        Dense peak of the format [FLOP/s], of the main memory [B/s], what tiles spread over.
    tile_m, tile_n : float
        Longest edges of a tile.
    cache : float
        Bytes of the last-level cache.
    row_padding : bool
        Whether a tile of few rows takes as long as a full one (matrix units).

    Returns
    -------
    Parts
        Seconds, launches apart.

    Notes
    -----
    Every expert has ceil(rows/t_m)·ceil(n/t_n) tiles (expected over the rows of the experts), all together
    ceil(tiles/units) waves. A step of a tile's loop multiplies, scales its partial sums where there are scales, and pays a
    latency that its pipeline does not hide, ``uncached_step`` times longer where the rows do not lie in the cache. The
    weights of active experts stream once; of the shorter of loop and stream, ``exposed`` adds to the longer. Of the
    tiles that a kernel may choose from, the fastest.
    """
    m, n, k, count = work.m, work.n, work.k, work.count
    dequantised = work.right_bytes < work.left_bytes
    rate = peak * kernel.peak_efficiency * (kernel.dequantised_efficiency if dequantised else 1.0) / units
    loop = work.loop if work.loop is not None else STEP_BYTES / work.left_bytes
    rows, weights = _rows(work)
    left = m * count * k * work.left_bytes
    missed = 1.0 - 1.0 / (1.0 + (left / work.sharing / max(cache, 1.0)) ** MISS_CORNER)
    latency = kernel.step_latency * (1.0 + (kernel.uncached_step - 1.0) * missed)
    stream = (left + count * (k * n * work.right_bytes + m * n * work.out_bytes)) / (
        bandwidth * kernel.memory_efficiency
    )
    promoted = work.scaled / (kernel.promotion_rate * SCALE_BLOCK)
    steps = np.ceil(k / loop)

    def candidate(tm: Any, tn: Any) -> tuple[Any, Any, Any]:
        by_rows = np.maximum((weights * np.ceil(rows / tm)).sum(axis=0), 1.0)
        tiles = by_rows * np.ceil(n / tn) * count
        area = (tm if row_padding else np.minimum(tm, m)) * tn
        step = area * loop * (2.0 / rate + promoted) + latency
        compute = np.maximum(np.ceil(tiles / units), tiles > 0.0) * steps * step
        # no expert, no tile, no stream
        memory = stream / np.minimum(np.maximum(tiles, 1.0) / (FILL * units), 1.0)
        return np.maximum(compute, memory) + kernel.exposed * np.minimum(compute, memory), compute, memory

    if work.tile is not None:
        time, compute, memory = candidate(*work.tile)
    elif any(isinstance(x, np.ndarray) for x in (m, n, k, count, work.spread, work.reach)):
        best: tuple[Any, Any, Any] = (np.inf, 0.0, 0.0)
        for tm, tn in _tiles(tile_m, tile_n).T.tolist():
            tried = candidate(tm, tn)
            faster = tried[0] < best[0]
            best = (
                np.where(faster, tried[0], best[0]), np.where(faster, tried[1], best[1]),
                np.where(faster, tried[2], best[2]),
            )  # fmt: skip
        time, compute, memory = best
    else:
        times, computes, memories = candidate(*_tiles(tile_m, tile_n))
        at = times.argmin()
        time, compute, memory = times[at], computes[at], memories[at]
    if not isinstance(m * n * k * count * work.spread * work.reach, np.ndarray):
        # one number, also where a single tile left an array of one
        time, compute, memory = (float(np.asarray(x).reshape(())) for x in (time, compute, memory))
    return Parts(time, compute, memory)


def _rows(work: Matmul) -> tuple[Any, Any]:
    """Rows of experts and how likely they are, along a new first axis (and one for tiles where all are scalars)."""
    if work.skew:
        # one reach for each of the rows, so that the nodes stand before both
        nodes = load_nodes(
            work.skew, work.reach + 0.0 * work.m if isinstance(work.m, np.ndarray) else work.reach
        )
        rows: Any = work.m * nodes
        weights: Any = _even(len(nodes))
    elif isinstance(work.spread, np.ndarray) or work.spread > 0.0:
        points, weights = _HERMITE
        shape = (len(points), *(1,) * np.ndim(work.m * work.spread))
        rows = np.maximum(work.m * (1.0 + points.reshape(shape) * work.spread), 1.0)
    else:
        rows, weights = np.asarray(work.m, float)[None], _even(1)
    axes = max(1, rows.ndim - 1)
    return rows.reshape((len(rows), *(rows.shape[1:] or (1,)))), weights.reshape((len(weights), *(1,) * axes))


@lru_cache(maxsize=4)
def _even(count: int) -> Array:
    return np.full(count, 1.0 / count)


@lru_cache(maxsize=8)
def _tiles(tile_m: float, tile_n: float) -> Array:
    """Return rows and columns of the tiles that a tuned kernel chooses from."""
    return np.array([(a * tile_m, b * tile_n) for a, b in _SHAPES]).T
