"""The best choice of what to keep, compute again or send to the host: a small integer program (HiGHS, through scipy).

Within a block (Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*; Jain et al. 2020, *Checkmate*, section 4): a
variable for each operator (computed again or not), each tensor (kept or not) and, with a link to the host, each kept tensor once
more (sent away or not). Over blocks: how many layers of a kind take which of the block's best trade-offs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.graph import Axis, Block, Operator
from simulator.graph.graph import Numerics, Recompute
from simulator.training.liveness import liveness

LEVELS = 24
"""Byte budgets of a block that trade-offs are looked for at, evenly from what it keeps without recomputation to the least."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to treat the layers of a kind."""

    again: frozenset[str]
    """Operators that are computed again."""
    offloaded: frozenset[str]
    """Tensors that are sent to the host after the forward pass and fetched for the backward pass."""
    saved: float
    """Bytes that one micro-batch keeps on the device."""
    working: float
    """Bytes beyond that at the fullest moment of the backward pass."""
    seconds: float
    """Added to a micro-batch: operators run again, transfers that nothing hides."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How many layers of each kind are treated in which way."""

    options: tuple[tuple[tuple[Option, int], ...], ...]
    """By kind: an option and how many layers take it, most recomputation first."""
    seconds: float
    """Added to a micro-batch."""
    bytes: float
    """Held at once, all micro-batches and the fullest moment together."""
    fits: bool
    """Whether that is within the budget; if nothing is, this is the least there is."""


def choose(
    blocks: Sequence[tuple[Block, int]],
    seconds: Sequence[Mapping[str, float]],
    budget: float,
    *,
    held: float = 1.0,
    working: float = 0.0,
    link: float | None = None,
    numerics: Numerics = Numerics(),
    groups: Mapping[Axis, int] | None = None,
) -> Choice:
    """Choose for each layer what is computed again so that a budget holds and the least time is added.

    Parameters
    ----------
    blocks : sequence of (Block, int)
        Kinds of layers and how many of each a stage holds.
    seconds : sequence of mappings
        For each kind the seconds of every operator's forward pass [s].
    budget : float
        Bytes for activations and what passes work with [B].
    held : float
        Micro-batches that are held at once.
    working : float
        Bytes that passes need beyond what is saved anyway, such as those of the loss [B].
    link : float, optional
        Bandwidth to the host each way [B/s]; nothing is sent there if absent.
    numerics, groups
        As for :func:`simulator.training.liveness.liveness`.
    """
    kinds = [
        options(block, times, link=link, numerics=numerics, groups=groups)
        for (block, _), times in zip(blocks, seconds, strict=True)
    ]
    counts = [count for _, count in blocks]
    chosen = _counts(kinds, counts, budget, held, working)
    fits = chosen is not None
    if chosen is None:
        chosen = [[0] * len(kind) for kind in kinds]
        for place, kind in enumerate(kinds):
            least = min(
                range(len(kind)), key=lambda i: kind[i].saved * held * counts[place] + kind[i].working
            )
            chosen[place][least] = counts[place]
    taken = tuple(
        tuple(
            sorted(
                ((option, n) for option, n in zip(kind, numbers, strict=True) if n),
                key=lambda pair: -len(pair[0].again),
            )
        )
        for kind, numbers in zip(kinds, chosen, strict=True)
    )
    pairs = [pair for kind in taken for pair in kind]
    total = held * sum(option.saved * n for option, n in pairs)
    total += max([working, *(option.working for option, _ in pairs)])
    return Choice(taken, sum(option.seconds * n for option, n in pairs), total, fits)


def options(
    block: Block,
    seconds: Mapping[str, float],
    *,
    link: float | None = None,
    numerics: Numerics = Numerics(),
    groups: Mapping[Axis, int] | None = None,
) -> tuple[Option, ...]:
    """Return the trade-offs of a block that no other one beats in bytes and seconds; nothing, selective and full among them."""
    names = frozenset(op.name for op in block.operators)
    strategies: tuple[Recompute, ...] = ("none", "selective", "full")
    fixed = {frozenset(op.name for op in block.recomputed(how)) for how in strategies}

    def option(again: frozenset[str], away: frozenset[str] = frozenset(), exposed: float = 0.0) -> Option:
        found = liveness(block, again, numerics=numerics, groups=groups)
        sent = sum(float(found.by_tensor[name]) for name in away)
        added = sum(seconds[name] for name in again if name in names) + exposed
        return Option(again, away, float(found.saved) - sent, float(found.backward_peak), added)

    found = [option(again) for again in sorted(fixed, key=lambda names: (len(names), sorted(names)))]
    if not block.trains or block.reversible:
        return tuple(found[:1])
    most = max(one.saved for one in found)
    for level in range(LEVELS):
        solved = choose_operators(block, seconds, most * level / LEVELS, link=link)
        if solved is not None:
            found.append(option(*solved))
    return _undominated(found)


