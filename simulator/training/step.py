"""One training step: plan, graph, costs, program, timeline, and what they say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from simulator.engine import execute
from simulator.graph import Block, Collective, ModelGraph, Partition, Shape, build
from simulator.graph.trainable import subset
from simulator.specs import MemroofError, TrainingScenario
from simulator.strategy import Outcome, Setup
from simulator.training.allocator import cublas_workspaces, nccl_bytes
from simulator.training.answer import outcome
from simulator.training.arrange import ReplicaKind, arranged, least_memory, replica_kinds, shared_by_memory
from simulator.training.liveness import gradient_placeholders
from simulator.training.lower import Replica, lower
from simulator.training.messages import Messenger
from simulator.training.optimal import choose
from simulator.training.optimizers import Shards, update_gathers, update_works
from simulator.training.passes import PARTS, ChunkPass, PassPricer, issue
from simulator.training.plan import Plan, make_plan, table_of
from simulator.training.recomputation import check_operators, recomputed
from simulator.training.schedules import Pipeline, in_flight
from simulator.training.states import Elements, ModelStates, model_states
from simulator.training.weights import Weights, block_weights, stage_weights
from simulator.training.work import LayerMessages, Message, StageWork

ROOM = 0.97
"""Share of the memory that ``recompute: optimal`` fills; the rest is for rounding and fragmentation of the allocator."""
MAXIMUM_TASKS = 4_000_000
"""Tasks of a step beyond which a run would take minutes; refused with a word on what to change."""


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate one optimizer step.

    Raises
    ------
    MemroofError
        For an illegal combination of degrees, schedule and formats.
    """
    scenario = setup.scenario
    if not isinstance(scenario, TrainingScenario):
        raise MemroofError(f"a training strategy cannot run a {scenario.kind} scenario")
    plan = make_plan(scenario, setup.model, setup.hardware)
    setup, plan = arranged(
        setup, scenario, plan, lambda placed, cut, device: Step(placed, scenario, cut, device)
    )
    kinds = replica_kinds(plan, setup.hardware)
    steps = {
        name: Step(setup, scenario, plan, name)
        for name in dict.fromkeys(d for kind in kinds for d in kind.devices)
    }
    step = steps[kinds[0].devices[0]]
    tasks = step.tasks * len(kinds)
    if tasks > MAXIMUM_TASKS:
        raise MemroofError(
            f"{tasks:,} tasks are more than {MAXIMUM_TASKS:,}; a larger micro_batch or fewer virtual_stages makes fewer"
        )
    replicas = [_replica(steps, kind) for kind in kinds]
    if scenario.strategy.state_split == "memory":
        replicas = shared_by_memory(step, kinds, replicas)
    lowered = lower(scenario.name, replicas, detail=detail)
    timeline = execute(lowered.program)
    return outcome(step, replicas, lowered, timeline)


def _replica(steps: dict[str, Step], kind: ReplicaKind) -> Replica:
    """Return what replicas of a kind do: each stage at the pace of its slowest accelerator, in the least memory of any."""
    first = steps[kind.devices[0]]
    table = table_of(first.strategy, first.plan.pipeline, kind.micro_batches)
    stages = [
        steps[device].stage(index, table, capacity)
        for index, (device, capacity) in enumerate(zip(kind.devices, kind.capacities, strict=True))
    ]
    return Replica(table, stages, first.boundaries(), kind.label)


