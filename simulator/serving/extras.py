"""What techniques add to an iteration: work of their own beside that of the model, charged to the same account."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from simulator.cost import BOUNDS, Cost, CostModel
from simulator.graph import ModelGraph, Work
from simulator.serving.accounts import FLOPS, SIZE, TRAFFIC, Account
from simulator.serving.iteration import Steps
from simulator.serving.step_time import StepPricer
from simulator.serving.workload import Floats, Integers
from simulator.specs import OPERATOR_CLASSES


class Extra(Protocol):
    """Work of one technique."""

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Return seconds (FLOPs, bytes) of each of some decode steps by place in an account."""
        ...

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """Return the account of what an iteration with prompts has besides, which takes so long without [s]."""
        ...


class ExtendedPricer:
    """A pricer with further work in each iteration; a :class:`~simulator.serving.iteration.Pricer`."""

    def __init__(self, base: StepPricer, extras: Sequence[Extra]) -> None:
        self.base, self.extras = base, tuple(extras)
        self.model, self.numerics, self.cost, self.layout = base.model, base.numerics, base.cost, base.layout
        self.partition, self.span, self.host = base.partition, base.span, base.host

    def decode(self, contexts: Integers, steps: int, queries: int = 1) -> Steps:
        """Price iterations of the same sequences; see :meth:`StepPricer.decode`."""
        priced = self.base.decode(contexts, steps, queries)
        seconds, varying = priced.seconds, priced.varying
        for extra in self.extras:
            for place, values in extra.decode(contexts, steps, queries):
                if place < FLOPS:
                    seconds = seconds + values
                varying = (*varying, (place, values))
        return Steps(seconds, priced.fixed, varying)

    def mixed(
        self, new: Integers, cached: Integers, contexts: Integers, sampled: int, queries: int = 1
    ) -> Steps:
        """Price an iteration with prompts; see :meth:`StepPricer.mixed`."""
        priced = self.base.mixed(new, cached, contexts, sampled, queries)
        fixed, seconds = priced.fixed, priced.seconds
        for extra in self.extras:
            own = extra.mixed(new, cached, contexts, float(priced.seconds[0]))
            fixed, seconds = fixed + own, seconds + own[:FLOPS].sum()
        return Steps(seconds, fixed, priced.varying)

    def graph(self) -> ModelGraph:
        """The graph of one rank for one token."""
        return self.base.graph()

    def account(self, vector: Floats) -> Account:
        """Read an account; see :meth:`StepPricer.account`."""
        return self.base.account(vector)


def charge(cost: CostModel, works: Iterable[tuple[Work, float]]) -> Floats:
    """Return the account of works, each ``count`` times."""
    account = np.zeros(SIZE)
    for work, count in works:
        price = cost.price(work)
        account[_place(price)] += float(price.time) * count
        account[FLOPS] += float(work.flops) * count
        account[TRAFFIC] += float(work.bytes) * count
    return account


def charge_steps(
    cost: CostModel, works: Iterable[tuple[Work, float]], steps: int
) -> tuple[tuple[int, Floats], ...]:
    """Return what works whose sizes are arrays of steps add to an account in each step; what binds the middle one binds all."""
    found: list[tuple[int, Floats]] = []
    for work, count in works:
        price = cost.price(work)
        middle = [float(np.broadcast_to(p, steps)[steps // 2]) for p in _parts(price)]
        place = OPERATOR_CLASSES.index(price.operator_class) * len(BOUNDS) + middle.index(max(middle))
        for where, values in ((place, price.time), (FLOPS, work.flops), (TRAFFIC, work.bytes)):
            found.append((where, np.broadcast_to(np.asarray(values, float) * count, steps)))
    return tuple(found)


def as_steps(account: Floats, steps: int) -> tuple[tuple[int, Floats], ...]:
    """Return an account that every one of some steps has."""
    return tuple((int(place), np.full(steps, account[place])) for place in np.flatnonzero(account))


def _parts(cost: Cost) -> tuple[Any, ...]:
    return cost.compute, cost.memory, cost.link, cost.latency


def _place(cost: Cost) -> int:
    parts = [float(part) for part in _parts(cost)]
    return OPERATOR_CLASSES.index(cost.operator_class) * len(BOUNDS) + parts.index(max(parts))
