"""Operators, tensors, blocks and the model graph; saved tensors under recomputation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from simulator.graph.work import AttentionKernel, Axis, Numeric, Work

if TYPE_CHECKING:
    import networkx

Phase = Literal["forward", "prefill", "decode"]
ContextExchange = Literal["all-gather", "ring", "all-to-all"]
Recompute = Literal["none", "selective", "full", "optimal"]
Scaling = Literal["none", "delayed", "tensor", "block", "mxfp8", "nvfp4"]
Cut = Literal["none", "column", "row"]

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
    """How one rank's share is cut; degrees may be arrays."""

    tensor: Numeric = 1
    expert: Numeric = 1
    sequence_parallel: bool = False
    """Norms, dropouts and residuals are cut along the sequence over the tensor-parallel group."""
    context: Numeric = 1
    """Ranks that each sequence is cut over."""
    context_exchange: ContextExchange = "all-gather"
    """How queries of one rank see keys of another: see :mod:`simulator.graph.context`."""
    expert_tensor: Numeric | None = None
    """Ranks that each expert is cut over; as many as ``tensor`` if absent."""
    expert_capacity: float | None = None
    """Slots of an expert over its mean load, all of them computed; if absent, as many as come."""
    expert_nodes: int | None = None
    """Nodes that the experts of one token lie in at most."""
    expert_skew: float = 0.0
    """Exponent of the power law of the experts' loads, 0 where they are equal: see :func:`simulator.graph.routing.routed`."""

    @property
    def cuts_context(self) -> bool:
        """Whether sequences are cut, in any of an array's cases."""
        return bool(np.any(np.asarray(self.context) > 1))

    @property
    def expert_axis(self) -> Axis:
        """The axis whose group shares each expert."""
        same = self.expert_tensor is None or np.array_equal(self.expert_tensor, self.tensor)
        return "tensor" if same else "expert-tensor"


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
    scaling: Scaling = "none"
    """How operands of linear layers get their scales in training: see :mod:`simulator.graph.quantise`. ``none``: products in
    ``compute`` of operands that somebody else has quantised."""
    narrow_parameters: bool = False
    """With ``scaling``: whether parameters of linear layers are kept in its format alone, not in 16 bits beside it."""

    attention_kernel: AttentionKernel = "latest"
    """Generation of fused attention kernels."""

    any_order: bool = False
    """With ``scaling``: whether matrix units read narrow operands transposed too (from Blackwell on), so that a tensor with one
    scale needs one copy."""

    @property
    def wide(self) -> Numerics:
        """Of what stays in 16 bits where linear layers are quantised in training: router, head, low-rank adapters."""
        return self if self.scaling == "none" else replace(self, compute="bf16", scaling="none")

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
class Matrix:
    """A weight matrix of one rank: a linear layer, one projection of a joined one, or ``count`` experts."""

    name: str
    inputs: Numeric
    outputs: Numeric
    count: Numeric = 1
    cut: Cut = "none"
    """Which dimension the tensor-parallel group shares: outputs (column) or inputs (row)."""

    @property
    def elements(self) -> Numeric:
        """Weights, without biases."""
        return self.inputs * self.outputs * self.count


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
    """Tensors (inputs, outputs or masks) that its backward pass needs; where it has a weight gradient, that alone needs them."""
    core: bool = False
    """Part of the attention core, which selective recomputation repeats (Korthikanti et al. 2022, section 5)."""
    expert: bool = False
    """Its parameters are cut over the expert-parallel group."""
    matrices: tuple[Matrix, ...] = ()
    """The weight matrices among its parameters."""
    biases: Numeric = 0
    """Elements of biases among its parameters."""
    trainable: Numeric | None = None
    """Elements that a gradient and optimizer states are kept for; all if absent."""
    stored: Numeric | None = None
    """Bytes of its weights through a step, all copies in all formats; parameters as the graph's numerics keep them if absent."""
    step: tuple[Work, ...] = ()
    """Work once a step, whatever the count of micro-batches: weights cast, perturbed."""
    formed: Numeric = 0
    """Bytes of weights that it forms from what is stored, one matrix at a time, and drops behind each product."""
    detached: bool = False
    """Runs forward alone and is never computed again: a frozen reference's."""

    @property
    def cast_copy(self) -> str:
        """Name of the quantised copy of its input, where it makes one."""
        return f"{self.name}.input"

    @property
    def trained(self) -> Numeric:
        """Elements that a gradient and optimizer states are kept for."""
        return self.parameters if self.trainable is None else self.trainable

    def stored_bytes(self, numerics: Numerics) -> Numeric:
        """Bytes of its weights through a step [B]."""
        return self.parameters * numerics.weight_bytes if self.stored is None else self.stored

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
    reversible: bool = False
    """Keeps nothing for the backward pass, which finds the block's inputs from its outputs by running it once more."""

    @property
    def parameters(self) -> Numeric:
        """Elements on this rank."""
        return sum((operator.parameters for operator in self.operators), start=0)

    @property
    def expert_parameters(self) -> Numeric:
        """Elements on this rank that are cut over the expert-parallel group."""
        return sum((op.parameters for op in self.operators if op.expert), start=0)

    @property
    def trainable_parameters(self) -> Numeric:
        """Elements on this rank that a gradient and optimizer states are kept for."""
        return sum((op.trained for op in self.operators), start=0)

    @property
    def trainable_expert_parameters(self) -> Numeric:
        """Those of them that are cut over the expert-parallel group."""
        return sum((op.trained for op in self.operators if op.expert), start=0)

    @property
    def trains(self) -> bool:
        """Whether any operator has a backward pass."""
        return any(op.backward for op in self.operators)

    def stored_bytes(self, numerics: Numerics) -> Numeric:
        """Bytes of its weights through a step, all copies in all formats [B]."""
        own = [op for op in self.operators if op.stored is not None]
        others = self.parameters - sum((op.parameters for op in own), start=0)
        return others * numerics.weight_bytes + sum((op.stored_bytes(numerics) for op in own), start=0.0)

    def step_works(self) -> tuple[Work, ...]:
        """Work once a step, whatever the count of micro-batches."""
        return tuple(work for operator in self.operators for work in operator.step)

    def works(
        self, part: Literal["forward", "input_gradient", "weight_gradient"] = "forward"
    ) -> tuple[Work, ...]:
        """All work of a pass, in order."""
        return tuple(work for operator in self.operators for work in getattr(operator, part))

    def recomputed(self, recompute: Recompute | frozenset[str]) -> tuple[Operator, ...]:
        """Operators whose forward pass is run again before their backward pass: of a strategy, or those named."""
        if self.reversible or (recompute == "full" and self.trains):
            return tuple(op for op in self.operators if not op.detached)
        if isinstance(recompute, frozenset):
            return tuple(op for op in self.operators if op.name in recompute)
        return tuple(op for op in self.operators if op.core) if recompute == "selective" else ()

    def lost(self, recompute: Recompute | frozenset[str]) -> frozenset[str]:
        """Tensors that recomputed operators write and that are dropped after the forward pass.

        A tensor is dropped where all its writers run again, also if others need it (output-discarding checkpoints of
        Megatron-Core, MUST_RECOMPUTE of PyTorch's selective checkpoints); but the output of a repeated attention core stays
        where the layer behind it needs it (Korthikanti et al. 2022, section 5).
        """
        again = {op.name for op in self.recomputed(recompute)}
        stays = {name for op in self.operators if op.name not in again for name in op.saves}
        lost: set[str] = set()
        found: set[str] = set()
        for op in self.operators:
            for name in op.outputs:
                cast = name == op.cast_copy and op.inputs[0] in lost
                gone = cast or (op.name in again and not (op.core and name in stays))
                lost = lost | {name} if gone and (name not in found or name in lost) else lost - {name}
                found.add(name)
        return frozenset(lost)

    def saved(self, recompute: Recompute | frozenset[str] = "none") -> dict[str, Numeric]:
        """Bytes that stay in memory until the backward pass, by tensor.

        Recomputed operators keep what they read and their backward pass needs, unless it is computed again itself; every
        other operator keeps what its backward pass needs. A tensor that several operators need is kept once.
        """
        if self.reversible or not self.trains:
            return {}
        again, lost = {op.name for op in self.recomputed(recompute)}, self.lost(recompute)
        kept: dict[str, Numeric] = {}
        for operator in self.operators:
            names = operator.inputs if operator.name in again else ()
            for name in (*names, *operator.saves):
                if name not in lost:
                    kept[name] = self.tensors[name].size
        return kept

    def saved_bytes(self, recompute: Recompute | frozenset[str] = "none") -> Numeric:
        """Sum of :meth:`saved` [B]."""
        return sum(self.saved(recompute).values(), start=0.0)

    def live_bytes(self, *, entering: bool = False) -> float:
        """Return the most bytes of tensors that are alive at once while the block runs forward [B].

        A tensor lives from the operator that writes it to the last that reads it; arrays count at their largest.

        Parameters
        ----------
        entering : bool
            Whether what comes from outside counts, the block's input above all; false where hidden states are counted apart.
        """
        last = {name: i for i, op in enumerate(self.operators) for name in (*op.outputs, *op.inputs)}
        alive = {self.input} & last.keys() if entering else set()
        most = 0.0
        for i, op in enumerate(self.operators):
            alive.update(name for name in op.outputs if entering or name != self.input)
            if entering:
                alive.update(op.inputs)
            most = max(most, sum(float(np.max(self.tensors[name].size)) for name in alive))
            alive = {name for name in alive if last[name] > i}
        return most

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
    def trainable_parameters(self) -> Numeric:
        """Elements on this rank that a gradient and optimizer states are kept for."""
        return sum((block.trainable_parameters * count for block, count in self.all_blocks), start=0)

    @property
    def weight_bytes(self) -> Numeric:
        """Parameters as stored [B]."""
        return sum((block.stored_bytes(self.numerics) * count for block, count in self.all_blocks), start=0.0)

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
