"""A training step in closed form: step time and peak memory of many configurations of one plan at once.

The passes come from :class:`simulator.training.step.Step`'s own pricing, the schedule from its table (:mod:`makespan`); this
module puts them side by side and adds what follows the passes: reductions, the optimizer, gathers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simulator.training.layer_walk import Floats, Integers, LayerSeconds, Link, Rows
from simulator.training.liveness import Liveness, chain
from simulator.training.makespan import MessageSeconds, PassSeconds, makespan
from simulator.training.numbers import ChunkNumbers, LayerNumbers, holdings, paired
from simulator.training.plan import Plan
from simulator.training.recurrence import PARTS
from simulator.training.schedules import Part, in_flight
from simulator.training.work import LayerMessages, Message, StageWork

GRADIENTS: tuple[Part, ...] = ("backward", "weight-gradient")


@dataclass(frozen=True, slots=True)
class Bodies:
    """The passes of a plan under several options: arrays over them."""

    chunks: tuple[tuple[ChunkNumbers, ...], ...]
    """By stage and chunk."""
    messages: MessageSeconds

    @classmethod
    def of(cls, plan: Plan, layers: Sequence[Sequence[LayerNumbers]], messages: MessageSeconds) -> Bodies:
        """Put the layers of each place together; places with the same layers are worked out once."""
        found: dict[tuple[int, ...], ChunkNumbers] = {}
        chunks = []
        for place in layers:
            key = tuple(id(layer) for layer in place)
            if key not in found:
                found[key] = ChunkNumbers.of(place)
            chunks.append(found[key])
        return cls(
            tuple(tuple(chunks[place] for place in plan.held(stage)) for stage in range(plan.pipeline)),
            messages,
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """Step time [s] and peak memory of the fullest GPU [B], by configuration."""

    step_time: Floats
    peak_memory: Floats


def answers(
    plan: Plan,
    bodies: Bodies,
    tails: Sequence[Sequence[StageWork]],
    body: Integers,
    tail: Integers,
    *,
    pair: bool,
) -> Answers:
    """Return the answers of configurations, each a body and a tail.

    Parameters
    ----------
    plan : Plan
        What they have in common: degrees, micro-batches, schedule, layers of each chunk.
    bodies : Bodies
        Passes and messages between stages.
    tails : sequence of sequences of StageWork
        By tail and stage: states and communication with replicas; their passes are not looked at.
    body, tail : arrays of int
        Of each configuration.
    pair : bool
        Whether passes that may run in pairs do so.
    """
    time, peak = np.empty(len(body)), np.empty(len(body))
    alone = in_flight(plan.table.orders[0]) == 1
    groups: dict[_Mode, list[int]] = {}
    for index, stages in enumerate(tails):
        groups.setdefault(_mode(stages, alone=alone), []).append(index)
    for mode, members in groups.items():
        where = np.flatnonzero(np.isin(tail, members))
        if not len(where):
            continue
        # tails that communicate alike beside passes share the ends of a body
        alike = _alike(tails, members, mode)
        key = body[where] * len(tails) + alike[tail[where]]
        unique, back = np.unique(key, return_inverse=True)
        own_body, own_tail = unique // len(tails), unique % len(tails)
        layers = _layers(bodies, tails, own_body, own_tail, mode) if mode.rows else None
        ends = makespan(
            plan.table.name, plan.pipeline, plan.micro_batches, plan.table.chunks, _passes(bodies, tails, own_body, pair),
            _taken(bodies.messages, own_body), layers=layers, pair=pair,
        )  # fmt: skip
        time[where] = _finished(ends.reduced[:, back], tails, tail[where])
        peak[where] = _peak(plan, bodies, tails, body[where], tail[where], mode, pair)
    return Answers(time, peak)


class _Mode(NamedTuple):
    """How tails communicate beside passes; those of one mode are gone through together."""

    rows: frozenset[Rows]
    prefetch: int
    reshard: bool
    """Whether parameters are gathered again for the backward pass."""
    bounded: bool
    """Whether gradients have two buffers."""
    alone: bool
    """Whether one micro-batch is under way at a time."""

    def keeps(self, layer: LayerMessages) -> bool:
        """Whether gathered parameters of a layer stay until its backward pass."""
        return (layer.stays and self.alone) or not self.reshard


def _mode(stages: Sequence[StageWork], *, alone: bool) -> _Mode:
    communication = stages[0].communication
    layers = [layer for stage in stages for chunk in stage.messages for layer in chunk]
    bounded = any(layer.gradients for layer in layers)
    rows: set[Rows] = set()
    if communication.gather == "each" and any(layer.gather or layer.reduce for layer in layers):
        return _Mode(frozenset({"all"}), communication.prefetch, communication.reshard, bounded, alone)
    if communication.gather == "next" and any(layer.gather for layer in layers):
        rows.add("first")
    if any(layer.optimizer for layer in layers):
        rows.add("gradients")
    elif any(layer.reduce for layer in layers):
        rows.add("gradients" if communication.reduce == "each" else "final")
    return _Mode(frozenset(rows), 0, True, bounded, alone)


def _alike(tails: Sequence[Sequence[StageWork]], members: Sequence[int], mode: _Mode) -> Integers:
    """Return for each tail of a mode the first one that communicates as it does."""
    found = np.zeros(len(tails), dtype=np.int64)
    first: dict[Any, int] = {}
    for index in members:
        seen: dict[int, tuple[Any, ...]] = {}
        for layer in (layer for stage in tails[index] for chunk in stage.messages for layer in chunk):
            seen.setdefault(id(layer), (layer.gather, layer.reduce, layer.replicate, layer.optimizer))
        found[index] = first.setdefault(tuple(seen.values()) if mode.rows else (), index)
    return found


def _bandwidth(stage: StageWork) -> float:
    """Return the bandwidth of the link of a stage to its replicas [B/s]."""
    layers = [layer for chunk in stage.messages for layer in chunk]
    return max(
        (m.bandwidth for layer in layers for m in (*layer.gather, *layer.reduce, *layer.replicate)),
        default=0.0,
    )


def _passes(bodies: Bodies, tails: Sequence[Sequence[StageWork]], body: Integers, pair: bool) -> PassSeconds:
    def some(part: Part) -> Floats:
        none = np.zeros(len(body))
        return np.stack(
            [
                [chunk.seconds(part)[body] if part in chunk.layers else none for chunk in stage]
                for stage in bodies.chunks
            ]
        )

    both = None
    if pair:
        occupancy = tails[0][0].communication.occupancy
        both = np.stack(
            [[[paired(a, b, occupancy)[body] for b in stage] for a in stage] for stage in bodies.chunks]
        )
    return PassSeconds(
        some("forward"), some("input-gradient"), some("weight-gradient"), some("backward"), both
    )


def _taken(messages: MessageSeconds, where: Integers) -> MessageSeconds:
    return MessageSeconds(
        messages.forward_latency[:, where], messages.forward_flow[:, where],
        messages.backward_latency[:, where], messages.backward_flow[:, where],
    )  # fmt: skip


def _layers(
    bodies: Bodies, tails: Sequence[Sequence[StageWork]], body: Integers, tail: Integers, mode: _Mode
) -> LayerSeconds:  # fmt: skip
    """Return the layers of all passes with what they wait for and send on, as the lowering does (:mod:`lower`)."""
    stages, chunks = len(bodies.chunks), len(bodies.chunks[0])
    longest = max(len(one) for stage in bodies.chunks for chunk in stage for one in chunk.layers.values())
    kinds = stages * chunks * len(PARTS)
    shape = (kinds, longest, len(body))
    compute, gather, reduce, replicate, update = (np.zeros(shape) for _ in range(5))
    flows = [np.zeros(shape) for _ in range(4)] if "all" in mode.rows else []
    count = np.zeros(kinds, dtype=np.int64)
    tables: dict[tuple[int, ...], tuple[Floats, ...]] = {}
    everywhere = "all" in mode.rows
    bandwidth = np.array([[_bandwidth(stage) for stage in works] for works in tails]).T[:, tail]
    for stage, held in enumerate(bodies.chunks):
        for index, chunk in enumerate(held):
            for number, part in enumerate(PARTS):
                if part not in chunk.layers:
                    continue
                kind = (stage * chunks + index) * len(PARTS) + number
                layers = len(chunk.layers[part])
                at = (kind, slice(layers))
                count[kind] = layers
                work = [works[stage].messages[index] for works in tails]
                key = tuple(id(layer) for messages in work for layer in messages)
                if key not in tables:
                    tables[key] = _message_table(work)
                order = slice(None) if part == "forward" else slice(None, None, -1)
                columns = [table[order][:, tail] for table in tables[key]]
                gathers = part == "forward" or (everywhere and part != "weight-gradient")
                again = np.array([part == "forward" or not mode.keeps(layer) for layer in work[0]])[
                    order, None
                ]
                if gathers:
                    gather[at] = columns[0] * again
                if part in GRADIENTS:
                    reduce[at], replicate[at], update[at] = columns[1:4]
                there: tuple[Any, ...] = (
                    gathers * again,
                    gathers * again,
                    part in GRADIENTS,
                    part in GRADIENTS,
                )
                for flow, column, some in zip(flows, columns[4:], there, strict=False):
                    flow[at] = column * some
                seconds = chunk.layers[part][:, body]
                crowding = tails[0][stage].communication.crowding
                compute[at] = seconds + crowding * np.minimum(seconds, gather[at] + reduce[at])
    return LayerSeconds(
        mode.rows,
        compute,
        gather,
        reduce,
        replicate,
        update,
        count,
        mode.prefetch,
        Link(bandwidth, *flows) if flows else None,
        mode.bounded,
    )


def _message_table(tails: Sequence[Sequence[LayerMessages]]) -> tuple[Floats, ...]:
    """Return seconds of gathers, reductions, replications and updates: arrays (layers, tails)."""

    def some(seconds: Callable[[LayerMessages], float]) -> Floats:
        return np.array([[seconds(layer) for layer in layers] for layers in tails]).T

    return (
        some(lambda layer: _total(layer.gather)), some(lambda layer: _total(layer.reduce)),
        some(lambda layer: _total(layer.replicate)), some(lambda layer: layer.optimizer),
        some(lambda layer: _latency(layer.gather)), some(lambda layer: _rate(layer.gather)),
        some(lambda layer: _latency(layer.reduce)), some(lambda layer: _rate(layer.reduce)),
    )  # fmt: skip


def _latency(messages: Sequence[Message]) -> float:
    return sum(message.latency for message in messages)


def _rate(messages: Sequence[Message]) -> float:
    """Return the mean rate of messages that flow one after the other [B/s]."""
    flow = _total(messages) - _latency(messages)
    return sum(message.size for message in messages) / flow if flow > 0.0 else 0.0


def _total(messages: Sequence[Message]) -> float:
    return sum(message.time for message in messages)


def _finished(ends: Floats, tails: Sequence[Sequence[StageWork]], tail: Integers) -> Floats:
    """Add what follows the passes of each stage: reductions, the optimizer, gathers."""
    after = np.array(
        [
            [_total(stage.reduction) + stage.optimizer + _total(stage.gather) for stage in stages]
            for stages in tails
        ]
    )
    return np.asarray((ends + after.T[:, tail]).max(axis=0))


def _peak(
    plan: Plan, bodies: Bodies, tails: Sequence[Sequence[StageWork]], body: Integers, tail: Integers,
    mode: _Mode, pair: bool,
) -> Floats:  # fmt: skip
    """Return the peak of the fullest stage."""
    held = holdings(plan.table.name, plan.pipeline, plan.micro_batches, plan.table.chunks, pair=pair)
    resident = np.array([[sum(stage.resident.values()) for stage in stages] for stages in tails]).T
    buffers = mode.bounded or "all" in mode.rows
    keeps = "all" in mode.rows
    peak = np.zeros(len(body))
    known: dict[tuple[int, ...], Floats] = {}
    for index, chunks in enumerate(bodies.chunks):
        work = [works[index].messages for works in tails]
        key = (id(held[index]), *(id(chunk) for chunk in chunks))
        if buffers:
            key = (*key, *(id(layer) for messages in work for layers in messages for layer in layers))
        if key not in known and not buffers:
            known[key] = held[index].peak([chunk.memory for chunk in chunks])[body]
        elif key not in known:
            gathered = np.array(
                [
                    [sum(layer.gathered for layer in layers if mode.keeps(layer)) for layers in messages]
                    for messages in work
                ]
            )
            memory = [
                _buffered(chunk, [messages[at] for messages in work], body, tail, mode)
                for at, chunk in enumerate(chunks)
            ]
            known[key] = held[index].peak(memory, gathered.T[:, tail] if keeps else None)
        np.maximum(peak, known[key] + resident[index, tail], out=peak)
    return peak


def _buffered(
    chunk: ChunkNumbers,
    messages: Sequence[Sequence[LayerMessages]],
    body: Integers,
    tail: Integers,
    mode: _Mode,
) -> Liveness:
    """Return what a chunk holds with parameters gathered ahead and gradients on their way, layer by layer."""
    gathered = np.array(
        [[0.0 if mode.keeps(layer) else layer.gathered for layer in layers] for layers in messages]
    ).T
    gradients = np.array([[layer.gradients for layer in layers] for layers in messages]).T
    ahead = gathered * ("all" in mode.rows)
    parts: list[Liveness] = []
    for at, layer in enumerate(chunk.by_layer):
        own, back = slice(at, at + mode.prefetch + 1), slice(max(0, at - mode.prefetch), at + 1)
        sent = gradients[at : at + 2].sum(axis=0)[tail]
        forward = np.asarray(layer.forward_peak)[body] + ahead[own].sum(axis=0)[tail]
        backward = np.asarray(layer.backward_peak)[body] + ahead[back].sum(axis=0)[tail]
        parts.append(
            Liveness(np.asarray(layer.saved)[body], forward, backward + sent, np.asarray(layer.between)[body])
        )
    return chain(parts)
