"""A replica of several pipeline stages, as one pricer of rounds.

As many micro-batches are in flight as there are stages (vLLM's batch queue, TensorRT-LLM's micro-batches); in a *round*
each of them passes all stages once, so that every sequence that decodes gets a token. Sequences are dealt out to the
micro-batches. A round takes what the busiest stage needs for all of them, and no less than one of them needs to pass all
stages: with equal stages and micro-batches a token's time is the sum of the stages, and a stage works all the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.graph import Collective, ModelGraph
from simulator.serving.accounts import BUBBLE, LINK, Account
from simulator.serving.iteration import Steps
from simulator.serving.step_time import StepPricer
from simulator.serving.workload import Floats, Integers
from simulator.specs import OPERATOR_CLASSES

HOP = OPERATOR_CLASSES.index("collective") * 4 + LINK


class PipelinePricer:
    """Prices rounds of a pipeline; a :class:`~simulator.serving.iteration.Pricer`.

    Parameters
    ----------
    stages : sequence of StepPricer
        In order; two or more. Stages that are alike may be the same pricer.
    """

    def __init__(self, stages: Sequence[StepPricer]) -> None:
        self.stages = tuple(stages)
        first = self.stages[0]
        self.model, self.numerics, self.cost, self.layout = (
            first.model,
            first.numerics,
            first.cost,
            first.layout,
        )
        self.partition, self.span, self.host = first.partition, first.span, first.host
        self._kinds = {id(stage): stage for stage in self.stages}
        self._count = {key: sum(id(stage) == key for stage in self.stages) for key in self._kinds}
        self._hops: dict[int, float] = {}

    def decode(self, contexts: Integers, steps: int) -> Steps:
        """Price ``steps`` rounds of the same sequences, whose contexts grow by a token in each."""
        batches = min(len(self.stages), len(contexts))
        part = contexts[::batches]
        priced = {key: stage.decode(part, steps) for key, stage in self._kinds.items()}
        through: Floats = np.sum([priced[id(stage)].seconds for stage in self.stages], axis=0) + self._hop(
            len(part)
        )
        busiest = max(priced.values(), key=lambda one: float(one.seconds.sum()))
        return _round(busiest, batches, through, self._hop(len(part)))

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, sampled: int) -> Steps:
        """Price a round of prompt pieces beside decodes: the longest pieces first, each to the next micro-batch."""
        batches = min(len(self.stages), len(new) + len(contexts))
        order = np.argsort(-new, kind="stable")
        work: dict[int, list[Steps]] = {key: [] for key in self._kinds}
        longest, tokens = 0.0, 0
        for batch in range(batches):
            pieces = order[batch::batches]
            # the micro-batches with fewer pieces are the first to get decodes
            own = contexts[batches - 1 - batch :: batches]
            count = int(new[pieces].sum()) + len(own)
            if not count:
                continue
            share = min(sampled, len(pieces) + len(own))
            sampled -= share
            for key, stage in self._kinds.items():
                work[key].append(
                    stage.mixed(new[pieces], cached[pieces], own, share)
                    if len(pieces)
                    else stage.decode(own, 1)
                )
            through = sum(float(work[id(stage)][-1].seconds[0]) for stage in self.stages)
            longest, tokens = max(longest, through + self._hop(count)), max(tokens, count)
        key = max(work, key=lambda key: sum(float(one.seconds[0]) for one in work[key]))
        account: Floats = np.sum([one.total(1) for one in work[key]], axis=0)
        seconds = np.array([sum(float(one.seconds[0]) for one in work[key])])
        return _round(Steps(seconds, account), 1, np.array([longest]), self._hop(tokens))

    def account(self, vector: Floats) -> Account:
        """Read an account: that of the busiest stage, what it waits for among it."""
        return self.stages[0].account(vector)

    def graph(self) -> ModelGraph:
        """The graph of one rank of the first stage for one token."""
        return self.stages[0].graph()

    def _hop(self, tokens: int) -> float:
        """Seconds that a micro-batch spends between stages [s]; each rank sends its share of the hidden states."""
        if tokens not in self._hops:
            size = tokens * self.model.hidden_size * self.numerics.activation_bytes / self.layout.tensor
            cost = self.cost.price(Collective("send", "pipeline", size), self.layout.hop_span)
            self._hops[tokens] = float(cost.time) * (len(self.stages) - 1)
        return self._hops[tokens]


def _round(busiest: Steps, batches: int, through: Floats, hops: float) -> Steps:
    """Return the round of ``batches`` micro-batches; what the busiest stage does not work is hops, and then bubble."""
    work = batches * busiest.seconds
    seconds = np.maximum(work, through)
    exposed = np.minimum(hops, seconds - work)
    varying = tuple((part, values * batches) for part, values in busiest.varying)
    return Steps(
        seconds, busiest.fixed * batches, (*varying, (HOP, exposed), (BUBBLE, seconds - work - exposed))
    )
