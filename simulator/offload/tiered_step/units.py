"""What a step is made of: embedding, sublayers and head, each with its seconds, bytes and ways to keep less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import Breakdown, CostModel
from simulator.graph import Axis, Block, ModelGraph, Operator
from simulator.graph.graph import Recompute
from simulator.offload.columns import COLUMNS, Price
from simulator.specs import Span
from simulator.strategy import Bottleneck

BOUND: Mapping[str, Bottleneck] = {"compute": "compute", "memory": "memory", "latency": "latency"}
"""What binds kernels, as the cost model says it; all else is a link between GPUs."""


@dataclass(frozen=True, slots=True)
class Level:
    """A way to keep less of a unit: operators that run again, what is still kept, what that costs in the backward pass."""

    again: frozenset[str]
    saved: float
    """Bytes that wait for the backward pass."""
    price: Price
    seconds: float
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Unit:
    """What computes, moves and is updated at once, for one micro-batch on one GPU."""

    name: str
    kind: int
    """Units of one kind are alike: only their names differ."""
    parameters: float
    """Elements on this GPU that are trained and updated."""
    borrowed: float
    """Elements of other units that its passes need (a tied head: the table)."""
    forward: Price
    backward: Price
    levels: tuple[Level, ...]
    """From keeping everything on; the first keeps what the strategy's own recomputation leaves."""
    whole: float
    """Bytes that all its operators save, none computed again."""
    workspace: float
    """Most bytes of tensors alive at once inside a pass."""
    sublayer: bool
    """Whether it belongs to a layer; embedding and head do not."""

    @property
    def needed(self) -> float:
        """Elements that its passes need."""
        return self.parameters + self.borrowed


def units_of(
    graph: ModelGraph,
    cost: CostModel,
    spans: Mapping[Axis, Span],
    *,
    recompute: Recompute,
    levels: bool,
    tiles: int,
    table: float,
) -> tuple[tuple[Unit, ...], int]:
    """Return the units of a model in forward order, and how many of them make up a layer.

    Parameters
    ----------
    graph : ModelGraph
        Of one micro-batch on one GPU.
    cost, spans
        Cost model of the GPU, and what its groups span.
    recompute : str
        ``none``, ``selective`` or ``full``. A layer that runs again as a whole is one unit; else attention and MLP are one each.
    levels : bool
        Whether to list ways to recompute more, for activations that are balanced.
    tiles : int
        Parts of the tokens that the head takes one after another.
    table : float
        Elements of the embedding that a tied head reads; 0 where it has weights of its own.
    """
    pricing = _Pricing(cost, spans)
    parts = [[block] if recompute == "full" else _sublayers(block) for block in graph.blocks]
    first: dict[tuple[int, int], Unit] = {}
    for index, blocks in enumerate(parts):
        for position, block in enumerate(blocks):
            first[index, position] = pricing.layer(block, len(first) + 1, recompute, levels)
    found = [pricing.end(graph.embedding, 0, 1, 0.0)]
    for number, index in enumerate(graph.layers):
        for position in range(len(parts[index])):
            unit = first[index, position]
            found.append(replace(unit, name=f"{unit.name} {number}"))
    found.append(pricing.end(graph.head, len(first) + 1, tiles, table))
    return tuple(found), max(len(blocks) for blocks in parts)


def priced(parts: Iterable[Breakdown]) -> Price:
    """Return a sum of breakdowns as a price of one row."""
    total = sum(parts, start=Breakdown())
    row = np.zeros((1, len(COLUMNS)))
    for bound, seconds in total.by_bound.items():
        row[0, COLUMNS.index(BOUND.get(bound, "network"))] += float(seconds)
    for name, seconds in total.by_class.items():
        row[0, len(COLUMNS) - 1 - COLUMNS[::-1].index(name)] += float(seconds)
    return Price(row)


class _Pricing:
    def __init__(self, cost: CostModel, spans: Mapping[Axis, Span]) -> None:
        self.cost, self.spans = cost, spans

    def layer(self, block: Block, kind: int, recompute: Recompute, levels: bool) -> Unit:
        forward = {op.name: self.cost.total(op.forward, self.spans) for op in block.operators}
        own = frozenset(op.name for op in block.recomputed(recompute))
        ways = [_level(block, own, float(block.saved_bytes(recompute)), forward)]
        if levels:
            ways += _greedy(block, forward)
        return self._unit(block, kind, forward.values(), tuple(ways), 1, 0.0, sublayer=True)

    def end(self, block: Block, kind: int, tiles: int, table: float) -> Unit:
        forward = [self.cost.total(op.forward, self.spans) for op in block.operators]
        way = _level(block, frozenset(), float(block.saved_bytes()) / tiles, {})
        return self._unit(block, kind, forward, (way,), tiles, table, sublayer=False)

    def _unit(
        self,
        block: Block,
        kind: int,
        forward: Iterable[Breakdown],
        levels: tuple[Level, ...],
        tiles: int,
        table: float,
        *,
        sublayer: bool,
    ) -> Unit:
        backward = [
            self.cost.total(works, self.spans)
            for works in (block.works("input_gradient"), block.works("weight_gradient"))
        ]
        return Unit(
            block.name, kind, float(block.parameters), table, priced(forward), priced(backward), levels,
            float(block.saved_bytes()) / tiles, block.live_bytes() / tiles, sublayer,
        )  # fmt: skip


def _level(block: Block, again: frozenset[str], saved: float, forward: Mapping[str, Breakdown]) -> Level:
    price = priced(forward[name] for name in forward if name in again)
    flops = sum(float(work.flops) for op in block.operators if op.name in again for work in op.forward)
    return Level(again, saved, price, price.time(0), flops)


def _greedy(block: Block, forward: Mapping[str, Breakdown]) -> list[Level]:
    """Drop tensors one operator after another, those first whose recomputation frees the most bytes a second."""
    found: list[Level] = []
    again: frozenset[str] = frozenset()
    saved = float(block.saved_bytes())
    rest = [op.name for op in block.operators]
    while rest:
        sizes = {name: float(block.saved_bytes(again | {name})) for name in rest}
        worth = {
            name: (saved - size) / max(float(forward[name].time), 1e-12)
            for name, size in sizes.items()
            if size < saved
        }
        if not worth:
            break
        best = max(worth, key=lambda name: worth[name])
        again, saved = again | {best}, sizes[best]
        rest.remove(best)
        found.append(_level(block, again, saved, forward))
    return found


def _sublayers(block: Block) -> list[Block]:
    """Cut a layer behind its attention; one whose sublayers run side by side stays whole."""
    names = [op.name for op in block.operators]
    attends = [i for i, name in enumerate(names) if name.startswith("attention.")]
    cut = attends[-1] + 1 if attends else len(names)
    if cut >= len(names) or any(not name.startswith("attention.") for name in names[:cut]):
        return [block]
    first, second = block.operators[:cut], block.operators[cut:]
    return [
        replace(block, name=f"{block.name} attention", operators=first),
        replace(block, name=f"{block.name} MLP", operators=second, input=_entering(second)),
    ]


def _entering(operators: Sequence[Operator]) -> str:
    return operators[0].inputs[0]