def choose_operators(
    block: Block, seconds: Mapping[str, float], budget: float, *, link: float | None = None
) -> tuple[frozenset[str], frozenset[str], float] | None:
    """Choose the operators of one block that are computed again so that it keeps at most ``budget`` bytes.

    Parameters
    ----------
    block : Block
        Sizes must be numbers.
    seconds : mapping
        Seconds of every operator's forward pass [s].
    budget : float
        Bytes that one micro-batch may keep [B].
    link : float, optional
        Bandwidth to the host each way [B/s]; transfers hide beside the block's forward pass, and beside its backward pass,
        which is taken to last as long.

    Returns
    -------
    tuple or None
        Operators, tensors sent to the host, seconds of transfers that nothing hides; None where no choice is within the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = _Program(block, seconds, link)
    matrix, lower = program.constraints()
    sizes = program.bytes_row()
    result = milp(
        program.objective(),
        constraints=[
            LinearConstraint(matrix, lower, np.inf),
            LinearConstraint(sizes, -np.inf, budget / program.scale),
        ],
        integrality=program.integrality(),
        bounds=Bounds(0.0, program.upper()),
    )
    if result.x is None:
        return None
    return program.read(result.x)


class _Program:
    """Variables in order: operators run again, tensors kept, tensors sent away, seconds exposed forward and backward."""

    def __init__(self, block: Block, seconds: Mapping[str, float], link: float | None) -> None:
        self.block, self.link = block, link
        self.operators = [op for op in block.operators if not op.detached]
        wanted = {name for op in block.operators for name in (*op.saves, *op.inputs)}
        self.tensors = [name for name in block.tensors if name in wanted]
        self.row = {op.name: place for place, op in enumerate(self.operators)}
        self.column = {name: len(self.operators) + place for place, name in enumerate(self.tensors)}
        self.writers: dict[str, list[Operator]] = {}
        for op in block.operators:
            for name in op.outputs:
                self.writers.setdefault(name, []).append(op)
        sizes = np.array([float(block.tensors[name].size) for name in self.tensors])
        self.scale = float(sizes.sum()) or 1.0
        self.sizes = sizes / self.scale
        self.seconds = np.array([seconds[op.name] for op in self.operators])
        self.beside = float(sum(seconds[op.name] for op in block.operators))
        self.unit = self.beside or 1.0

    @property
    def count(self) -> int:
        return len(self.operators) + 2 * len(self.tensors) + 2

    def objective(self) -> Any:
        # of equal times the one that keeps less
        tie = 1e-6 * self.sizes
        return np.concatenate([self.seconds / self.unit, tie, 0.0 * tie, [1.0, 1.0]])

    def bytes_row(self) -> Any:
        return np.concatenate([0.0 * self.seconds, self.sizes, -self.sizes, [0.0, 0.0]])[None, :]

    def integrality(self) -> Any:
        return np.concatenate([np.ones(self.count - 2), [0, 0]])

    def upper(self) -> Any:
        away = np.full(len(self.tensors), 0.0 if self.link is None else 1.0)
        return np.concatenate([np.ones(len(self.operators) + len(self.tensors)), away, [np.inf, np.inf]])

    def constraints(self) -> tuple[Any, Any]:
        """Rows ``a x >= b``."""
        rows: list[Any] = []
        lower: list[float] = []

        def at_least(bound: float, *terms: tuple[int, float]) -> None:
            row = np.zeros(self.count)
            for place, factor in terms:
                row[place] += factor
            rows.append(row)
            lower.append(bound)

        for op in self.block.operators:
            for name in op.saves:
                self._needed(name, at_least, 1.0)
            for name in op.inputs if op.name in self.row else ():
                self._needed(name, at_least, 0.0, (self.row[op.name], -1.0))
            for name in op.saves:
                if any(writer.core and writer is not op for writer in self.writers.get(name, ())):
                    self._stays(name, op, at_least)
        tensors = len(self.tensors)
        for place in range(tensors):
            kept = len(self.operators) + place
            at_least(0.0, (kept, 1.0), (kept + tensors, -1.0))
        if self.link is not None:
            sent = [
                (len(self.operators) + tensors + place, -float(size) * self.scale / self.link / self.unit)
                for place, size in enumerate(self.sizes)
            ]
            for place in (self.count - 2, self.count - 1):
                at_least(-self.beside / self.unit, (place, 1.0), *sent)
        return np.array(rows), np.array(lower)

    def _needed(self, name: str, at_least: Any, bound: float, *terms: tuple[int, float]) -> None:
        """Keep a tensor unless every operator that writes it runs again (a cast copy: or what it is cast from is dropped)."""
        writers = self.writers.get(name, [])
        if not writers:
            at_least(bound, (self.column[name], 1.0), *terms)
        for writer in writers:
            again = [(self.row[writer.name], 1.0)] if writer.name in self.row else []
            sources = self.writers.get(writer.inputs[0], []) if name == writer.cast_copy else []
            dropped = [[(self.row[one.name], 1.0)] for one in sources if one.name in self.row]
            for more in dropped or [[]]:
                at_least(bound, (self.column[name], 1.0), *again, *more, *terms)

    def _stays(self, name: str, reader: Operator, at_least: Any) -> None:
        """The output of a repeated attention core stays for operators that do not run again themselves."""
        own = [(self.row[reader.name], 1.0)] if reader.name in self.row else []
        at_least(1.0, (self.column[name], 1.0), *own)

    def read(self, x: Any) -> tuple[frozenset[str], frozenset[str], float]:
        again = frozenset(op.name for op, value in zip(self.operators, x, strict=False) if value > 0.5)
        start = len(self.operators) + len(self.tensors)
        away = frozenset(name for name, value in zip(self.tensors, x[start:], strict=False) if value > 0.5)
        return again, away & frozenset(self.block.saved(again)), float(x[-1] + x[-2]) * self.unit


def _undominated(found: Sequence[Option]) -> tuple[Option, ...]:
    """Drop options that another one beats or equals in bytes kept, bytes worked with and seconds."""
    best: list[Option] = []
    for one in sorted(
        found, key=lambda option: (option.seconds, option.saved, option.working, len(option.again))
    ):
        if not any(other.saved <= one.saved and other.working <= one.working for other in best):
            best.append(one)
    return tuple(best)


def _counts(
    kinds: Sequence[Sequence[Option]], counts: Sequence[int], budget: float, held: float, working: float
) -> list[list[int]] | None:
    """How many layers take each option: integers that minimise seconds within the budget, the fullest moment included."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    flat = [(kind, option) for kind, found in enumerate(kinds) for option in found]
    number, unit = len(flat), max(budget, 1.0)
    saved = np.array([held * option.saved for _, option in flat]) / unit
    seconds = np.array([option.seconds for _, option in flat])
    scale = float(seconds.max()) or 1.0
    # counts, whether an option is used at all, the fullest moment
    objective = np.concatenate([seconds / scale + 1e-9 * saved, np.zeros(number), [1e-9]])
    rows = [np.concatenate([saved, np.zeros(number), [1.0]])]
    lower, upper = [-np.inf], [1.0]
    for kind, count in enumerate(counts):
        rows.append(np.concatenate([[float(k == kind) for k, _ in flat], np.zeros(number + 1)]))
        lower.append(count)
        upper.append(count)
    for place, (kind, option) in enumerate(flat):
        used, full = np.zeros(2 * number + 1), np.zeros(2 * number + 1)
        used[place], used[number + place] = -1.0, counts[kind]
        full[number + place], full[-1] = -option.working / unit, 1.0
        rows += [used, full]
        lower += [0.0, 0.0]
        upper += [np.inf, np.inf]
    bounds = Bounds(
        np.concatenate([np.zeros(2 * number), [working / unit]]),
        np.concatenate([[float(counts[k]) for k, _ in flat], np.ones(number), [np.inf]]),
    )
    result = milp(
        objective, constraints=LinearConstraint(np.array(rows), np.array(lower), np.array(upper)),
        integrality=np.concatenate([np.ones(2 * number), [0]]), bounds=bounds,
    )  # fmt: skip
    if result.x is None:
        return None
    numbers = iter(np.rint(result.x[:number]).astype(int).tolist())
    return [[next(numbers) for _ in found] for found in kinds]
