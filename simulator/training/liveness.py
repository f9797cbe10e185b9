"""What a micro-batch holds while it passes through a block: operator by operator, forward and backward.

A tensor lives from the operator that writes it to the last one that reads it, or, where the backward pass needs it, until that
has run. Beside tensors there are buffers that an operator needs while it runs: inputs gathered over a group, partial sums before
they are scattered, tokens sorted for an exchange, weight gradients before they are added to their sums. Sizes may be arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from simulator.graph import Attention, Axis, Block, Collective, Elementwise, Matmul, Numeric, Operator, Work
from simulator.graph.graph import Numerics

ACCUMULATOR_BYTES = 4.0
"""Fused attention sums the gradient of queries over blocks of keys in fp32 (Dao 2023, algorithm 2)."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """Bytes of one micro-batch in one block.

    Peaks are beyond ``saved``, so that blocks compose (:func:`chain`): in the forward pass blocks before hold what they saved, in
    the backward pass blocks behind have let go.
    """

    saved: Numeric
    """Kept from the forward pass until the backward pass."""
    forward_peak: Numeric
    """Most bytes beyond ``saved`` in the forward pass."""
    backward_peak: Numeric
    """The same in the backward pass: gradients of activations, tensors computed again, gradients of weights, gathered inputs."""
    between: Numeric
    """Kept from the input gradient until the weight gradient where these run apart: inputs and output gradients of products."""
    by_tensor: Mapping[str, Numeric] = field(default_factory=dict, repr=False)
    """``saved`` by tensor."""
    freed: Mapping[str, Numeric] = field(default_factory=dict, repr=False)
    """What of ``saved`` each operator's backward pass lets go, in execution order."""
    forward_moments: tuple[Mapping[str, Numeric], ...] = field(default=(), repr=False)
    """All that lives in the block while each operator runs forward, in execution order."""
    backward_moments: tuple[Mapping[str, Numeric], ...] = field(default=(), repr=False)
    """The same backward, repeated operators among them."""
    output: str = ""
    """The tensor that goes on to the next block."""

    @property
    def forward_holders(self) -> dict[str, Numeric]:
        """All that lives in the block at the fullest moment of the forward pass, largest first [B]."""
        return _fullest(self.forward_moments)

    @property
    def backward_holders(self) -> dict[str, Numeric]:
        """The same of the backward pass [B]."""
        return _fullest(self.backward_moments)


def liveness(
    block: Block,
    again: frozenset[str] = frozenset(),
    *,
    numerics: Numerics = Numerics(),
    groups: Mapping[Axis, int] | None = None,
    placeholders: bool = False,
) -> Liveness:
    """Return what one micro-batch keeps in a block and needs at the fullest moments of its passes.

    Parameters
    ----------
    block : Block
        Operators and tensors of one rank [B].
    again : frozenset of str
        Operators that are computed again: each run of consecutive ones before the first backward operator that needs it.
    numerics : Numerics
        Whether products add to the sums of gradients, or write a gradient that lives while its operator runs.
    groups : mapping, optional
        Size of the group of each axis; a collective in a group of one needs no buffer. All are larger if absent.
    placeholders : bool
        Whether products that add to the sums leave an empty gradient of their own for the autograd engine all the same
        (Megatron-Core's own linear layers; those of Transformer Engine share one a shape, :func:`gradient_placeholders`).
    """
    saved = block.saved(again) if again else block.saved()
    buffers = _Buffers(numerics, groups, placeholders)
    total = _total(saved.values())
    forward = _forward(block, saved, buffers)
    output = "".join(_leaving(block))
    if not block.trains:
        return Liveness(
            total, _excess(forward, total), 0.0, 0.0, saved, forward_moments=forward, output=output
        )
    walk = _Backward(block, saved, again, buffers)
    walk.run()
    backward = tuple(walk.moments)
    return Liveness(
        total, _excess(forward, total), _excess(backward, total), _between(block), saved, walk.freed, forward, backward, output
    )  # fmt: skip


def chain(parts: Iterable[Liveness]) -> Liveness:
    """Return blocks one after the other (in forward order) as one: what they keep together, the fullest moment of any."""
    before: Numeric = 0.0
    between: Numeric = 0.0
    forward: list[Numeric] = []
    backward: list[Numeric] = []
    by_tensor: dict[str, Numeric] = {}
    for part in parts:
        before = before + part.saved
        between = between + part.between
        forward.append(before + part.forward_peak)
        backward.append(before + part.backward_peak)
        for name, size in part.by_tensor.items():
            by_tensor[name] = by_tensor.get(name, 0.0) + size
    if not forward:
        return Liveness(0.0, 0.0, 0.0, 0.0)
    return Liveness(
        before, _largest(forward) - before, _largest(backward) - before, between, by_tensor
    )  # fmt: skip


