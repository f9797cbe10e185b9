"""Speculative decoding: tokens are drafted one after the other and verified by the target in one pass.

The target sees the drafted tokens as a short prompt after the cache (Leviathan et al. 2023, arXiv:2211.17192); candidates may
form a tree, all nodes of which are verified together (Miao et al. 2024, arXiv:2305.09781, SpecInfer; Li et al. 2024,
arXiv:2401.15077, EAGLE). Progress is deterministic: each iteration brings every sequence its expected number of tokens E, and
a *token step*, which is what the scheduler counts, is 1/E of an iteration. So runs of steps stay exact, tokens are conserved,
and a request ends within an iteration where its tokens end. Prompts that run beside decodes add what they take beyond the
verification; the decodes' own token of such an iteration takes its share.

The draft keeps keys and values of its own for all tokens, and sees every prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.graph import Matmul, ModelGraph
from simulator.serving.accounts import FLOPS, TRAFFIC, Account
from simulator.serving.extras import ExtendedPricer, charge
from simulator.serving.iteration import Steps
from simulator.serving.step_time import StepPricer
from simulator.serving.workload import Floats, Integers
from simulator.specs.serving_techniques import Speculation


def level_nodes(tokens: int, branches: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many nodes of a token tree each depth has; one for each of a chain."""
    width, nodes = 1, []
    for depth in range(tokens):
        width *= branches[depth] if depth < len(branches) else 1
        nodes.append(width)
    return tuple(nodes)


def expected_tokens(
    acceptance: float | tuple[float, ...], tokens: int, branches: tuple[int, ...] = ()
) -> float:
    """Return the mean number of tokens that an iteration of speculative decoding brings, the target's own among them.

    Parameters
    ----------
    acceptance : float or tuple of float
        Of all depths: probability that a candidate is taken whose predecessors were. By depth: that one of the candidates is.
    tokens : int
        Depth of the draft.
    branches : tuple of int
        Candidates that follow a node, by depth. Those of one rate are independent of each other: one of b is taken with
        probability 1 - (1 - a)^b, which real drafts, whose second choice is worse than the first, do not reach.

    Notes
    -----
    1 + Σ_d Π_{i ≤ d} a_i; with equal a_i this is (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023, equation 1).
    """
    expected, reached = 1.0, 1.0
    for depth in range(tokens):
        if isinstance(acceptance, tuple):
            reached *= acceptance[depth]
        else:
            candidates = branches[depth] if depth < len(branches) else 1
            reached *= 1.0 - (1.0 - acceptance) ** candidates
        expected += reached
    return expected


@dataclass(frozen=True)
class Drafter:
    """Who drafts.

    Attributes
    ----------
    pricer : StepPricer or None
        Prices of the draft's passes; None where drafting costs nothing.
    joined : int
        Width of the states that a drafting layer joins to the embedding of a token by a product (EAGLE, MTP); 0 for a
        model of its own.
    """

    pricer: StepPricer | None
    joined: int = 0

    @property
    def weight_bytes(self) -> float:
        """Of one rank [B]; a drafting layer shares embedding and head with the target."""
        if self.pricer is None:
            return 0.0
        if not self.joined:
            return self.pricer.weight_bytes
        graph, stored = self.pricer.graph(), self.pricer.numerics.weight_bytes
        layers = sum(float(b.parameters) * n for b, n in zip(graph.blocks, graph.counts, strict=True))
        return (layers + 2.0 * self.joined**2 / self.pricer.layout.tensor) * stored

    def join(self, tokens: float) -> Floats | float:
        """Account of the product that joins states and embeddings."""
        if self.pricer is None or not self.joined:
            return 0.0
        numerics = self.pricer.numerics
        work = Matmul(
            tokens, self.joined / self.pricer.layout.tensor, 2.0 * self.joined, 1, numerics.compute,
            right_bytes=numerics.weight_bytes,
        )  # fmt: skip
        return charge(self.pricer.cost, [(work, 1.0)])


