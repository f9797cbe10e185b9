"""Prices that the configurations of a sweep share: each kind of layer, stage and message is priced once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.specs import TrainingScenario, TrainingStrategy
from simulator.strategy import Setup
from simulator.training.closed_form import Bodies
from simulator.training.groups import Groups
from simulator.training.makespan import MessageSeconds
from simulator.training.messages import Messenger
from simulator.training.numbers import LayerNumbers
from simulator.training.passes import LayerPass
from simulator.training.plan import Plan, make_plan
from simulator.training.recomputation import recomputed
from simulator.training.schedules import SCHEDULES
from simulator.training.step import Step
from simulator.training.weights import Weights
from simulator.training.work import Message, StageWork

EMBEDDING, HEAD = -1, -2
"""Kinds of layers beside the blocks of the graph."""
Kind = tuple[int, bool]
"""A block by its number, and whether it computes again what the strategy says."""
SHAPE = (
    "tensor_parallel", "context_parallel", "pipeline_parallel", "data_parallel", "expert_parallel", "expert_tensor_parallel",
    "rank_order", "layer_split", "micro_batch", "schedule", "virtual_stages", "overlap_expert_parallel",
)  # fmt: skip
"""Fields that decide degrees, micro-batches and the schedule table: one group of configurations for each combination."""
BOTH = (
    "gradient_precision", "parameter_precision", "precision", "fp8_recipe", "fused_accumulation", "joined_projections",
    "trainable", "compression",
)  # fmt: skip
"""Fields that decide states or the communication between replicas, and passes as well."""
STATES = (
    "zero_stage", "shard_group", "reshard_after_forward", "gather_unit", "prefetch", "moment_precision", "master_weights",
    "optimizer", "optimizer_rank", "optimizer_update", "overlap_gradient_reduction", "overlap_parameter_gather", *BOTH,
)  # fmt: skip
"""Fields that decide states and the communication between replicas; those that are no shape decide passes."""
NOT_PASSES = tuple(name for name in STATES if name not in BOTH)
PASSES = tuple(
    name for name in TrainingStrategy.model_fields if name not in (*SHAPE, *NOT_PASSES, "recompute_layers")
)
"""All other fields: what passes through a layer depend on, degrees apart."""


class Prices:
    """Looks prices up, or has a :class:`Step` find them.

    Parameters
    ----------
    setup : Setup
        Model, hardware and cost model of all configurations.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._keys: dict[Any, int] = {}
        self._steps: dict[int, Step] = {}
        self._layers: dict[Any, LayerPass] = {}
        self._numbers: dict[Any, LayerNumbers] = {}
        self._boundaries: dict[Any, tuple[tuple[float, ...], ...]] = {}
        self._weights: dict[Any, tuple[Weights, ...]] = {}
        self._works: dict[Any, tuple[StageWork, ...]] = {}

    def bodies(self, scenarios: Sequence[TrainingScenario]) -> tuple[Plan, Bodies]:
        """Return the passes of legal scenarios that differ in passes alone, and the plan of the first."""
        plan = make_plan(scenarios[0], self.setup.model, self.setup.hardware)
        keys = tuple(self._key(plan.groups, scenario) for scenario in scenarios)
        steps = [self._step(key, scenario) for key, scenario in zip(keys, scenarios, strict=True)]
        limits = [scenario.strategy.recompute_layers for scenario in scenarios]
        layers = [
            [self._stacked(kinds, keys, steps) for kinds in self._kinds(plan, steps, place, limits)]
            for place in range(plan.places)
        ]
        columns = [self._sent(plan, key, step) for key, step in zip(keys, steps, strict=True)]
        return plan, Bodies.of(plan, layers, MessageSeconds(*np.array(columns).transpose(1, 2, 0)))

    def _key(self, groups: Groups, scenario: TrainingScenario) -> int:
        """Return the number of all that passes through layers depend on."""
        strategy, spans = scenario.strategy, groups.spans(self.setup.hardware)
        kind = SCHEDULES[strategy.schedule]
        key = (
            groups.tensor, groups.context, groups.expert, groups.expert_tensor, spans["tensor"], spans["context"],
            spans["expert"], strategy.micro_batch, kind.splits_backward, kind.copies,
            *(getattr(strategy, name) for name in PASSES),
        )  # fmt: skip
        return self._keys.setdefault(key, len(self._keys))

    def _step(self, key: int, scenario: TrainingScenario) -> Step:
        found = self._steps.get(key)
        if found is None:
            plan = make_plan(scenario, self.setup.model, self.setup.hardware)
            found = self._steps[key] = Step(self.setup, scenario, plan)
        return found

    def _kinds(
        self, plan: Plan, steps: Sequence[Step], place: int, limits: Sequence[int | None]
    ) -> list[tuple[Kind, ...]]:
        """Return the layers of a place in forward order: the kind that each configuration has, or the one that all have."""
        found: list[tuple[Kind, ...]] = [((EMBEDDING, False),)] if place == 0 else []
        for count, layer in enumerate(plan.layers[place]):
            kinds = tuple(
                (step.graph.layers[layer], limit is None or count < limit)
                for step, limit in zip(steps, limits, strict=True)
            )
            found.append(kinds[:1] if len(set(kinds)) == 1 else kinds)
        return [*found, ((HEAD, False),)] if place == plan.places - 1 else found

    def _layer(self, kind: Kind, key: int, step: Step) -> LayerPass:
        found = self._layers.get((kind, key))
        if found is None:
            number, repeats = kind
            graph = step.graph
            block = {EMBEDDING: graph.embedding, HEAD: graph.head}.get(number) or graph.blocks[number]
            again = recomputed(block, step.strategy) if repeats else frozenset[str]()
            found = self._layers[kind, key] = step.pricer.layer(block, again)
        return found

    def _stacked(self, kinds: tuple[Kind, ...], keys: tuple[int, ...], steps: Sequence[Step]) -> LayerNumbers:
        """Return a layer for all configurations."""
        found = self._numbers.get((kinds, keys))
        if found is None:
            every = itertools.cycle(kinds)
            found = self._numbers[kinds, keys] = LayerNumbers.of(
                [self._layer(kind, key, step) for kind, key, step in zip(every, keys, steps, strict=False)]
            )
        return found

    def _sent(self, plan: Plan, key: int, step: Step) -> tuple[tuple[float, ...], ...]:
        """Return latency and flow of what leaves each place forward, then backward [s]."""
        name = (key, plan.groups, plan.table.routes[0])
        found = self._boundaries.get(name)
        if found is None:
            own = copy.copy(step)
            own.plan = replace(plan, partition=step.plan.partition, numerics=step.plan.numerics)
            own.messenger = Messenger(self.setup.cost, self.setup.hardware, own.plan, step.strategy)
            found = self._boundaries[name] = _by_place(plan, own.boundaries())
        return found

    def works(self, plan: Plan, scenario: TrainingScenario, fields: Sequence[str]) -> tuple[StageWork, ...]:
        """Return the stages of a scenario with its states and communication, as ``fields`` of the strategy decide them."""
        values = tuple(getattr(scenario.strategy, name) for name in fields)
        name = (plan.groups, plan.layers, len(plan.table.routes), values)
        found = self._works.get(name)
        if found is None:
            step = _Stages(
                self._step(self._key(plan.groups, scenario), scenario), plan, scenario, self._weights
            )
            same: dict[Any, StageWork] = {}
            for stage in range(plan.pipeline):
                if self._alike(plan, step, stage) not in same:
                    same[self._alike(plan, step, stage)] = step.stage(stage)
            found = self._works[name] = tuple(
                same[self._alike(plan, step, stage)] for stage in range(plan.pipeline)
            )
        return found

    def _alike(self, plan: Plan, step: Step, stage: int) -> Any:
        """Return what tells the states of stages apart."""
        held = plan.held(stage)
        kinds = tuple(tuple(step.graph.layers[layer] for layer in plan.layers[place]) for place in held)
        copies = stage if len(plan.table.routes) > 1 else None
        return (
            kinds,
            tuple(place == 0 for place in held),
            tuple(place == plan.places - 1 for place in held),
            copies,
        )


