"""Pipeline schedules as data: the order of forward and backward passes on each stage.

A schedule is a table of :class:`Order` rows for each stage; the lowering turns rows into tasks and the engine finds the
times. A new schedule is one function here and one row in :data:`SCHEDULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.specs import MemroofError

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Order:
    """One pass of one micro-batch through one model chunk of a stage."""

    micro_batch: int
    chunk: int
    direction: Direction


Schedule = tuple[Order, ...]


def gpipe(stage: int, stages: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """All forward passes, then all backward passes in reverse (Huang et al. 2019, figure 2c)."""
    _one_chunk("gpipe", chunks)
    forward = [Order(i, 0, "forward") for i in range(micro_batches)]
    return (*forward, *(Order(i, 0, "backward") for i in reversed(range(micro_batches))))


def one_forward_one_backward(stage: int, stages: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """1F1B: ``stages - stage - 1`` forwards to warm up, then pairs, then the backwards left.

    Narayanan et al. 2021, section 2.2.1.
    """
    _one_chunk("1f1b", chunks)
    forward = [Order(i, 0, "forward") for i in range(micro_batches)]
    backward = [Order(i, 0, "backward") for i in range(micro_batches)]
    return _interleave(forward, backward, min(stages - stage - 1, micro_batches))


def interleaved(stage: int, stages: int, micro_batches: int, chunks: int) -> Schedule:
    """Interleaved 1F1B over ``chunks`` model chunks a stage (Narayanan et al. 2021, section 2.2.2).

    Micro-batches go through a chunk in groups of ``stages``; the count of micro-batches must be a multiple of it.
    """
    if micro_batches % stages:
        raise MemroofError(
            f"schedule 1f1b-interleaved needs micro-batches ({micro_batches}) in multiples of pipeline_parallel ({stages}); "
            f"change global_batch or micro_batch, or use schedule 1f1b"
        )
    total = micro_batches * chunks
    group = stages * chunks

    def place(k: int, *, reverse: bool) -> tuple[int, int]:
        chunk = (k % group) // stages
        return (k // group) * stages + k % stages, chunks - 1 - chunk if reverse else chunk

    forward = [Order(*place(k, reverse=False), "forward") for k in range(total)]
    backward = [Order(*place(k, reverse=True), "backward") for k in range(total)]
    warm_up = total if micro_batches == stages else (stages - stage - 1) * 2 + (chunks - 1) * stages
    return _interleave(forward, backward, min(warm_up, total))


def in_flight(schedule: Schedule, chunk: int | None = None) -> int:
    """Return the largest count of passes whose activations a stage holds at once (of one chunk, or of all)."""
    held = peak = 0
    for order in schedule:
        if chunk is None or order.chunk == chunk:
            held += 1 if order.direction == "forward" else -1
            peak = max(peak, held)
    return peak


def bubble_fraction(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Idle time over ideal time of GPipe, 1F1B and interleaved 1F1B: (p - 1)/(v·m) (Narayanan et al. 2021, section 2.2).

    It holds for equal stages and free transfers.
    """
    return (stages - 1) / (chunks * micro_batches)


SCHEDULES: Mapping[str, Callable[[int, int, int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "1f1b-interleaved": interleaved,
}


def _interleave(forward: list[Order], backward: list[Order], warm_up: int) -> Schedule:
    rows = forward[:warm_up]
    for index, order in enumerate(forward[warm_up:]):
        rows += [order, backward[index]]
    return (*rows, *backward[len(forward) - warm_up :])


def _one_chunk(name: str, chunks: int) -> None:
    if chunks != 1:
        raise MemroofError(
            f"schedule {name} has one chunk a stage; virtual_stages {chunks} needs schedule 1f1b-interleaved"
        )