class SpeculativePricer:
    """Prices token steps of speculative decoding; a :class:`~simulator.serving.iteration.Pricer`.

    Parameters
    ----------
    target : StepPricer or ExtendedPricer
        The model that is served.
    drafter : Drafter
    speculation : Speculation
    """

    def __init__(
        self, target: StepPricer | ExtendedPricer, drafter: Drafter, speculation: Speculation
    ) -> None:
        self.target, self.drafter, self.speculation = target, drafter, speculation
        self.nodes = level_nodes(speculation.tokens, speculation.branches)
        self.queries = 1 + sum(self.nodes)
        self.expected = expected_tokens(speculation.acceptance, speculation.tokens, speculation.branches)
        base = target.base if isinstance(target, ExtendedPricer) else target
        self.model, self.numerics, self.cost, self.layout = base.model, base.numerics, base.cost, base.layout
        self.partition, self.span, self.host = base.partition, base.span, base.host

    def decode(self, contexts: Integers, steps: int) -> Steps:
        """Price token steps: an iteration of drafting and verifying each, by the tokens that it brings."""
        return self._shared(self.target.decode(contexts, steps, self.queries), contexts, steps)

    def _shared(self, verify: Steps, contexts: Integers, steps: int) -> Steps:
        """Return an iteration's part of one token: of what verifies, and of the drafts."""
        parts = [verify, *self._drafts(contexts, steps)]
        seconds = np.sum([part.seconds for part in parts], axis=0) / self.expected
        fixed = np.sum([part.fixed for part in parts], axis=0) / self.expected
        varying = tuple((place, values / self.expected) for part in parts for place, values in part.varying)
        return Steps(seconds, fixed, varying)

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, sampled: int) -> Steps:
        """Price prompts in full, and beside them a token of each decode."""
        prompts = sampled - len(contexts)
        together = self.target.mixed(
            new, cached, contexts, prompts + len(contexts) * self.queries, self.queries
        )
        account, seconds = together.total(1), float(together.seconds[0])
        if len(contexts):
            alone = self.target.decode(contexts, 1, self.queries)
            share = self._shared(alone, contexts, 1)
            before = alone.total(1)
            # what binds the iteration binds the part of it that is charged
            part = max(seconds - float(alone.seconds[0]), 0.0)
            charged = account * (part / seconds)
            for place in (FLOPS, TRAFFIC):
                charged[place] = max(account[place] - before[place], 0.0)
            account, seconds = charged + share.total(1), part + float(share.seconds[0])
        if self.drafter.pricer is not None and len(new):
            none = contexts[:0]
            draft = self.drafter.pricer.mixed(new, cached, none, 0).total(1) + self.drafter.join(
                float(new.sum())
            )
            account, seconds = account + draft, seconds + float(draft[:FLOPS].sum())
        return Steps(np.array([seconds]), account)

    def _drafts(self, contexts: Integers, steps: int) -> list[Steps]:
        """Passes of the draft: each expands the nodes of a depth, from the last token on."""
        drafter = self.drafter
        if drafter.pricer is None:
            return []
        passes = []
        for depth, nodes in enumerate((1, *self.nodes[:-1])):
            one = drafter.pricer.decode(contexts + depth, steps, nodes)
            joined = drafter.join(float(len(contexts) * nodes))
            if isinstance(joined, np.ndarray):
                one = Steps(one.seconds + float(joined[:FLOPS].sum()), one.fixed + joined, one.varying)
            passes.append(one)
        return passes

    def account(self, vector: Floats) -> Account:
        """Read an account; see :meth:`StepPricer.account`."""
        return self.target.account(vector)

    def graph(self) -> ModelGraph:
        """The target's graph of one rank for one token."""
        return self.target.graph()

    def slot_bytes(self, sequences: int, token_bytes: float) -> float:
        """Keys and values of candidates that are not verified yet [B]."""
        return float(sequences * (self.queries - 1) * token_bytes)


def joined_graph(graph: ModelGraph, draft: ModelGraph) -> ModelGraph:
    """Return the graph that the cache is laid out by: the draft's layers behind the target's."""
    offset = len(graph.blocks)
    # bytes of an element may differ between the two
    scale = draft.numerics.kv_bytes / graph.numerics.kv_bytes
    blocks = tuple(replace(block, kv_width=block.kv_width * scale) for block in draft.blocks)
    layers = tuple(index + offset for index in draft.layers)
    return replace(graph, blocks=graph.blocks + blocks, layers=graph.layers + layers)


def break_even_batch(
    target: StepPricer, drafter: Drafter, speculation: Speculation, context: int, most: int = 4096
) -> int:
    """Return the largest batch at which speculation is no slower than plain decoding: 0 if it never pays.

    Parameters
    ----------
    target, drafter, speculation
        As of :class:`SpeculativePricer`.
    context : int
        Positions that each sequence has cached [tokens].
    most : int
        Batch to look up to.
    """
    pricer = SpeculativePricer(target, drafter, speculation)

    def pays(batch: int) -> bool:
        contexts = np.full(batch, context, np.int64)
        return bool(pricer.decode(contexts, 1).seconds[0] <= target.decode(contexts, 1).seconds[0])

    if not pays(1):
        return 0
    low, high = 1, 2
    while high <= most and pays(high):
        low, high = high, 2 * high
    if high > most:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


def speedup(acceptance: float, tokens: int, relative_cost: float) -> float:
    """Return the expected speed-up where verifying costs no more than a token (Leviathan et al. 2023, theorem 3.8).

    Parameters
    ----------
    acceptance : float
    tokens : int
        Drafted, γ.
    relative_cost : float
        Time of a pass of the draft over that of the target, c.
    """
    return expected_tokens(acceptance, tokens) / (tokens * relative_cost + 1.0)
