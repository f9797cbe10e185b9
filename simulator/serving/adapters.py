"""Many fine-tuned variants of one model in one replica: low-rank adapters, and adapters of experts.

*Low-rank adapters*: the tokens of each adapter are a group of two grouped products, down to the rank and up again (SGMV; Chen
et al. 2023, arXiv:2310.18547, Punica, section 4), for every linear layer outside experts. Adapters beyond those resident are in
DRAM (Sheng et al. 2023, arXiv:2311.03285, S-LoRA, section 5); least recently used ones make room, whose hit rate follows from
the popularity of adapters (Che et al. 2002, section III).

*Expert adapters* (Li et al. 2025, arXiv:2508.17624, ExpertWeave): fine-tuned copies of some experts of each layer lie behind the
base model's in one range of addresses, and a kernel renames the experts of each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Elementwise, Matmul, ModelGraph, Work
from simulator.graph.graph import Matrix
from simulator.serving.accounts import FETCH, SIZE
from simulator.serving.extras import as_steps, charge
from simulator.serving.tiers import Tier
from simulator.serving.workload import Floats, Integers
from simulator.specs import MemroofError, Model
from simulator.specs.serving_techniques import ExpertAdapters, LowRankAdapters

ADAPTER_BYTES = 2.0
"""Of an element of a low-rank adapter, kept in 16 bits beside weights of any format."""
PAGE = 2.0 * 2**20
"""Of the virtual tensor that holds adapters' experts [B]."""


def popularity(count: int, zipf: float) -> Floats:
    """Return the share of requests for each of some adapters: a power law of their rank, equal at an exponent of 0."""
    weights = np.arange(1.0, count + 1.0) ** -zipf
    return np.asarray(weights / weights.sum(), float)


def distinct(shares: Floats, requests: float) -> float:
    """Return how many different adapters some independent requests ask for: sum of 1 - (1 - p)^n."""
    return float((1.0 - (1.0 - shares) ** requests).sum())


def hit_rate(shares: Floats, resident: int) -> float:
    """Return the share of requests that find their adapter among the least recently used that are kept.

    Notes
    -----
    Che's approximation: an adapter stays for a time T that is the same for all, where sum(1 - exp(-p·T)) = resident; a
    request for it then finds it with probability 1 - exp(-p·T).
    """
    if resident >= len(shares):
        return 1.0
    low, high = 0.0, 1.0
    while (1.0 - np.exp(-shares * high)).sum() < resident:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (1.0 - np.exp(-shares * middle)).sum() < resident else (low, middle)
    return float((shares * (1.0 - np.exp(-shares * high))).sum())