class Step:
    """What all stages on one kind of accelerator share: graph, spans, priced passes."""

    def __init__(self, setup: Setup, scenario: TrainingScenario, plan: Plan, device: str = "") -> None:
        self.setup, self.scenario, self.plan = setup, scenario, plan
        self.strategy, self.cost = scenario.strategy, setup.cost_on(device)
        self.messenger = Messenger(self.cost, setup.hardware, plan, scenario.strategy)
        self.spans = self.messenger.spans
        self.graph: ModelGraph = self._graph(plan.partition)
        present = {row.part for orders in (plan.table.orders[0], plan.table.orders[-1]) for row in orders}
        self.pricer = PassPricer(
            self.graph, self.cost, self.spans, parts=tuple(part for part in PARTS if part in present),
            issue=issue(self.strategy), dropless=self.strategy.expert_capacity is None,
            overlap=self.strategy.overlap_tensor_parallel,
            shared_experts=self.strategy.overlap_shared_experts, codec=self.strategy.compression.activations,
        )  # fmt: skip
        self._chunks: dict[tuple[tuple[int, frozenset[str]], ...], ChunkPass] = {}
        self._choices: dict[int, dict[int, tuple[frozenset[str], ...]]] = {}
        self.capacity = least_memory(setup.hardware)

    @cached_property
    def unpadded(self) -> ModelGraph:
        """The graph as if experts computed tokens alone, no padded slots."""
        return self._graph(replace(self.plan.partition, expert_capacity=None))

    def _graph(self, partition: Partition) -> ModelGraph:
        plan, model = self.plan, self.setup.model
        target = plan.sequence if model.num_encoder_layers else None
        graph = build(
            model, Shape(plan.micro_batch, plan.sequence, target=target), partition, plan.numerics,
            fused_attention=self.strategy.fused_attention, fused_loss=self.strategy.fused_loss,
            wide_loss=self.strategy.wide_loss, joined_projections=self.strategy.joined_projections,
        )  # fmt: skip
        check_operators((block for block, _ in graph.all_blocks), self.strategy.recompute_operators)
        return subset(graph, self.strategy.trainable, partition)

    @property
    def tasks(self) -> int:
        """Tasks of the step's program, about."""
        passes = 2 * self.plan.micro_batches * self.plan.places
        by_layer = self.messenger.communication.reduce == "each"
        layers = 3 * len(self.graph.layers) / self.plan.places if by_layer else 0.0
        return int(passes * (2 + layers))

    def blocks(self, place: int) -> list[Block]:
        """Return the blocks of a model chunk, embedding before and head behind its layers where it has them."""
        graph, plan = self.graph, self.plan
        layers = [graph.blocks[graph.layers[layer]] for layer in plan.layers[place]]
        first = [graph.embedding] if place == 0 else []
        last = [graph.head] if place == plan.places - 1 else []
        return [*first, *layers, *last]

    def again(self, place: int) -> tuple[frozenset[str], ...]:
        """Return the names of operators that each block of a chunk computes again."""
        if self.strategy.recompute == "optimal":
            return self._chosen(self.plan.table.routes[0][place][0])[place]
        limit = self.strategy.recompute_layers
        found, counted = [], 0
        for block in self.blocks(place):
            repeats = self._is_layer(block) and (limit is None or counted < limit)
            counted += self._is_layer(block)
            found.append(self.repeated(block) if repeats else frozenset[str]())
        return tuple(found)

    def repeated(self, block: Block) -> frozenset[str]:
        """Return the names of operators that a layer computes again where it is one that does."""
        return recomputed(block, self.strategy)

    def _is_layer(self, block: Block) -> bool:
        return block is not self.graph.embedding and block is not self.graph.head

    def _chosen(self, stage: int) -> dict[int, tuple[frozenset[str], ...]]:
        """Return what the blocks of each chunk of a stage compute again, so that the stage fits and the least time is added."""
        if stage not in self._choices:
            blocks = {place: self.blocks(place) for place in self.plan.held(stage)}
            chosen = self._choose(stage, [block for held in blocks.values() for block in held])
            self._choices[stage] = {
                place: tuple(
                    next(chosen[id(block)]) if self._is_layer(block) else frozenset() for block in held
                )
                for place, held in blocks.items()
            }
        return self._choices[stage]

    def _choose(self, stage: int, blocks: list[Block]) -> dict[int, Iterator[frozenset[str]]]:
        """Return for each kind of layer of a stage what its layers compute again, one after the other."""
        orders, messages = self.plan.table.orders[stage], [self.messenger.layer(block) for block in blocks]
        held = in_flight(orders) / self.plan.table.chunks
        layers = {id(block): block for block in blocks if self._is_layer(block)}
        ends = [self.pricer.layer(block).memory for block in blocks if not self._is_layer(block)]
        # two layers' parameters and gradients are on their way at a time
        moving = 2.0 * max(message.gathered + message.gradients for message in messages)
        kept = held * sum(float(end.saved) for end in ends) + moving + sum(self.resident(stage).values())
        choice = choose(
            [(block, sum(other is block for other in blocks)) for block in layers.values()],
            [
                {op.name: op.time for op in self.pricer.layer(block).operators["forward"]}
                for block in layers.values()
            ],
            ROOM * self.capacity - kept,
            held=held,
            working=max((float(end.backward_peak) for end in ends), default=0.0),
            numerics=self.plan.numerics,
            groups={axis: span.size for axis, span in self.spans.items()},
        )
        return {
            key: iter([option.again for option, count in options for _ in range(count)])
            for key, options in zip(layers, choice.options, strict=True)
        }

    def chunk(self, place: int, *, repeat: bool = True) -> ChunkPass:
        """Return the passes through a model chunk; ``repeat`` where the strategy's operators are computed again."""
        blocks = self.blocks(place)
        again = self.again(place) if repeat else (frozenset[str](),) * len(blocks)
        key = tuple((id(block), names) for block, names in zip(blocks, again, strict=True))
        found = self._chunks.get(key)
        if found is None:
            found = self._chunks[key] = self.pricer.chunk(list(zip(blocks, again, strict=True)))
        return found

    def stage(self, index: int, table: Pipeline | None = None, capacity: float | None = None) -> StageWork:
        """Return what a stage does and holds; by another table or in another memory than the plan's where given."""
        plan, messenger, strategy = self.plan, self.messenger, self.strategy
        orders = (table or plan.table).orders[index]
        places = plan.held(index)
        chunks = tuple(self.chunk(place) for place in places)
        some = strategy.recompute_micro_batches
        kept = chunks if some is None else tuple(self.chunk(place, repeat=False) for place in places)
        blocks = [self.blocks(place) for place in places]
        weights = self.weights(index)
        dense, expert = (float(elements) for elements in self.elements(index).trained)
        by_layer = strategy.optimizer_update == "layer"
        layers = tuple(tuple(self._layer(block, by_layer=by_layer) for block in held) for held in blocks)
        communication = messenger.communication
        reduction = messenger.reductions(dense, expert) if communication.reduce == "end" else ()
        reduction += self._copies(index, dense + expert)
        replicate = messenger.replications(dense, expert) if communication.reduce == "end" else ()
        window = max(in_flight(orders, chunk) for chunk in range(plan.table.chunks))
        updated = messenger.updated_bytes(dense, expert)
        return StageWork(
            orders, chunks, kept, (1, 1) if some is None else (window, some), layers, communication,
            reduction + replicate, messenger.gathers(*updated) if communication.gather == "end" else (),
            0.0 if by_layer else self._optimizer(weights, blocks), self.resident(index),
            self.capacity if capacity is None else capacity, strategy.overlap_expert_parallel,
        )  # fmt: skip

    def weights(self, index: int) -> tuple[Weights, ...]:
        """Return the weight tensors of a stage, and the copy of the word table that a tied head holds elsewhere."""
        plan, model = self.plan, self.setup.model
        found: list[Weights] = []
        for place in plan.held(index):
            first, last = place == 0, place == plan.places - 1
            found += stage_weights(
                self.graph, plan.layers[place], model, embedding=first, head=last, whole=self._whole
            )
            if last and not first and model.tie_word_embeddings:
                width = model.embedding_size or model.hidden_size
                found.append(Weights("logits.copy", model.vocab_size / plan.tensor, width, role="head"))
        return tuple(found)

    @cached_property
    def _whole(self) -> ModelGraph | None:
        """The graph without tensor parallelism, for optimizers that work on whole matrices."""
        if self.strategy.optimizer != "muon" or self.plan.tensor == 1:
            return None
        return build(self.setup.model, Shape(1, self.plan.sequence), Partition(), self.plan.numerics)

    @property
    def _shards(self) -> Shards:
        groups = self.plan.groups
        return Shards(groups.shard, groups.expert_shard) if self.strategy.zero_stage else Shards()

    def resident(self, index: int) -> dict[str, float]:
        """Return the bytes that a stage holds through the whole step, by category."""
        states, device = self.states(index), self.cost.device
        calibration, groups = self.cost.calibration, self.plan.groups
        ends = (id(self.graph.embedding), id(self.graph.head))
        layers = {
            id(b): b for place in self.plan.held(index) for b in self.blocks(place) if id(b) not in ends
        }
        joined = (groups.tensor, groups.context, groups.expert, groups.replicas, groups.pipeline)
        channels = float(calibration.collective.occupancy or 0.0) * device.compute.units
        return {
            "weights": float(states.weights), "gradients": float(states.gradients),
            "optimizer states": float(states.optimizer),
            "empty gradients": float(sum(gradient_placeholders(layers.values(), self.plan.numerics).values())),
            "workspaces": cublas_workspaces(device.architecture),
            "communication buffers": float(nccl_bytes(sum(size > 1 for size in joined), channels)),
            "context": float(calibration.host.context_bytes or 0.0),
        }  # fmt: skip

    def states(self, index: int) -> ModelStates:
        """Return a stage's model states."""
        return model_states(self.strategy, self.elements(index), self._shards)

    def elements(self, index: int) -> Elements:
        """Return the parameters of a stage."""
        blocks = [block for place in self.plan.held(index) for block in self.blocks(place)]
        return Elements.of(self.weights(index), max(float(block.trainable_parameters) for block in blocks))

    def boundaries(self) -> dict[tuple[int, int], Message]:
        """Return the message between every two stages that follow each other on a route, in both directions."""
        plan = self.plan
        size = (
            plan.micro_batch
            * plan.sequence
            / plan.context
            * self.setup.model.hidden_size
            * plan.numerics.activation_bytes
        )
        pairs = {
            pair
            for route in plan.table.routes
            for (a, _), (b, _) in itertools.pairwise(route)
            if a != b
            for pair in ((a, b), (b, a))
        }
        return {pair: self.messenger.boundary(*pair, size) for pair in sorted(pairs)}

    def _layer(self, block: Block, *, by_layer: bool) -> LayerMessages:
        messages = self.messenger.layer(block)
        if messages.gathered and not self._is_layer(block):
            messages = replace(messages, stays=True)
        if not by_layer:
            return messages
        works = update_works(self.strategy, block_weights(block, self.setup.model), self._shards)
        return replace(messages, optimizer=sum(float(self.cost.price(work).time) for work in works))

    def _copies(self, index: int, elements: float) -> tuple[Message, ...]:
        """Return the reduction between the stages that hold the same layers, where a schedule has copies of the model."""
        table = self.plan.table
        if len(table.routes) == 1:
            return ()
        place = table.place(index, 0)
        other = next(stage for route in table.routes for stage, chunk in (route[place],) if chunk != 0)
        return self.messenger.copies(elements, index, other)

    def _optimizer(self, weights: tuple[Weights, ...], blocks: list[list[Block]]) -> float:
        """Seconds of the update, of gathers before it, and of what a step does once."""
        works = [*update_works(self.strategy, weights, self._shards)]
        works += [work for held in blocks for block in held for work in block.step_works()]
        seconds = sum(float(self.cost.price(work).time) for work in works)
        gathered = update_gathers(self.strategy, weights, self._shards)
        groups, hardware = self.plan.groups, self.setup.hardware
        for size, span in (
            (gathered.tensor, self.spans["tensor"]),
            (gathered.dense, groups.shards(hardware)[0]),
            (gathered.expert, groups.expert_shards(hardware)[0]),
        ):
            if size and span.size > 1:
                seconds += float(self.cost.price(Collective("all-gather", "data", size), span).time)
        return seconds