def gradient_placeholders(blocks: Iterable[Block], numerics: Numerics) -> dict[str, Numeric]:
    """Return the empty gradients that fused accumulation keeps for the autograd engine [B], by first operator of a shape.

    Where products add to the sums of gradients themselves, autograd still wants a gradient of each weight. Transformer Engine
    hands it one tensor for each shape, in the format of activations, and never frees it (``get_dummy_wgrad``).
    """
    found: dict[tuple[object, ...], tuple[str, Numeric]] = {}
    if not numerics.fused_accumulation:
        return {}
    for block in blocks:
        for op in block.operators:
            for work in op.weight_gradient:
                if isinstance(work, Matmul):
                    shape = (*np.ravel(np.asarray(work.m)).tolist(), *np.ravel(np.asarray(work.n)).tolist())
                    found.setdefault(shape, (op.name, work.m * work.n * numerics.activation_bytes))
    return dict(found.values())


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What an operator needs beside its tensors while it runs."""

    numerics: Numerics
    groups: Mapping[Axis, int] | None
    placeholders: bool

    def forward(self, op: Operator) -> dict[str, Numeric]:
        return self._exchanged(op.name, op.forward)

    def backward(self, op: Operator) -> dict[str, Numeric]:
        found = self._exchanged(op.name, op.backward)
        for work in op.input_gradient:
            if isinstance(work, Attention):
                size = work.batch * work.heads * work.queries * work.qk_dim * ACCUMULATOR_BYTES
                found[f"workspace of {op.name}"] = size
        if op.weight_gradient:
            found[f"weight gradient of {op.name}"] = self._weight_gradient(op)
        return found

    def _weight_gradient(self, op: Operator) -> Numeric:
        products = [work for work in op.weight_gradient if isinstance(work, Matmul)]
        width = self.numerics.activation_bytes
        if not products:
            return op.trained * width
        if self.numerics.fused_accumulation and not self.placeholders:
            return 0.0
        return _total(work.m * work.n * work.count * width for work in products)

    def _exchanged(self, name: str, works: Sequence[Work]) -> dict[str, Numeric]:
        found: dict[str, Numeric] = {}
        for work in works:
            if not isinstance(work, Collective) or work.kind == "all-reduce":
                continue
            if self.groups is None or self.groups.get(work.axis, 1) > 1:
                key = f"{work.kind} buffer of {name}"
                found[key] = found.get(key, 0.0) + work.size
        return found


Moment = Mapping[str, Numeric]


def _forward(block: Block, saved: Mapping[str, Numeric], buffers: _Buffers) -> tuple[Moment, ...]:
    live = {name: block.tensors[name].size for name in _entering(block)}
    return tuple(_run(block, block.operators, live, set(saved) | set(_leaving(block)), buffers))


def _run(
    block: Block, operators: Sequence[Operator], live: dict[str, Numeric], kept: set[str], buffers: _Buffers
) -> list[Moment]:
    """Run operators forward over what lives, dropping what none of the following reads and nobody keeps."""
    moments: list[Moment] = []
    for index, op in enumerate(operators):
        live.update({name: block.tensors[name].size for name in op.outputs})
        moments.append({**live, **buffers.forward(op)})
        wanted = kept.union(*(later.inputs for later in operators[index + 1 :]))
        for name in [name for name in live if name not in wanted]:
            del live[name]
    return moments


class _Backward:
    """One walk from the last operator to the first."""

    def __init__(
        self, block: Block, saved: Mapping[str, Numeric], again: frozenset[str], buffers: _Buffers
    ) -> None:
        self.block, self.saved, self.buffers = block, saved, buffers
        self.live: dict[str, Numeric] = dict(saved)
        if block.reversible:
            self.live[block.input] = block.tensors[block.input].size
        self.gradients = _Gradients()
        self.moments: list[Moment] = []
        self.freed: dict[str, Numeric] = {}
        self.remaining: Sequence[Operator] = block.operators
        names = {op.name for op in block.recomputed(again)}
        self.segments = _segments(block, names)

    def run(self) -> None:
        operators = self.block.operators
        for name in _leaving(self.block):
            self.gradients.write(name, self.block.tensors[name].size)
        for index in range(len(operators) - 1, -1, -1):
            op = operators[index]
            self.remaining = operators[: index + 1]
            for name in op.saves if op.backward else ():
                self._bring_back(name)
            if op.backward:
                self._step(op)
            self.gradients.consume(op)
            self._drop(op, operators[:index])

    def _step(self, op: Operator) -> None:
        added = {} if not op.input_gradient else self.gradients.inputs(op, self.block)
        extra = {**self.buffers.backward(op), **added}
        self.moments.append({**self.live, **self.gradients.held(), **extra})

    def _bring_back(self, name: str) -> None:
        """Run the segment that writes a tensor once more, after those that write what it reads."""
        if name in self.live:
            return
        segment = next((part for part in self.segments if any(name in op.outputs for op in part)), None)
        if segment is None:
            self._cast_again(name)
            return
        self.segments.remove(segment)
        written = {out for op in segment for out in op.outputs}
        for op in segment:
            for source in op.inputs:
                if source not in written:
                    self._bring_back(source)
        kept = set(self.live) | self._needed(self.remaining)
        held = self.gradients.held()
        for moment in _run(self.block, segment, self.live, kept, self.buffers):
            self.moments.append({**moment, **held})

    def _cast_again(self, name: str) -> None:
        for op in self.block.operators:
            if name == op.cast_copy:
                self._bring_back(op.inputs[0])
                self.live[name] = self.block.tensors[name].size

    def _needed(self, operators: Sequence[Operator]) -> set[str]:
        found = {name for op in operators if op.backward for name in op.saves}
        return found | {name for part in self.segments for op in part for name in op.inputs}

    def _drop(self, op: Operator, before: Sequence[Operator]) -> None:
        # whoever needs what a segment writes comes behind its first operator
        self.segments = [part for part in self.segments if part[0] is not op]
        needed = self._needed(before)
        gone = [name for name in self.live if name not in needed]
        freed = _total(self.saved.get(name, 0.0) for name in gone)
        if np.any(np.asarray(freed) > 0):
            self.freed[op.name] = freed
        for name in gone:
            del self.live[name]


class _Gradients:
    """Gradients of activations; several tensors may share one where an operator merely passes it on."""

    def __init__(self) -> None:
        self._buffers: list[tuple[Numeric, set[str]]] = []

    def held(self) -> dict[str, Numeric]:
        return {f"gradient of {min(names)}": size for size, names in self._buffers}

    def write(self, name: str, size: Numeric) -> None:
        self._buffers.append((size, {name}))

    def inputs(self, op: Operator, block: Block) -> dict[str, Numeric]:
        """Write the gradients of an operator's inputs; returns what the sum of two of one tensor needs meanwhile."""
        added: dict[str, Numeric] = {}
        constant = {out for one in block.operators if not one.backward for out in one.outputs}
        passed_on = all(isinstance(work, Elementwise) for work in op.input_gradient)
        for place, name in enumerate(dict.fromkeys(op.inputs)):
            if name in op.outputs or name in constant:
                continue
            size = block.tensors[name].size
            source = self._of(op.outputs[0])
            shares = passed_on and source is not None and np.array_equal(source[0], size)
            if self._of(name) is not None:
                added[f"second gradient of {name}"] = size
            elif source is not None and shares and (place > 0 or not op.saves):
                source[1].add(name)
            else:
                self.write(name, size)
        return added

    def consume(self, op: Operator) -> None:
        gone = set(op.outputs) - set(op.inputs)
        self._buffers = [(size, names - gone) for size, names in self._buffers if names - gone]

    def _of(self, name: str) -> tuple[Numeric, set[str]] | None:
        return next((buffer for buffer in self._buffers if name in buffer[1]), None)


