"""Rates of scattered reads: of storage by block, range, queue and issuing core; of a GPU over a link by rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.cost.numeric import ceil, larger, smaller
from simulator.graph.work import Numeric
from simulator.specs.errors import MemroofError
from simulator.specs.hardware import MemoryDevice, RandomRead

PAGE_BYTES = 4096.0
"""Smallest read of a drive and of the page cache, and the block of the IOPS of data sheets."""
LINE_BYTES = 128.0
"""What a GPU asks the host for at a time: a cache line (Min et al. 2020, *EMOGI*, section 3)."""
HEADER_BYTES = 18.0
"""Of a PCIe packet that brings one line: header, sequence number and checksum (EMOGI counts 18; from memory, unverified)."""
OUTSTANDING_READS = {"pcie-3.0": 256, "pcie-4.0": 768}
"""Reads that a GPU may have under way: tags of PCIe 3.0 and 4.0 (Min et al. 2021, *PyTorch-Direct*; from memory, unverified)."""


def read_rate(
    device: MemoryDevice,
    block: Numeric,
    *,
    span: Numeric = np.inf,
    outstanding: Numeric = np.inf,
    clock: float | None = None,
    sequential: bool = False,
) -> Any:
    """Return the bytes a second that reads of one size get from a storage device.

    Parameters
    ----------
    device : MemoryDevice
        Its bandwidth, latency, IOPS and table of measured random reads.
    block : number or array
        Bytes wanted of one read; a part of a page of 4 KiB costs a whole one.
    span : number or array
        Range of addresses that they are scattered over [B]; the whole device if infinite.
    outstanding : number or array
        Reads under way at a time, of all threads together; as many as help if infinite.
    clock : float, optional
        Of the core that issues them [Hz]; as measured if absent.
    sequential : bool
        One after the other in the order of addresses: neither the table nor the IOPS limit them.

    Returns
    -------
    number or array
        Bytes wanted a second [B/s], the least of the sequential bandwidth; Little's law, outstanding x block /
        latency (Little 1961); and for random reads the table, interpolated between the logarithms of block
        and span, or else IOPS x block. Beyond the ends of the table the time of one read keeps its fixed part
        (larger blocks), or is that of the smallest block (smaller ones). A slower core adds the cycles that a
        read costs it: two rows of the table which differ in the clock alone tell how many.

    Raises
    ------
    MemroofError
        If a block is not positive, fewer than one read is outstanding, or a clock is given and the table has
        no two clocks.
    """
    _check_positive("block", block)
    _check_positive("span", span)
    if np.any(np.asarray(outstanding) < 1.0):
        raise MemroofError(f"outstanding: found {outstanding}; expected 1 read at least")
    read = ceil(block / PAGE_BYTES) * PAGE_BYTES
    rate: Any = device.read_bandwidth
    if not sequential and device.random_read:
        rate = smaller(rate, _measured(device, read, smaller(span, device.capacity), clock))
    elif clock is not None:
        raise MemroofError(f"clock: {device.name} has no random reads measured at two clocks, to scale by")
    elif not sequential and device.read_iops is not None:
        rate = smaller(rate, device.read_iops * read)
    if device.read_latency:
        rate = smaller(rate, outstanding * read / device.read_latency)
    return rate * (block / read)


def zero_copy_rate(
    bandwidth: Numeric,
    latency: Numeric,
    outstanding: Numeric,
    useful: Numeric,
    *,
    line: float = LINE_BYTES,
    header: float = HEADER_BYTES,
    granularity: float | None = None,
) -> Any:
    """Return the useful bytes a second that a GPU reads from the memory at the far end of a link.

    Parameters
    ----------
    bandwidth : number or array
        Of the link, packets and their headers together [B/s].
    latency : number or array
        Of one read, there and back [s].
    outstanding : number or array
        Reads of a line under way at a time; see `OUTSTANDING_READS`.
    useful : number or array
        Contiguous bytes wanted in one place (a row of features).
    line, header : float
        Bytes of one read, and of the packet around it.
    granularity : float, optional
        Where rows begin at any multiple of it [B] rather than at a line: each touches then, on average,
        1 + (useful - granularity) / line lines.

    Returns
    -------
    number or array
        The lesser of bandwidth x useful / (lines (line + header)) and, by Little's law, outstanding x
        useful / (lines latency) [B/s] (Min et al. 2021, *PyTorch-Direct*; Min et al. 2020, *EMOGI*).

    Raises
    ------
    MemroofError
        If an amount is not positive.
    """
    for name, value in (("bandwidth", bandwidth), ("latency", latency), ("outstanding", outstanding)):
        _check_positive(name, value)
    _check_positive("useful", useful)
    lines = lines_touched(useful, line=line, granularity=granularity)
    return smaller(bandwidth * useful / (lines * (line + header)), outstanding * useful / (lines * latency))


def lines_touched(useful: Numeric, *, line: float = LINE_BYTES, granularity: float | None = None) -> Any:
    """Return how many lines hold `useful` contiguous bytes that begin at a line, or at any multiple of `granularity`."""
    if granularity is None:
        return ceil(useful / line)
    _check_positive("granularity", granularity)
    return 1.0 + larger(useful - granularity, 0.0) / line


def _measured(device: MemoryDevice, block: Numeric, span: Numeric, clock: float | None) -> Any:
    """Interpolate the table of random reads; `block` and `span` are positive and finite."""
    fastest = max((read.clock for read in device.random_read if read.clock is not None), default=None)
    table = [read for read in device.random_read if read.clock in (None, fastest)]
    blocks = sorted({read.block for read in table})
    # One curve over the span for each block, then one over the blocks.
    curves = [_over_span([read for read in table if read.block == size], device, span) for size in blocks]
    time: Any = block / _over_blocks(blocks, curves, block, device.read_bandwidth)
    if clock is not None:
        _check_positive("clock", clock)
        cycles, measured_at = _cycles(device)
        time = time + cycles * (1.0 / clock - 1.0 / measured_at)
    return block / time


def _over_span(reads: Sequence[RandomRead], device: MemoryDevice, span: Numeric) -> Any:
    points = sorted((read.span or device.capacity, read.rate) for read in reads)
    spans, rates = np.log(np.array(points)).T
    return np.exp(np.interp(np.log(span), spans, rates))


def _over_blocks(blocks: Sequence[float], rates: Sequence[Any], block: Numeric, bandwidth: float) -> Any:
    size = np.asarray(block, dtype=np.float64)
    curve = np.log(np.stack(np.broadcast_arrays(*rates, size)[:-1]))
    nodes = np.log(np.array(blocks))
    log = np.clip(np.log(size), nodes[0], nodes[-1])
    left = np.clip(np.searchsorted(nodes, log, side="right") - 1, 0, max(len(nodes) - 2, 0))
    right = np.minimum(left + 1, len(nodes) - 1)
    part = (log - nodes[left]) / np.where(right > left, nodes[right] - nodes[left], 1.0)
    low = np.take_along_axis(curve, left[None], axis=0)[0]
    high = np.take_along_axis(curve, right[None], axis=0)[0]
    time = np.exp(log - (low + part * (high - low)))
    # What a read costs beside its bytes stays as it is beyond the largest block.
    time = time + np.maximum(size - blocks[-1], 0.0) / bandwidth
    rate = size / time
    return rate if rate.ndim else float(rate)


def _cycles(device: MemoryDevice) -> tuple[float, float]:
    """Return the cycles that one read costs the core, and the clock that the table is for [Hz]."""
    timed = [(read.block, read.span, read.clock, read.rate) for read in device.random_read if read.clock]
    pairs = [
        (block * (1.0 / slow_rate - 1.0 / fast_rate) / (1.0 / slow - 1.0 / fast), fast)
        for block, span, fast, fast_rate in timed
        for other_block, other_span, slow, slow_rate in timed
        if (block, span) == (other_block, other_span) and slow < fast
    ]
    if not pairs:
        raise MemroofError(f"clock: {device.name} has no random reads measured at two clocks, to scale by")
    return pairs[0]


def _check_positive(name: str, value: Numeric) -> None:
    if not np.all(np.asarray(value) > 0.0):
        raise MemroofError(f"{name}: found {value}; expected a positive number")
