"""Streams of bytes: element-wise kernels, gathers, copies between memories, and the optimizer's traffic."""

from __future__ import annotations

import numpy as np

from simulator.cost.numeric import Parts, cached_share, ceil, larger
from simulator.graph.work import Numeric

TRANSACTION_BYTES = 64.0
"""Shortest access of DRAM and HBM that is not wasted: a burst of 64 bytes (JEDEC DDR4, DDR5, HBM2)."""


def stream_time(
    size: Numeric,
    flops: Numeric = 0.0,
    kernels: Numeric = 1,
    *,
    peak: float,
    bandwidth: float,
    memory_efficiency: float,
    base_latency: float,
    cache: float = 0.0,
    cache_bandwidth: float = 1.0,
    reuse_distance: Numeric | None = None,
    scalar: Numeric = 0.0,
    scalar_rate: Numeric = np.inf,
) -> Parts:
    """Return the time of ``kernels`` kernels that read and write ``size`` bytes in all.

    Parameters
    ----------
    size, flops : number or array
        Bytes read and written; vector FLOPs.
    kernels : number or array
        Kernels that share the bytes equally.
    peak, bandwidth : float
        Vector peak [FLOP/s] and memory bandwidth [B/s].
    memory_efficiency, base_latency, cache_bandwidth : float
        Constants; see :class:`simulator.specs.calibration.StreamConstants`.
    cache : float
        Usable bytes of the last-level cache.
    reuse_distance : number or array, optional
        Bytes that pass the cache between the write of the operands and the kernel; those of one kernel if absent.
    scalar : number or array
        Loads and stores of one element a thread.
    scalar_rate : number or array
        Those a second of the units at work.

    Returns
    -------
    Parts
        Seconds: the latency of the kernels, then the longest of arithmetic, scalar loads and stores, and memory. What fits in
        the cache is there: activations were written by the kernel before.
    """
    kept = cached_share(size / larger(kernels, 1) if reuse_distance is None else reuse_distance, cache)
    memory = size * ((1.0 - kept) + kept / cache_bandwidth) / (bandwidth * memory_efficiency)
    compute = larger(flops / peak, scalar / scalar_rate)
    floor = base_latency * kernels
    return Parts(larger(memory, compute) + floor, compute, memory, 0.0, floor)


def gather_bytes(rows: Numeric, row_bytes: Numeric) -> Numeric:
    """Return the traffic of rows looked up and written densely; short ones waste part of a DRAM burst [B]."""
    burst: Numeric = ceil(row_bytes / TRANSACTION_BYTES) * TRANSACTION_BYTES
    return rows * (burst + row_bytes)


def transfer_time(
    size: Numeric,
    bandwidth: Numeric,
    *,
    latency: float = 0.0,
    efficiency: float = 1.0,
    half_bytes: float = 0.0,
    chunk: Numeric | None = None,
) -> Parts:
    """Return the time of a copy between memories.

    Parameters
    ----------
    size : number or array
        Bytes.
    bandwidth : number or array
        Of the narrowest part of the path [B/s].
    latency : float
        Of the path, paid once [s].
    efficiency : float
        Sustained share of the bandwidth with large requests.
    half_bytes : float
        Bytes of one request at which half of that is reached.
    chunk : number or array, optional
        Bytes of one request; the whole copy if absent.

    Returns
    -------
    Parts
        Seconds: latency + (size + requests·half) / (bandwidth·efficiency), with size / chunk requests, one at
        least (Hockney 1994). Nothing to copy takes no time.
    """
    requests: Numeric = 1.0 if chunk is None else larger(ceil(size / chunk), 1.0)
    some = size > 0
    link = some * (size + requests * half_bytes) / (bandwidth * efficiency)
    start = some * latency
    return Parts(link + start, 0.0, 0.0, link, start)


def adam_bytes(
    parameters: Numeric,
    *,
    gradient_bytes: float = 4.0,
    weight_bytes: float = 2.0,
    state_bytes: float = 4.0,
    master_bytes: float = 4.0,
) -> tuple[Numeric, Numeric]:
    """Return what one Adam step reads and writes.

    Parameters
    ----------
    parameters : number or array
        Elements that this rank updates.
    gradient_bytes, weight_bytes, state_bytes, master_bytes : float
        Bytes an element of the gradient, of the working copy of the weights, of each of the two moments, and
        of the master weights (0 where the working copy is the only one).

    Returns
    -------
    read, written : number or array
        Bytes. In mixed precision 16 are read (fp32 gradient, master, two moments) and 14 written (master,
        moments, 16-bit copy) for each parameter (Rajbhandari et al. 2020, *ZeRO*, section 3.1, counts the
        same tensors).
    """
    kept = 2.0 * state_bytes + (master_bytes or weight_bytes)
    copy = weight_bytes if master_bytes else 0.0
    return parameters * (kept + gradient_bytes), parameters * (kept + copy)
