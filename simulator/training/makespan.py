"""The end of a pipelined step in closed form: the recurrence of a schedule table over arrays of configurations.

A schedule table with seconds for its passes is a max-plus recurrence: a pass begins when the row before it on its stage has
ended and its message has arrived. Rows whose longest chains of predecessors are equally long do not wait for each other, so a
whole level of rows is one array operation, for all configurations at once.

Schedules repeat: from some micro-batch on each further period is the one before it, later by the same time. What was true of
all rows that the next period can see stays true (the recurrence commutes with adding a constant; Baccelli et al. 1992,
*Synchronization and Linearity*, section 3.7), so that longer tables are extrapolated exactly. Where no such period has been
reached a longer table is tried, in the end the whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from simulator.training.dependencies import period_of, recurrence
from simulator.training.layer_walk import Floats, Integers, LayerSeconds, Link
from simulator.training.recurrence import Recurrence, Times
from simulator.training.schedules import SCHEDULES


@dataclass(frozen=True, slots=True)
class PassSeconds:
    """Seconds of the passes of one micro-batch, by stage and chunk: arrays (stages, chunks, configurations)."""

    forward: Floats
    input_gradient: Floats
    weight_gradient: Floats
    backward: Floats | None = None
    """Input and weight gradient in one pass; their sum if absent."""
    pair: Floats | None = None
    """A forward and a backward pass that run together: (stages, chunk of the forward, chunk of the backward pass,
    configurations); one after the other if absent."""


@dataclass(frozen=True, slots=True)
class MessageSeconds:
    """Seconds of the messages between places: arrays (places, configurations).

    Row k of ``forward_*`` is the activation that leaves place k, row k of ``backward_*`` the gradient that leaves place k (of
    place 0 none). Messages with one sender and receiver share a link: each flows when the one before has flowed.
    """

    forward_latency: Floats
    forward_flow: Floats
    backward_latency: Floats
    backward_flow: Floats

    @classmethod
    def none(cls, places: int, configurations: int = 1) -> MessageSeconds:
        """Return messages that take no time."""
        return cls(*(np.zeros((places, configurations)) for _ in range(4)))


@dataclass(frozen=True, slots=True)
class StepEnds:
    """When the passes of a step end [s]."""

    last: Floats
    """(stages, configurations): end of each stage's last row."""
    reduced: Floats
    """(stages, configurations): end of what is reduced beside its passes, and of the last row."""
    simulated: Integers
    """Micro-batches that were gone through, by configuration; the rest is extrapolated."""

    @property
    def makespan(self) -> Floats:
        """End of the last row of all, by configuration [s]."""
        return np.asarray(self.last.max(axis=0))


def makespan(
    name: str,
    stages: int,
    micro_batches: int,
    chunks: int,
    passes: PassSeconds,
    messages: MessageSeconds | None = None,
    *,
    layers: LayerSeconds | None = None,
    pair: bool = False,
    shortcut: bool = True,
) -> StepEnds:
    """Return when the passes of a step end, for arrays of configurations.

    Parameters
    ----------
    name, stages, micro_batches, chunks
        Of the schedule, as for :func:`simulator.training.schedules.pipeline`.
    passes : PassSeconds
        By stage and chunk.
    messages : MessageSeconds, optional
        Between places; free if absent.
    layers : LayerSeconds, optional
        For passes that communicate with replicas layer by layer.
    pair : bool
        Whether rows that may run in pairs do so.
    shortcut : bool
        Whether periods are extrapolated; false: every micro-batch is gone through.

    Raises
    ------
    MemroofError
        For a schedule that cannot have these counts.
    """
    chunks = SCHEDULES[name].chunks or chunks if name in SCHEDULES else chunks
    count = passes.forward.shape[-1]
    if messages is None:
        messages = MessageSeconds.none(SCHEDULES[name].places(stages, chunks), count)
    none = np.zeros((1, count))
    latency = np.concatenate([messages.forward_latency, messages.backward_latency, none])
    flow = np.concatenate([messages.forward_flow, messages.backward_flow, none])
    seconds = _durations(passes, pairs=pair)
    result = _Result(stages, count)
    left: Any = np.arange(count)

    def gone_through(some: int, where: Integers) -> tuple[Recurrence, Times]:
        table = recurrence(name, stages, some, chunks, pair=pair, periodic=some < micro_batches)
        return table, table.run(seconds[:, where], latency[:, where], flow[:, where], _picked(layers, where))

    for shorter in _shorter(name, stages, micro_batches, chunks, pair) if shortcut else ():
        table, times = gone_through(shorter, left)
        cycle, period = table.period(times)
        missing = (micro_batches - shorter) // table.step
        # what does not go into whole cycles is gone through as well
        rest = np.where(cycle > 0, missing % np.maximum(cycle, 1), -1)
        for more in np.unique(rest[rest >= 0]).tolist():
            found = np.flatnonzero(rest == more)
            some = shorter + more * table.step
            if more:
                table, times = gone_through(some, left[found])
            ends = table.ends(times) if more else table.ends(times)[..., found]
            result.fill(left[found], ends + period[found] * ((missing - more) // cycle[found]), some)
        left = left[cycle == 0]
        if not len(left):
            return result.step()
    table, times = gone_through(micro_batches, left)
    result.fill(left, table.ends(times), micro_batches)
    return result.step()


class _Result:
    """Ends of configurations as they become known."""

    def __init__(self, stages: int, count: int) -> None:
        self.values = np.empty((stages, 2, count))
        self.simulated = np.zeros(count, dtype=np.int64)

    def fill(self, where: Integers, ends: Floats, simulated: int) -> None:
        self.values[..., where] = ends
        self.simulated[where] = simulated

    def step(self) -> StepEnds:
        return StepEnds(self.values[:, 0], self.values[:, 1], self.simulated)


def _picked(layers: LayerSeconds | None, where: Integers) -> LayerSeconds | None:
    if layers is None:
        return None
    names = ("compute", "gather", "reduce", "replicate", "update")
    link = layers.link
    if link is not None:
        link = Link(*(getattr(link, one.name)[..., where] for one in fields(link)))
    return replace(layers, link=link, **{name: getattr(layers, name)[..., where] for name in names})


def _durations(passes: PassSeconds, *, pairs: bool) -> Floats:
    """Stack seconds by stage, chunk and part; then those of pairs by stage and both chunks."""
    count = passes.forward.shape[-1]
    backward = passes.input_gradient + passes.weight_gradient if passes.backward is None else passes.backward
    single = np.stack([passes.forward, backward, passes.input_gradient, passes.weight_gradient], axis=2)
    if not pairs:
        return single.reshape(-1, count)
    pair = passes.forward[:, :, None] + backward[:, None] if passes.pair is None else passes.pair
    return np.concatenate([single.reshape(-1, count), pair.reshape(-1, count)])


def _shorter(name: str, stages: int, micro_batches: int, chunks: int, pair: bool) -> Iterator[int]:
    """Return counts of micro-batches to try in turn, each whole periods below the count that is asked for."""
    tried = 4 * stages + 8
    step = period_of(name, stages, chunks, pair=pair) if tried < micro_batches // 2 else 0
    while step and tried < micro_batches // 2:
        # cycles often are as long as the pipeline
        whole = step * stages if micro_batches - tried > step * stages else step
        shorter = micro_batches - (micro_batches - tried) // whole * whole
        if recurrence(name, stages, shorter, chunks, pair=pair).step:
            yield shorter
        tried *= 2
