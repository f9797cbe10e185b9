"""The requests of a workload: arrivals, lengths, classes and what they have in common, as arrays drawn from its seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from simulator.serving.lengths import draw_lengths
from simulator.serving.prefixes import Prefixes, chained_texts, grouped_texts
from simulator.serving.traces import read_trace
from simulator.specs.errors import MemroofError
from simulator.specs.serving_workload import Lengths, RequestClass, ServingWorkload

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

REQUESTS = 500
"""Requests of a workload that does not say how many."""


class _Stream(IntEnum):
    """Random generators of a workload: what one draws leaves the others as they are."""

    GAPS = 0
    PROMPTS = 1
    OUTPUTS = 2
    KINDS = 3
    TURNS = 4
    PAUSES = 5
    GROUPS = 6
    PREFIXES = 7


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival, one entry each; what arrives only after an answer is at its place in its session.

    Attributes
    ----------
    arrival : array, shape (n,)
        Not decreasing where finite; infinite for what an answer brings [s].
    prompt, output : array of int, shape (n,)
        Tokens that come in, history and shared prefix among them, and that are generated.
    concurrency : int
        Clients of a closed loop: so many are there at time 0, and each answer (the last of a session) brings the next
        request; 0 where arrivals are given.
    priority : array of int, shape (n,), or None
        The lower goes first; all alike if None.
    kind : array of int, shape (n,), or None
        Index into ``names``; one class if None.
    names : tuple of str
        Classes of requests.
    following : array of int, shape (n,), or None
        The next turn of a request's session, -1 after the last; no sessions if None.
    pause : array, shape (n,), or None
        Between the answer before and this turn [s].
    texts : Prefixes, or None
        What prompts have in common; nothing if None.
    """

    arrival: Floats
    prompt: Integers
    output: Integers
    concurrency: int = 0
    priority: Integers | None = None
    kind: Integers | None = None
    names: tuple[str, ...] = ()
    following: Integers | None = None
    pause: Floats | None = None
    texts: Prefixes | None = None

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def longest(self) -> int:
        """Most tokens that one request keeps in the cache: the last one generated is never read [tokens]."""
        return int((self.prompt + self.output).max()) - 1

    @property
    def offline(self) -> bool:
        """Whether all are there from the start."""
        return bool(self.arrival[-1] == self.arrival[0])

    @property
    def closed(self) -> bool:
        """Whether answers bring the next requests."""
        return self.concurrency > 0

    @property
    def first_turns(self) -> Integers:
        """Requests that no earlier turn brings."""
        if self.following is None:
            return np.arange(len(self))
        first = np.ones(len(self), bool)
        first[self.following[self.following >= 0]] = False
        return np.flatnonzero(first)

    def share(self, replicas: int) -> Requests:
        """Return what the first of equal replicas gets from a router that goes round: every ``replicas``-th request.

        Turns of a session stay together.
        """
        if replicas == 1:
            return self
        if self.following is None:
            chosen = np.arange(0, len(self), replicas)
        else:
            session = np.cumsum(np.isin(np.arange(len(self)), self.first_turns)) - 1
            chosen = np.flatnonzero(session % replicas == 0)
        part = self.of(chosen)
        return closed_loop(part, -(-self.concurrency // replicas)) if self.closed else part

    def of(self, chosen: Integers) -> Requests:
        """Return some of the requests, in the order given; sessions must be whole."""
        following = self.following
        if following is not None:
            place = np.full(len(self) + 1, -1)
            place[chosen] = np.arange(len(chosen))
            # -1 looks up the last entry, which stays -1
            following = place[following[chosen]]
        return Requests(
            self.arrival[chosen], self.prompt[chosen], self.output[chosen], self.concurrency,
            None if self.priority is None else self.priority[chosen], None if self.kind is None else self.kind[chosen],
            self.names, following, None if self.pause is None else self.pause[chosen],
            None if self.texts is None else self.texts.of(chosen),
        )  # fmt: skip


def closed_loop(requests: Requests, concurrency: int) -> Requests:
    """Return requests as sent by a closed loop of ``concurrency`` clients (at most one a request or session)."""
    first = requests.first_turns
    clients = min(concurrency, len(first))
    arrival = np.full(len(requests), np.inf)
    arrival[first[:clients]] = 0.0
    return replace(requests, arrival=arrival, concurrency=clients)


def draw_requests(workload: ServingWorkload) -> Requests:
    """Draw the requests of a workload.

    Arrivals, prompts, outputs, classes, turns, pauses and prefixes have random generators of their own, so that a change
    of one leaves the others.

    Parameters
    ----------
    workload : ServingWorkload
        Poisson arrivals (exponential gaps of mean 1 / rate), gamma arrivals (gaps of a coefficient of variation c: shape
        1 / c^2), all at time 0 (offline), a closed loop, a given list, or a recorded trace.

    Returns
    -------
    Requests
        In order of arrival; equal arrivals in the order given.

    Raises
    ------
    MemroofError
        If lengths are missing, or a file cannot be read.
    """
    if workload.arrival == "list":
        return _listed(workload)
    if workload.trace is not None:
        return _recorded(workload)
    requests = _drawn(workload)
    if workload.concurrency is not None:
        return closed_loop(requests, workload.concurrency)
    if workload.rate is None or workload.arrival == "offline":
        return requests
    first = requests.first_turns
    gaps, mean = _generator(workload, _Stream.GAPS), 1.0 / workload.rate
    if workload.coefficient_of_variation is None:
        drawn = gaps.exponential(mean, len(first))
    else:
        shape = workload.coefficient_of_variation**-2
        drawn = gaps.gamma(shape, mean / shape, len(first))
    arrival = np.full(len(requests), np.inf)
    arrival[first] = np.cumsum(drawn)
    return replace(requests, arrival=arrival)


def _generator(workload: ServingWorkload, stream: _Stream, kind: int = 0) -> np.random.Generator:
    # the first class draws what a workload of this class alone would
    return np.random.default_rng([workload.seed, stream, kind] if kind else [workload.seed, int(stream)])


# --- given ---


def _listed(workload: ServingWorkload) -> Requests:
    rows = (workload.list or ())[: workload.requests]
    arrival = np.array([row.arrival for row in rows], float)
    order = np.argsort(arrival, kind="stable")
    table = np.array([(row.prompt, row.output, row.priority) for row in rows], np.int64)[order]
    return Requests(
        arrival[order], table[:, 0], table[:, 1], priority=table[:, 2] if table[:, 2].any() else None
    )


def _recorded(workload: ServingWorkload) -> Requests:
    if workload.trace is None:
        raise MemroofError("arrival 'trace' needs a 'trace'")
    rows = read_trace(workload.trace, workload.requests)
    texts = None
    if rows.blocks is not None:
        texts = chained_texts(rows.blocks, rows.block_tokens, rows.prompt, rows.output)
    return Requests(
        rows.arrival, rows.prompt, rows.output,
        priority=rows.priority if rows.priority.any() else None,
        kind=rows.kind if len(rows.names) > 1 else None, names=rows.names if len(rows.names) > 1 else (), texts=texts,
    )  # fmt: skip


# --- drawn ---


def _drawn(workload: ServingWorkload) -> Requests:
    """Everything but arrivals, which are at time 0 for first turns."""
    kinds = workload.kinds
    count = workload.requests or REQUESTS
    if not kinds:
        raise MemroofError("the workload needs the lengths 'prompt' and 'output'")
    kind = np.zeros(count, np.int64)
    if len(kinds) > 1:
        share = np.array([one.share for one in kinds])
        kind = _generator(workload, _Stream.KINDS).choice(len(kinds), count, p=share / share.sum())
    session, turn = np.arange(count), np.zeros(count, np.int64)
    sessions = any(one.session for one in kinds)
    if sessions:
        session, turn = _turns(workload, kind, count)
        kind = kind[session]
    message = _of_kinds(workload, kind, _Stream.PROMPTS, [one.prompt for one in kinds])
    output = _of_kinds(workload, kind, _Stream.OUTPUTS, [one.output for one in kinds])
    group, lengths = _groups(workload, kinds, kind[turn == 0])
    own = lengths[group] if len(lengths) else np.zeros(int((turn == 0).sum()), np.int64)
    prefix = np.where(group >= 0, own, 0)[session]
    if not sessions:
        prompt = prefix + message
        texts = grouped_texts(group, lengths, prompt, output) if len(lengths) else None
        return _classed(Requests(np.zeros(count), prompt, output, texts=texts), kinds, kind)
    return _classed(
        _conversations(workload, kinds, kind, turn, prefix, message, output, group, lengths), kinds, kind
    )


def _classed(requests: Requests, kinds: tuple[RequestClass, ...], kind: Integers) -> Requests:
    kind = kind if requests.kind is None else requests.kind
    priority = np.array([one.priority for one in kinds], np.int64)[kind]
    return replace(
        requests, priority=priority if priority.any() else None, kind=kind if len(kinds) > 1 else None,
        names=tuple(one.name or f"class {i}" for i, one in enumerate(kinds)) if len(kinds) > 1 else (),
    )  # fmt: skip


def _of_kinds(
    workload: ServingWorkload, kind: Integers, stream: _Stream, lengths: Iterable[Lengths]
) -> Integers:
    drawn = np.zeros(len(kind), np.int64)
    for index, distribution in enumerate(lengths):
        mine = kind == index
        drawn[mine] = draw_lengths(distribution, int(mine.sum()), _generator(workload, stream, index))
    return drawn


def _turns(workload: ServingWorkload, kind: Integers, count: int) -> tuple[Integers, Integers]:
    """Return session and turn of each of ``count`` requests, session by session."""
    turns = np.ones(count, np.int64)
    for index, one in enumerate(workload.kinds):
        if one.session:
            mine = kind == index
            generator = _generator(workload, _Stream.TURNS, index)
            turns[mine] = draw_lengths(one.session.turns, int(mine.sum()), generator)
    session = np.repeat(np.arange(count), turns)[:count]
    first = np.concatenate(([0], np.cumsum(turns)[:-1]))
    return session, np.arange(len(session)) - first[session]


def _groups(
    workload: ServingWorkload, kinds: tuple[RequestClass, ...], kind: Integers
) -> tuple[Integers, Integers]:
    """Return each session's shared prefix, -1 for none, and the lengths of all prefixes."""
    group, lengths, before = np.full(len(kind), -1), [np.zeros(0, np.int64)], 0
    for index, one in enumerate(kinds):
        shared = one.prefix
        if shared is None:
            continue
        generator = _generator(workload, _Stream.GROUPS, index)
        mine = np.flatnonzero(kind == index)
        popularity = np.arange(1, shared.groups + 1) ** -float(shared.zipf)
        chosen = generator.choice(shared.groups, len(mine), p=popularity / popularity.sum())
        has = generator.random(len(mine)) < shared.share
        group[mine] = np.where(has, before + chosen, -1)
        lengths.append(
            draw_lengths(shared.length, shared.groups, _generator(workload, _Stream.PREFIXES, index))
        )
        before += shared.groups
    return group, np.concatenate(lengths)


def _conversations(
    workload: ServingWorkload, kinds: tuple[RequestClass, ...], kind: Integers, turn: Integers, prefix: Integers,
    message: Integers, output: Integers, group: Integers, lengths: Integers,
) -> Requests:  # fmt: skip
    """Return turns whose prompts are the history and a new message; a session ends early where it grows too long."""
    session = np.cumsum(turn == 0) - 1
    said = np.cumsum(message + output)
    first = np.flatnonzero(turn == 0)
    end = said - (said - message - output)[first][session] + prefix
    prompt = end - output
    limit = np.array([(one.session and one.session.maximum) or np.iinfo(np.int64).max for one in kinds])
    kept = np.flatnonzero((end <= limit[kind]) | (turn == 0))
    again = turn[kept] > 0
    count = len(kept)
    following = np.full(count, -1)
    following[:-1] = np.where(again[1:], np.arange(1, count), -1)
    pause = np.zeros(count)
    for index, one in enumerate(kinds):
        if one.session:
            mine = np.flatnonzero(again & (kind[kept] == index))
            pause[mine] = one.session.think_time
            if one.session.think == "exponential":
                pause[mine] = _generator(workload, _Stream.PAUSES, index).exponential(
                    one.session.think_time, len(mine)
                )
    nodes = len(lengths) + np.arange(count)
    before = np.where(again, nodes - 1, group[session[kept]])
    texts = Prefixes(
        np.concatenate((np.full(len(lengths), -1), before)), np.concatenate((lengths, end[kept])), nodes
    )
    arrival = np.where(again, np.inf, 0.0)
    return Requests(
        arrival, prompt[kept], output[kept], kind=kind[kept], following=following, pause=pause, texts=texts
    )
