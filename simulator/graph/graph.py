"""Operators, tensors, blocks and the model graph; saved tensors under recomputation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from simulator.graph.work import Numeric, Work

if TYPE_CHECKING:
    import networkx

Phase = Literal["forward", "prefill", "decode"]
Recompute = Literal["none", "selective", "full", "optimal"]

FORMAT_BYTES: Mapping[str, float] = {
    "fp64": 8.0, "fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0,
    "fp6": 0.75, "fp4": 0.5, "int4": 0.5,
}  # fmt: skip
"""Bytes an element takes in memory, by number format; scales of quantised groups are counted apart."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What goes through the graph at once; each may be an array.

    ``sequence`` new tokens for each of ``batch`` sequences after ``context`` tokens that are cached. ``forward`` is
    training (no cache), ``prefill`` reads and writes a cache, ``decode`` has one new token a sequence.
    ``target`` is the decoder's length of an encoder-decoder (its encoder sees ``sequence``).
    """

    batch: Numeric
    sequence: Numeric
    context: Numeric = 0
    phase: Phase = "forward"
    target: Numeric | None = None


@dataclass(frozen=True, slots=True)
class Partition:
    """How one rank's share is cut: tensor- and expert-parallel degrees (arrays allowed), sequence parallelism."""

    tensor: Numeric = 1
    expert: Numeric = 1
    sequence_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Numerics:
    """Number formats: of products, and of what is stored."""

    compute: str = "bf16"
    activation_bytes: float = 2.0
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    gradient_bytes: float = 4.0
    """Of the sums that weight gradients of micro-batches are added to."""
    fused_accumulation: bool = True
    """Whether the product adds to these sums itself, or writes a gradient that another kernel adds."""

    @staticmethod
    def of(
        precision: str, weights: str | None = None, kv: str | None = None, gradients: str = "fp32"
    ) -> Numerics:
        """Derive storage from a precision: 16-bit activations, weights and cache below fp32 (unless stated)."""
        wide = FORMAT_BYTES[precision] if precision in ("fp32", "tf32", "fp64") else 2.0
        stored = FORMAT_BYTES[weights] if weights else (1.0 if precision == "fp8" else wide)
        return Numerics(precision, wide, stored, FORMAT_BYTES[kv] if kv else wide, FORMAT_BYTES[gradients])


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation of one rank by name: its bytes, and whether it enters from outside the block."""

    name: str
    size: Numeric


@dataclass(frozen=True, slots=True)
class Operator:
    """One step of a block: its work forward and backward, its parameters and the tensors it touches."""

    name: str
    forward: tuple[Work, ...]
    input_gradient: tuple[Work, ...] = ()
    weight_gradient: tuple[Work, ...] = ()
    parameters: Numeric = 0
    """Elements on this rank."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    saves: tuple[str, ...] = ()
    """Tensors (inputs, outputs or masks) that its backward pass needs."""
    core: bool = False
    """Part of the attention core, which selective recomputation repeats (Korthikanti et al. 2022, section 5)."""
    expert: bool = False
    """Its parameters are cut over the expert-parallel group."""

    @property
    def backward(self) -> tuple[Work, ...]:
        """Input gradient, then weight gradient."""
        return self.input_gradient + self.weight_gradient


@dataclass(frozen=True, slots=True)
class Block:
    """A DAG of operators in execution order, and the tensors between them."""

    name: str
    operators: tuple[Operator, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    input: str = "input"
    kv_width: Numeric = 0
    """Elements of the KV cache that one token takes on this rank."""
    kv_window: float = np.inf
    """Tokens of a sequence that the cache keeps at most."""

    @property
    def parameters(self) -> Numeric:
        """Elements on this rank."""
        return sum((operator.parameters for operator in self.operators), start=0)

    @property
    def expert_parameters(self) -> Numeric:
        """Elements on this rank that are cut over the expert-parallel group."""
        return sum((op.parameters for op in self.operators if op.expert), start=0)

    def works(
        self, part: Literal["forward", "input_gradient", "weight_gradient"] = "forward"
    ) -> tuple[Work, ...]:
        """All work of a pass, in order."""
        return tuple(work for operator in self.operators for work in getattr(operator, part))

    def recomputed(self, recompute: Recompute) -> tuple[Operator, ...]:
        """Operators whose forward pass is run again before their backward pass."""
        if recompute == "full":
            return self.operators
        return tuple(op for op in self.operators if op.core) if recompute == "selective" else ()

    def saved(self, recompute: Recompute = "none") -> dict[str, Numeric]:
        """Bytes that stay in memory until the backward pass, by tensor.

        A recomputed set of operators keeps only what enters it from outside; every other operator keeps what its
        backward pass needs. A tensor that several operators need is kept once.
        """
        again = self.recomputed(recompute)
        produced = {name for op in again for name in op.outputs}
        kept: dict[str, Numeric] = {}
        for operator in self.operators:
            names = operator.inputs if operator in again else operator.saves
            for name in names:
                if operator in again and name in produced:
                    continue
                kept[name] = self.tensors[name].size
        if recompute == "full":
            kept = {self.input: self.tensors[self.input].size}
        return kept

    def saved_bytes(self, recompute: Recompute = "none") -> Numeric:
        """Sum of :meth:`saved` [B]."""
        return sum(self.saved(recompute).values(), start=0.0)

    def digraph(self) -> networkx.DiGraph[str]:
        """The operators as a networkx DAG; an edge where one writes what another reads."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        writer: dict[str, str] = {}
        for operator in self.operators:
            graph.add_node(operator.name, operator=operator)
            for name in operator.inputs:
                if name in writer:
                    graph.add_edge(writer[name], operator.name, tensor=name)
            writer.update(dict.fromkeys(operator.outputs, operator.name))
        return graph


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """Embedding, layers in order (each an index into the distinct blocks), and head with loss."""

    name: str
    embedding: Block
    blocks: tuple[Block, ...]
    layers: tuple[int, ...]
    head: Block
    numerics: Numerics

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each distinct block occurs."""
        return tuple(self.layers.count(index) for index in range(len(self.blocks)))

    @property
    def all_blocks(self) -> tuple[tuple[Block, int], ...]:
        """Every distinct block with its count, embedding and head among them."""
        return ((self.embedding, 1), *zip(self.blocks, self.counts, strict=True), (self.head, 1))

    @property
    def parameters(self) -> Numeric:
        """Elements on this rank (of the whole model where nothing is cut)."""
        return sum((block.parameters * count for block, count in self.all_blocks), start=0)

    @property
    def weight_bytes(self) -> Numeric:
        """Parameters as stored [B]."""
        return self.parameters * self.numerics.weight_bytes

    def kv_bytes(self, tokens: Numeric) -> Numeric:
        """KV cache of a sequence of ``tokens`` on this rank [B]."""
        total: Numeric = 0.0
        for block, count in zip(self.blocks, self.counts, strict=True):
            kept: Numeric = np.minimum(tokens, block.kv_window)
            total = total + kept * block.kv_width * count
        return total * self.numerics.kv_bytes

    def flops(
        self, passes: Iterable[Literal["forward", "input_gradient", "weight_gradient"]] = ("forward",)
    ) -> Numeric:
        """FLOPs of the given passes through all blocks [FLOP]."""
        total: Numeric = 0.0
        for block, count in self.all_blocks:
            for part in passes:
                for work in block.works(part):
                    total = total + work.flops * count
        return total
