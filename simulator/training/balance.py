"""Uneven splits for mixed accelerators: layers over stages, micro-batches over replicas, states over ranks.

Layers and micro-batches follow speed, states follow free memory, each apart from the other (Guo et al. 2025, *Cephalo:
Harnessing Heterogeneous GPU Clusters for Training Transformer Models*). All three splits are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulator.specs import MemroofError
from simulator.units import format_quantity

Floats = npt.NDArray[np.float64]
Numbers = float | Sequence[float] | Floats
Table = Sequence[Sequence[float]] | Floats


def balance_layers(
    seconds: Table,
    layer_bytes: Table,
    capacity: Numbers,
    *,
    micro_batches: int = 1,
    fixed_seconds: Numbers = 0.0,
    fixed_bytes: Numbers = 0.0,
    chunks: int = 1,
) -> tuple[int, ...]:
    """Cut layers over pipeline stages so that a step takes the least time and every stage fits.

    A step of m micro-batches takes the sum over stages to fill and drain, and m - 1 times the slowest stage:
    T = sum_s t_s + (m - 1) max_s t_s (Narayanan et al. 2021, section 2.2, with stages that differ).

    Parameters
    ----------
    seconds : array, shape (stages, layers)
        Forward and backward pass of one micro-batch through each layer on each stage's accelerator [s].
    layer_bytes : array, shape (stages, layers)
        What a stage holds for each layer: states, and activations of the micro-batches in flight there [B].
    capacity : array, shape (stages,)
        Memory of each stage's accelerator [B].
    micro_batches : int
        Of a step.
    fixed_seconds, fixed_bytes : array, shape (stages,), optional
        Of what a stage has beside layers: embedding, head, context [s, B].
    chunks : int
        Model chunks a stage holds, stage s those with index s, s + stages, ...; more than one needs layers that are
        equal on each stage.

    Returns
    -------
    tuple of int
        Layers of each model chunk, in the order in which a micro-batch passes them; each has one or more.

    Raises
    ------
    MemroofError
        If shapes disagree, there are fewer layers than chunks, layers differ with several chunks a stage, or no
        split fits (it names the bytes that are missing).
    """
    times, sizes = np.asarray(seconds, dtype=np.float64), np.asarray(layer_bytes, dtype=np.float64)
    if times.ndim != 2 or times.shape != sizes.shape:
        raise MemroofError(
            f"seconds and layer_bytes need one shape (stages, layers); found {times.shape} and {sizes.shape}"
        )
    stages, layers = times.shape
    room = np.broadcast_to(np.asarray(capacity, dtype=np.float64), (stages,)) - fixed_bytes
    fixed = np.broadcast_to(np.asarray(fixed_seconds, dtype=np.float64), (stages,))
    if layers < stages * chunks:
        raise MemroofError(f"{layers} layers are fewer than {stages} stages of {chunks} model chunk(s)")
    if chunks > 1 and (np.ptp(times, axis=1).any() or np.ptp(sizes, axis=1).any()):
        raise MemroofError(
            "strategy.virtual_stages: layers that differ cannot be balanced over several chunks a stage"
        )
    cost = _stage_seconds(times, sizes, room, fixed, least=chunks)
    counts = _least_time(cost, micro_batches)
    if counts is None:
        raise MemroofError(_shortage(sizes, room))
    if chunks == 1:
        return counts
    return tuple(count // chunks + (chunk < count % chunks) for chunk in range(chunks) for count in counts)


def balance_batch(
    seconds: Numbers | Table,
    batch: int,
    *,
    most: Sequence[int] | None = None,
    fixed_seconds: Numbers = 0.0,
    least: int = 1,
) -> tuple[int, ...]:
    """Share micro-batches (or sequences) out to replicas so that the last one to finish is as early as possible.

    Parameters
    ----------
    seconds : array, shape (replicas,) or (replicas, batch)
        Of one micro-batch on each replica; or of 1, 2, ... of them, where time does not grow in proportion [s].
    batch : int
        Micro-batches of all replicas together.
    most : sequence of int, optional
        That fit each replica's memory; any count if absent.
    fixed_seconds : array, shape (replicas,), optional
        That a replica takes beside them: its optimizer step, what its pipeline needs to fill [s].
    least : int
        That each replica takes.

    Returns
    -------
    tuple of int
        Micro-batches of each replica; of equally good shares, one whose other replicas end early.

    Raises
    ------
    MemroofError
        If the batch cannot be shared: too few for ``least`` each, or more than fit.
    """
    given = np.asarray(seconds, dtype=np.float64)
    if given.ndim == 1:
        given = given[:, None] * np.arange(1, batch + 1)
    replicas = len(given)
    limit = np.full(replicas, batch) if most is None else np.minimum(np.asarray(most), batch)
    limit = np.minimum(limit, given.shape[1])
    if np.any(np.diff(given, axis=1) < 0.0):
        raise MemroofError("more micro-batches cannot take a replica less time")
    if least * replicas > batch or np.any(limit < least):
        raise MemroofError(
            f"workload.global_batch: {batch} micro-batches are too few for {least} on each of {replicas} replicas"
        )
    if limit.sum() < batch:
        raise MemroofError(
            f"workload.global_batch: {batch} micro-batches exceed the {limit.sum()} that fit {replicas} replicas"
        )
    finish = given + np.broadcast_to(np.asarray(fixed_seconds, dtype=np.float64), (replicas,))[:, None]
    counts = _counts_until(finish, _earliest(finish, limit, batch, least), limit, least)
    # what fits by that time may be too many: take back the one that ends last
    while counts.sum() > batch:
        spare = counts > least
        last = np.where(spare, finish[np.arange(replicas), np.maximum(counts, 1) - 1], -np.inf)
        counts[int(last.argmax())] -= 1
    return tuple(int(count) for count in counts)


def state_shares(free_bytes: Numbers, total_bytes: float) -> tuple[float, ...]:
    """Share states out to ranks in proportion to their free memory, so that all are equally full.

    Parameters
    ----------
    free_bytes : array, shape (ranks,)
        Memory of each rank less what it holds beside states [B].
    total_bytes : float
        States of all ranks together [B].

    Returns
    -------
    tuple of float
        Fractions that sum to 1.

    Raises
    ------
    MemroofError
        If the states exceed the free memory of all ranks.
    """
    free = np.maximum(np.asarray(free_bytes, dtype=np.float64), 0.0)
    if not free.size or free.sum() < total_bytes or free.sum() == 0.0:
        missing = total_bytes - free.sum()
        raise MemroofError(
            f"states of {total_bytes:.4g} B exceed the free memory of all ranks by {missing:.4g} B"
        )
    return tuple(float(share) for share in free / free.sum())


def uneven_collective(shares: Numbers) -> float:
    """Return how much longer a gather or scatter of uneven shards takes than one of even shards, at most.

    A library without uneven collectives pads each shard to the largest, so that a ring passes on as many of these as
    there are ranks.
    """
    given = np.asarray(shares, dtype=np.float64)
    return float(len(given) * given.max() / given.sum())


def _stage_seconds(times: Floats, sizes: Floats, room: Floats, fixed: Floats, *, least: int) -> Floats:
    """Return what each stage takes for layers i to j, of shape (stages, i, j); infinite where they do not fit."""
    stages, layers = times.shape
    zero = np.zeros((stages, 1))
    taken = np.concatenate((zero, times.cumsum(axis=1)), axis=1)
    held = np.concatenate((zero, sizes.cumsum(axis=1)), axis=1)
    cost = taken[:, None, :] - taken[:, :, None] + fixed[:, None, None]
    size = held[:, None, :] - held[:, :, None]
    ends = np.arange(layers + 1)
    # sums that differ by rounding alone are equal
    fits = size <= room[:, None, None] * (1.0 + 1e-12)
    return np.where((ends[None, :] - ends[:, None] >= least)[None] & fits, cost, np.inf)


def _least_time(cost: Floats, micro_batches: int) -> tuple[int, ...] | None:
    """Return layers of each stage that take the least time; nothing if no split fits.

    The least sum under each bound on the slowest stage, by dynamic programming; bounds rise from the lowest that
    has a split until the bound alone costs more than the best found.
    """
    bottleneck = _best(cost, np.maximum, np.inf)
    if bottleneck is None:
        return None
    if micro_batches == 1:
        return _best(cost, np.add, np.inf)
    slowest = _slowest(cost, bottleneck)
    least_sum = _sum(cost, _best(cost, np.add, np.inf) or bottleneck)
    bounds = np.unique(cost[np.isfinite(cost)])
    found, time = bottleneck, np.inf
    for bound in bounds[bounds >= slowest]:
        if least_sum + (micro_batches - 1) * bound >= time:
            break
        split = _best(cost, np.add, float(bound))
        if split is not None:
            took = _sum(cost, split) + (micro_batches - 1) * _slowest(cost, split)
            if took < time:
                found, time = split, took
    return found


def _best(cost: Floats, combine: np.ufunc, bound: float) -> tuple[int, ...] | None:
    """Return the split whose stages, combined by sum or maximum, are least, with none above a bound."""
    stages, ends = cost.shape[0], cost.shape[1]
    allowed = np.where(cost <= bound, cost, np.inf)
    reached = np.full(ends, np.inf)
    reached[0] = 0.0
    choice = np.zeros((stages, ends), dtype=np.int64)
    for stage in range(stages):
        through = combine(reached[:, None], allowed[stage])
        choice[stage] = through.argmin(axis=0)
        reached = through.min(axis=0)
    if not np.isfinite(reached[-1]):
        return None
    counts, end = [], ends - 1
    for stage in reversed(range(stages)):
        start = int(choice[stage, end])
        counts.append(end - start)
        end = start
    return tuple(reversed(counts))


def _parts(cost: Floats, split: tuple[int, ...]) -> Floats:
    ends = np.cumsum(split)
    found: Floats = cost[np.arange(len(split)), ends - np.array(split), ends]
    return found


def _sum(cost: Floats, split: tuple[int, ...]) -> float:
    return float(_parts(cost, split).sum())


def _slowest(cost: Floats, split: tuple[int, ...]) -> float:
    return float(_parts(cost, split).max())


def _shortage(sizes: Floats, room: Floats) -> str:
    """Say why no split fits: bytes that are missing in all, or a layer that fits no stage."""
    missing = sizes.min(axis=0).sum() - room.sum()
    if missing > 0.0:
        return f"strategy.layer_split: no split fits; all stages together lack {format_quantity(missing, 'bytes')}"
    return "strategy.layer_split: no split fits; the memory that is free lies in stages that have no whole layer's room"


def _counts_until(
    finish: Floats, time: float, limit: npt.NDArray[np.int64], least: int
) -> npt.NDArray[np.int64]:
    """Return how many micro-batches each replica finishes by a time, at least ``least``, at most what fits."""
    done = np.minimum((finish <= time).sum(axis=1), limit)
    counts: npt.NDArray[np.int64] = np.maximum(done, least)
    return counts


def _earliest(finish: Floats, limit: npt.NDArray[np.int64], batch: int, least: int) -> float:
    """Return the earliest time by which all micro-batches can be done, by bisection over the times that occur."""
    times = np.unique(finish)
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        if _counts_until(finish, float(times[middle]), limit, least).sum() >= batch:
            high = middle
        else:
            low = middle + 1
    return float(times[low])