class _Stages(Step):
    """The stages of a step under other states than those it was made for; weights are listed once for all."""

    def __init__(
        self, step: Step, plan: Plan, scenario: TrainingScenario, known: dict[Any, tuple[Weights, ...]]
    ) -> None:
        self.__dict__.update(step.__dict__)
        self.plan = replace(plan, partition=step.plan.partition, numerics=step.plan.numerics)
        self.scenario, self.strategy = scenario, scenario.strategy
        self.messenger = Messenger(self.cost, self.setup.hardware, self.plan, scenario.strategy)
        self.known = known

    def weights(self, index: int) -> tuple[Weights, ...]:
        """Return the weight tensors of a stage."""
        plan = self.plan
        formed = tuple(getattr(self.strategy, name) for name in BOTH)
        name = (
            plan.groups,
            plan.layers,
            len(plan.table.routes),
            self.strategy.optimizer == "muon",
            formed,
            index,
        )
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = super().weights(index)
        return found


def _by_place(plan: Plan, messages: Mapping[tuple[int, int], Message]) -> tuple[tuple[float, ...], ...]:
    route = [stage for stage, _ in plan.table.routes[0]]
    forward = [messages.get(pair) for pair in itertools.pairwise(route)] + [None]
    backward = [None] + [messages.get((after, before)) for before, after in itertools.pairwise(route)]
    return tuple(
        tuple(seconds(message) if message else 0.0 for message in sent)
        for sent in (forward, backward)
        for seconds in (_latency, _flow)
    )


def _latency(message: Message) -> float:
    return message.latency


def _flow(message: Message) -> float:
    return message.time - message.latency