def _segments(block: Block, names: set[str]) -> list[list[Operator]]:
    """Runs of consecutive operators of a set."""
    found: list[list[Operator]] = []
    previous = False
    for op in block.operators:
        inside = op.name in names
        if inside and previous:
            found[-1].append(op)
        elif inside:
            found.append([op])
        previous = inside
    return found


def _between(block: Block) -> Numeric:
    kept: dict[str, Numeric] = {}
    for op in block.operators:
        if op.weight_gradient:
            kept.update({name: block.tensors[name].size for name in op.saves})
            kept.update(
                {
                    f"gradient of {name}": block.tensors[name].size
                    for name in op.outputs
                    if name != op.cast_copy
                }
            )
    return _total(kept.values())


def _entering(block: Block) -> list[str]:
    """Tensors that no operator writes: the block's input and what comes from elsewhere."""
    written = {name for op in block.operators for name in op.outputs}
    return [name for op in block.operators for name in op.inputs if name not in written]


def _leaving(block: Block) -> tuple[str, ...]:
    return block.operators[-1].outputs[:1] if block.operators else ()


def _excess(moments: Sequence[Moment], saved: Numeric) -> Numeric:
    found: Numeric = np.maximum(
        _largest([_total(moment.values()) for moment in moments] or [0.0]) - saved, 0.0
    )
    return float(found) if np.ndim(found) == 0 else found


def _fullest(moments: Sequence[Moment]) -> dict[str, Numeric]:
    """Holders of the fullest moment (of the largest sum over an array's cases), largest first."""
    if not moments:
        return {}
    holders = max(moments, key=lambda moment: float(np.sum(_total(moment.values()))))
    return dict(sorted(holders.items(), key=lambda item: -float(np.sum(item[1]))))


def _largest(values: Sequence[Numeric]) -> Numeric:
    found: Numeric = reduce(np.maximum, values)
    return float(found) if np.ndim(found) == 0 else found


def _total(values: Iterable[Numeric]) -> Numeric:
    return sum(values, start=0.0)