@dataclass(frozen=True)
class LowRank:
    """Low-rank adapters of one rank of a tensor-parallel group; an :class:`~simulator.serving.extras.Extra`."""

    adapters: LowRankAdapters
    cost: CostModel
    layers: tuple[tuple[tuple[Matrix, ...], int], ...]
    """Linear layers of the rank with their counts, each of one projection or of those that share an input."""
    dram: Tier | None = None
    shares: Floats = field(init=False, repr=False)
    hits: float = field(init=False)
    _kept: dict[tuple[int, int], Floats] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shares = popularity(self.adapters.count, self.adapters.zipf)
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "hits", hit_rate(shares, self.resident))

    @property
    def resident(self) -> int:
        """Adapters in accelerator memory."""
        return self.adapters.resident or self.adapters.count

    @property
    def adapter_bytes(self) -> float:
        """One adapter's share of one rank [B]."""
        rank = self.adapters.rank
        elements = sum(
            rank * float(m.inputs + m.outputs) * count for matrices, count in self.layers for m in matrices
        )
        return elements * ADAPTER_BYTES

    @property
    def resident_bytes(self) -> float:
        """Of accelerator memory [B]."""
        return self.resident * self.adapter_bytes

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Both products of every layer for a token (or ``queries``) of each sequence."""
        return as_steps(self._products(len(contexts) * queries, len(contexts)), steps)

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """The same for prompts beside decodes, and adapters that are fetched for prompts that begin."""
        account = self._products(int(new.sum()) + len(contexts), len(new) + len(contexts)).copy()
        account[FETCH] += self._fetched(int((cached == 0).sum()), seconds)
        return account

    def _fetched(self, requests: int, seconds: float) -> float:
        """Time that an iteration waits for adapters [s]: of the mean of requests that miss."""
        if self.dram is None or self.hits == 1.0:
            return 0.0
        time = requests * (1.0 - self.hits) * self.dram.up.time(self.adapter_bytes)
        return max(0.0, time - seconds) if self.adapters.prefetch else time

    def _products(self, tokens: int, sequences: int) -> Floats:
        key = tokens, sequences
        if key not in self._kept:
            self._kept[key] = charge(self.cost, self._works(tokens, distinct(self.shares, sequences)))
        return self._kept[key]

    def _works(self, tokens: float, groups: float) -> Iterator[tuple[Work, float]]:
        rows, rank = tokens / groups, self.adapters.rank
        for matrices, count in self.layers:
            # one kernel for all slices of a joined layer (vLLM's shrink and expand), and outputs of their mean width
            slices = len(matrices)
            width = sum(float(m.outputs) for m in matrices) / slices
            yield Matmul(rows, rank, matrices[0].inputs, groups * slices, self._format, grouped=True), count
            yield Matmul(rows, width, rank, groups * slices, self._format, grouped=True), count

    @property
    def _format(self) -> str:
        return "bf16" if "bf16" in self.cost.device.compute.matrix else "fp16"


def adapted_layers(graph: ModelGraph) -> tuple[tuple[tuple[Matrix, ...], int], ...]:
    """Return the projections of each linear layer outside experts, with the count of layers that have them."""
    return tuple(
        (operator.matrices, count)
        for block, count in zip(graph.blocks, graph.counts, strict=True)
        if count
        for operator in block.operators
        if operator.matrices and not operator.expert
    )


def low_rank(adapters: LowRankAdapters, cost: CostModel, graph: ModelGraph, dram: Tier | None) -> LowRank:
    """Return the adapters of one rank.

    Raises
    ------
    MemroofError
        If those that are not resident exceed DRAM.
    """
    found = LowRank(adapters, cost, adapted_layers(graph), dram)
    if dram is not None and found.adapter_bytes * adapters.count > dram.capacity:
        raise MemroofError(
            f"lora: {adapters.count} adapters of {found.adapter_bytes / 1e6:.4g} MB a GPU exceed its share of DRAM "
            f"({dram.capacity / 1e9:.4g} GB)"
        )
    return found


@dataclass(frozen=True)
class ExpertVariants:
    """Adapters of experts on one rank; an :class:`~simulator.serving.extras.Extra`."""

    adapters: ExpertAdapters
    model: Model
    cost: CostModel
    expert_bytes: float
    """One expert's share of one rank [B]."""
    layers: int
    """That have experts."""

    @property
    def resident_bytes(self) -> float:
        """Of accelerator memory, beside the base model [B].

        Pages of a virtual tensor are shared by neighbours: one is lost at most for each adapter and layer, a half on average.
        """
        adapters = self.adapters
        if adapters.layout == "padded":
            return len(adapters.experts) * adapters.largest * self.layers * self.expert_bytes
        if adapters.layout == "virtual":
            lost = 0.5 * PAGE * len(adapters.experts)
            return self.layers * (sum(adapters.experts) * self.expert_bytes + lost)
        return 0.0

    @property
    def copies(self) -> int:
        """Whole models that are held besides the first."""
        return len(self.adapters.experts) - 1 if self.adapters.layout == "merged" else 0

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """The experts of each token are renamed in every layer."""
        return as_steps(self._renamed(len(contexts) * queries), steps)

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """The same for all tokens."""
        return self._renamed(int(new.sum()) + len(contexts))

    def _renamed(self, tokens: int) -> Floats:
        moe = self.model.moe
        if moe is None or self.adapters.layout == "merged":
            return np.zeros(SIZE)
        # an id in and out for each expert of a token, in the kernel that the paper fuses
        size = 4.0 * tokens * moe.num_experts_per_tok
        return charge(self.cost, [(Elementwise(2.0 * size, size), self.layers)])


def expert_variants(
    adapters: ExpertAdapters, model: Model, cost: CostModel, graph: ModelGraph, weight_bytes: float
) -> ExpertVariants:
    """Return the expert adapters of one rank.

    Raises
    ------
    MemroofError
        If the model has no experts, or fewer than an adapter replaces.
    """
    moe = model.moe
    if moe is None:
        raise MemroofError(f"expert_adapters: {model.name} has no experts")
    most = max(max(adapters.experts), adapters.largest)
    if most > moe.num_experts or max(adapters.experts) > adapters.largest:
        raise MemroofError(
            f"expert_adapters: an adapter replaces at most 'largest' ({adapters.largest}) of {moe.num_experts} experts"
        )
    held = [
        (float(block.expert_parameters), count)
        for block, count in zip(graph.blocks, graph.counts, strict=True)
        if count and float(block.expert_parameters)
    ]
    layers = sum(count for _, count in held)
    return ExpertVariants(adapters, model, cost, held[0][0] / moe.num_experts * weight_bytes, layers)
