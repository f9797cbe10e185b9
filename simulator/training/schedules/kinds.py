"""The schedules by name, with their rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from simulator.specs import MemroofError
from simulator.specs.errors import unknown
from simulator.training.schedules import fused, split
from simulator.training.schedules.dualpipe import dualpipe
from simulator.training.schedules.table import Pipeline

Builder = Callable[[int, int, int, bool], Pipeline]


@dataclass(frozen=True, slots=True)
class ScheduleKind:
    """How a schedule is built, and what it asks of stages, micro-batches and chunks."""

    build: Builder
    """From stages, micro-batches, chunks a stage, and whether passes run in pairs."""
    chunks: int | None = 1
    """Chunks of a stage; a choice of two or more where none is given."""
    copies: int = 1
    """Copies of the model over all stages together."""
    splits_backward: bool = False
    """Whether gradients of inputs and of weights are passes of their own."""
    pairs: bool = False
    """Whether a forward pass can run together with a backward pass of another micro-batch."""
    least_stages: int = 1
    even: bool = False
    """Whether stages and micro-batches must be even in number."""
    least_per_stage: int = 0
    """Micro-batches for each stage at least."""
    in_groups: bool = False
    """Whether micro-batches must be a multiple of the stages."""

    def places(self, stages: int, chunks: int = 1) -> int:
        """Return how many chunks the model is cut into, if a stage holds so many (1 also where the schedule fixes them)."""
        return stages * (chunks if self.chunks is None else self.chunks) // self.copies


SCHEDULES: Mapping[str, ScheduleKind] = MappingProxyType({
    "naive": ScheduleKind(fused.naive),
    "gpipe": ScheduleKind(fused.gpipe),
    "1f1b": ScheduleKind(fused.one_forward_one_backward, pairs=True),
    "1f1b-interleaved": ScheduleKind(fused.interleaved, chunks=None, pairs=True, least_stages=2, in_groups=True),
    "2bp": ScheduleKind(split.two_stage_backward, splits_backward=True),
    "zb-h1": ScheduleKind(split.zero_bubble_h1, splits_backward=True),
    "zb-h2": ScheduleKind(split.zero_bubble_h2, splits_backward=True),
    "zb-v": ScheduleKind(split.zero_bubble_v, chunks=2, splits_backward=True),
    "dualpipe": ScheduleKind(
        dualpipe, chunks=2, copies=2, splits_backward=True, pairs=True, least_stages=2, even=True, least_per_stage=2
    ),
    "wrap-around": ScheduleKind(fused.wrap_around, chunks=None),
})  # fmt: skip


def pipeline(name: str, stages: int, micro_batches: int, chunks: int = 1, *, pair: bool = False) -> Pipeline:
    """Return the tables of a schedule.

    Parameters
    ----------
    name : str
        A key of `SCHEDULES`.
    stages, micro_batches : int
        Pipeline stages; micro-batches of a step (of both directions together).
    chunks : int
        Model chunks a stage; where the schedule fixes their number, 1 stands for it.
    pair : bool
        Whether forward passes run together with backward passes of other micro-batches (dual-batch overlap). DualPipe
        always does so.

    Raises
    ------
    MemroofError
        If a rule of the schedule is broken.

    Examples
    --------
    >>> [(row.part, row.micro_batch) for row in pipeline("1f1b", 2, 2).orders[0]]
    [('forward', 0), ('forward', 1), ('backward', 0), ('backward', 1)]
    """
    broken = faults(name, stages, micro_batches, chunks, pair=pair)
    if broken:
        raise MemroofError("\n".join(broken))
    return _built(name, stages, micro_batches, SCHEDULES[name].chunks or chunks, pair)


@lru_cache(maxsize=64)
def _built(name: str, stages: int, micro_batches: int, chunks: int, pair: bool) -> Pipeline:
    return SCHEDULES[name].build(stages, micro_batches, chunks, pair)


def faults(name: str, stages: int, micro_batches: int, chunks: int = 1, *, pair: bool = False) -> list[str]:
    """Return the rules that a schedule's degrees break, a line each, with the way out."""
    kind = SCHEDULES.get(name)
    if kind is None:
        return [f"strategy.schedule: {unknown('schedule', name, SCHEDULES)}"]
    return [
        *_counts(name, kind, stages, micro_batches),
        *_chunks(name, kind, chunks),
        *_pairs(name, kind, micro_batches, pair),
    ]


def _counts(name: str, kind: ScheduleKind, stages: int, micro_batches: int) -> Iterator[str]:
    if stages < 1 or micro_batches < 1:
        yield f"strategy.schedule: {name} needs a stage and a micro-batch at least, found {stages} and {micro_batches}"
        return
    if stages < kind.least_stages:
        yield (
            f"strategy.schedule: {name} needs pipeline_parallel of {kind.least_stages} or more, found {stages}; "
            f"use 1f1b"
        )
    if kind.even and stages % 2:
        yield (
            f"strategy.schedule: {name} needs an even pipeline_parallel, found {stages}; use {stages + 1}, or zb-v, which "
            f"needs none"
        )
    if kind.in_groups and micro_batches % stages:
        yield (
            f"strategy.schedule: {name} needs micro-batches ({micro_batches}) in multiples of "
            f"pipeline_parallel ({stages}); change global_batch or micro_batch, or use 1f1b"
        )
    least = kind.least_per_stage * stages
    if micro_batches < least or (kind.even and micro_batches % 2):
        yield (
            f"strategy.schedule: {name} needs an even number of micro-batches, {least} or more with pipeline_parallel {stages}, "
            f"found {micro_batches}; change global_batch or micro_batch, or use zb-v"
        )


def _chunks(name: str, kind: ScheduleKind, chunks: int) -> Iterator[str]:
    if kind.chunks is None and chunks < 2:
        yield f"strategy.schedule: {name} needs virtual_stages of 2 or more, found {chunks}; set it, or use 1f1b"
    elif kind.chunks is not None and chunks not in (1, kind.chunks):
        free = " or ".join(other for other, rules in SCHEDULES.items() if rules.chunks is None)
        yield (
            f"strategy.virtual_stages: {chunks} needs schedule {free}, found {name}"
            + (f", which has {kind.chunks}" if kind.chunks > 1 else "")
        )


def _pairs(name: str, kind: ScheduleKind, micro_batches: int, pair: bool) -> Iterator[str]:
    if pair and not kind.pairs:
        names = ", ".join(other for other, rules in SCHEDULES.items() if rules.pairs)
        yield f"strategy.schedule: {name} runs no passes in pairs; use {names}"
    elif pair and micro_batches == 1:
        yield f"strategy.schedule: {name} in pairs needs 2 micro-batches or more; a smaller micro_batch makes more"
