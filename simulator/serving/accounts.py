"""Accounts of iterations: seconds by operator class and bound, FLOPs, bytes and waiting, as places of a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost import BOUNDS, Cost
from simulator.graph import Numeric
from simulator.serving.workload import Floats, Integers
from simulator.specs import OPERATOR_CLASSES, OperatorClass
from simulator.strategy import Bottleneck

Charges = tuple[tuple[int, Floats], ...]
"""Seconds (or FLOPs, bytes) of each iteration by place in an account."""
PAGE = 512
"""Token counts that are priced in one pass."""
FLOPS = len(OPERATOR_CLASSES) * len(BOUNDS)
"""Place of FLOPs in an account, after the seconds by operator class and bound; memory traffic comes next."""
TRAFFIC = FLOPS + 1
BUBBLE = TRAFFIC + 1
"""Seconds that a stage waits for others."""
HOST = OPERATOR_CLASSES.index("host") * len(BOUNDS) + BOUNDS.index("latency")
LINK = BOUNDS.index("link")
EXCHANGE = OPERATOR_CLASSES.index("expert-exchange") * len(BOUNDS) + LINK
FETCH = OPERATOR_CLASSES.index("transfer") * len(BOUNDS) + LINK
"""Place of copies from DRAM that an iteration waits for."""
SIZE = BUBBLE + 1
"""Places of an account."""


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of a run by operator class and by what binds, FLOPs and bytes of memory traffic of one GPU."""

    by_class: dict[OperatorClass, float]
    by_bottleneck: dict[Bottleneck, float]
    flops: float
    traffic: float

    @property
    def seconds(self) -> float:
        """All of it [s]."""
        return sum(self.by_class.values())


class PageTable:
    """Rows of accounts by token count, priced a page at a time when first asked for."""

    def __init__(self, price: Callable[[Floats], Floats]) -> None:
        self._price = price
        self._pages: dict[int, Floats] = {}

    def __getitem__(self, count: int) -> Floats:
        page, row = divmod(count, PAGE)
        if page not in self._pages:
            numbers = np.arange(page * PAGE, (page + 1) * PAGE, dtype=float)
            table = self._price(np.maximum(numbers, 1.0))
            if not page:
                table[0] = 0.0
            self._pages[page] = table
        prices: Floats = self._pages[page][row]
        return prices


def charge_one(account: Floats, cost: Cost, count: int) -> None:
    """Add a cost, ``count`` times, to an account."""
    parts = (cost.compute, cost.memory, cost.link, cost.latency)
    account[_place(cost) + parts.index(max(parts))] += cost.time * count


def charge_page(table: Floats, cost: Cost, flops: Numeric, traffic: Numeric, count: int) -> None:
    """Add a cost of every row, ``count`` times, with its FLOPs and bytes, to a page of accounts."""
    rows = len(table)
    table[np.arange(rows), _place(cost) + _bound(cost, rows)] += cost.time * count
    table[:, FLOPS] += flops * count
    table[:, TRAFFIC] += traffic * count


def charges(cost: Cost, count: int, steps: int) -> list[tuple[int, Floats]]:
    """Return the seconds of a cost, ``count`` times, in each of some steps, by place."""
    time = np.full(steps, cost.time) if np.ndim(cost.time) == 0 else np.asarray(cost.time)
    time = time * count
    bound = _bound(cost, steps)
    first = int(bound[0])
    if (bound == first).all():
        return [(_place(cost) + first, time)]
    return [(_place(cost) + i, np.where(bound == i, time, 0.0)) for i in np.unique(bound).tolist()]


def _place(cost: Cost) -> int:
    return OPERATOR_CLASSES.index(cost.operator_class) * len(BOUNDS)


def _bound(cost: Cost, rows: int) -> Integers:
    """Index of the longest part, row by row; the first of them where they are equal."""
    longest: Any = cost.compute
    index = np.zeros(rows, np.int64)
    for place, part in enumerate((cost.memory, cost.link, cost.latency), start=1):
        if isinstance(part, np.ndarray) or part > 0.0:
            above = part > longest
            index = np.where(above, place, index)
            longest = np.where(above, part, longest)
    return index
