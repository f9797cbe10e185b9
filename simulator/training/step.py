"""One training step: plan, graph, costs, program, timeline, and what they say."""

from __future__ import annotations

import numpy as np

from simulator.cost import adam_bytes, collective_traffic
from simulator.engine import execute
from simulator.graph import (
    FORMAT_BYTES,
    Collective,
    Elementwise,
    ModelGraph,
    Shape,
    build,
)
from simulator.specs import MemroofError, Span, TrainingScenario
from simulator.strategy import Outcome, Setup
from simulator.training.answer import outcome
from simulator.training.lower import Message, StageWork, lower
from simulator.training.memory import (
    MASTER_BYTES,
    STATE_BYTES,
    ModelStates,
    bytes_per_parameter,
    graph_parameters,
    model_states,
)
from simulator.training.passes import ChunkPass, PassPricer
from simulator.training.plan import Plan, make_plan
from simulator.training.schedule import SCHEDULES

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
    # a pass and its message, forward and backward
    tasks = 4 * plan.micro_batches * plan.chunks * plan.pipeline
    if tasks > MAXIMUM_TASKS:
        raise MemroofError(
            f"{tasks:,} tasks are more than {MAXIMUM_TASKS:,}; a larger micro_batch or fewer virtual_stages makes fewer"
        )
    step = Step(setup, scenario, plan)
    stages = [step.stage(index) for index in range(plan.pipeline)]
    lowered = lower(scenario.name, stages, detail=detail)
    timeline = execute(lowered.program)
    return outcome(step, stages, lowered, timeline)


class Step:
    """What all stages share: graph, spans, priced passes."""

    def __init__(self, setup: Setup, scenario: TrainingScenario, plan: Plan) -> None:
        self.setup, self.scenario, self.plan = setup, scenario, plan
        self.strategy, self.cost = scenario.strategy, setup.cost
        self.spans = plan.spans(setup.hardware)
        shape = Shape(
            plan.micro_batch, plan.sequence, target=plan.sequence if setup.model.num_encoder_layers else None
        )
        self.graph: ModelGraph = build(
            setup.model, shape, plan.partition, plan.numerics, fused_attention=self.strategy.fused_attention,
            fused_loss=self.strategy.fused_loss,
        )  # fmt: skip
        self.pricer = PassPricer(
            self.graph,
            self.cost,
            self.spans,
            self.strategy.recompute,
            eager=not self.strategy.cuda_graphs,
            overlap=self.strategy.overlap_tensor_parallel != "none",
        )
        self._chunks: dict[tuple[tuple[int, ...], bool, bool], ChunkPass] = {}
        self._boundaries: dict[int, Message] = {}

    def stage(self, index: int) -> StageWork:
        """Return what a stage does and holds."""
        plan, strategy = self.plan, self.strategy
        places = [chunk * plan.pipeline + index for chunk in range(plan.chunks)]
        chunks = tuple(self._chunk(place) for place in places)
        states, parameters = self.states(index)
        reduction, gather = self._data_parallel(parameters, states)
        optimizer = self.cost.price(self._optimizer(self._updated(parameters)))
        schedule = SCHEDULES[strategy.schedule](index, plan.pipeline, plan.micro_batches, plan.chunks)
        context = float(self.cost.calibration.host.context_bytes or 0.0)
        resident = {
            "weights": float(states.weights), "gradients": float(states.gradients),
            "optimizer states": float(states.optimizer), "context": context,
        }  # fmt: skip
        boundary = self._boundary(index) if plan.pipeline > 1 else None
        return StageWork(
            schedule, chunks, boundary, reduction, strategy.overlap_gradient_reduction and bool(reduction),
            float(optimizer.time), gather, resident, self.setup.hardware.memory.capacity,
        )  # fmt: skip

    def states(self, index: int) -> tuple[ModelStates, tuple[float, float]]:
        """Return a stage's model states and its (all, expert) parameters."""
        plan = self.plan
        total = expert = 0.0
        for chunk in range(plan.chunks):
            place = chunk * plan.pipeline + index
            first, last = place == 0, place == len(plan.layers) - 1
            everything, experts = graph_parameters(self.graph, plan.layers[place], embedding=first, head=last)
            if last and not first and self.setup.model.tie_word_embeddings:
                everything += self._tied_table()
            total, expert = total + everything, expert + experts
        return model_states(self.strategy, total, plan.data, expert, plan.expert), (total, expert)

    def _tied_table(self) -> float:
        """A tied head on another stage than the embedding holds a copy of the word table."""
        model = self.setup.model
        return model.vocab_size * (model.embedding_size or model.hidden_size) / self.plan.tensor

    def _chunk(self, place: int) -> ChunkPass:
        plan = self.plan
        layers = plan.layers[place]
        first, last = place == 0, place == len(plan.layers) - 1
        kinds = tuple(self.graph.layers[layer] for layer in layers)
        key = (kinds, first, last)
        found = self._chunks.get(key)
        if found is None:
            found = self._chunks[key] = self.pricer.chunk(layers, embedding=first, head=last)
        return found

    def _boundary(self, stage: int) -> Message:
        plan = self.plan
        span = plan.boundary(self.setup.hardware, stage)
        size = (
            plan.micro_batch * plan.sequence * self.setup.model.hidden_size * plan.numerics.activation_bytes
        )
        scattered = self.strategy.sequence_parallel or self.strategy.optimize_pipeline_transfer
        sent = size / plan.tensor if scattered else size
        message = self._message(Collective("send", "pipeline", sent), span)
        if plan.tensor > 1 and scattered and not self.strategy.sequence_parallel:
            gather = self.cost.price(Collective("all-gather", "tensor", size), self.spans["tensor"])
            message = Message(
                message.size, message.bandwidth, message.latency + float(gather.time), message.rate
            )
        return message

    def _message(self, collective: Collective, span: Span) -> Message:
        """Return a collective as bytes over its outermost link, lasting what the cost model says."""
        cost = self.cost.price(collective, span)
        size = float(collective_traffic(collective.kind, span, float(collective.size))[-1])
        time, latency = float(cost.time), float(cost.latency)
        if time <= latency or size <= 0.0:
            return Message(0.0, span.tiers[-1].bandwidth, time, np.inf)
        rate = size / (time - latency)
        return Message(size, max(span.tiers[-1].bandwidth, rate), latency, rate)

    def _data_parallel(
        self, parameters: tuple[float, float], states: ModelStates
    ) -> tuple[tuple[Message, ...], Message | None]:
        """Return the gradient reductions of a stage and, for ZeRO-1, the gathering of its updated parameters."""
        plan, strategy = self.plan, self.strategy
        width = FORMAT_BYTES[strategy.gradient_precision]
        total, expert = parameters
        groups = [(total - expert, self.spans["data"])]
        if expert and plan.data > plan.expert:
            groups.append(
                (expert, self.setup.hardware.span(plan.data // plan.expert, plan.tensor * plan.expert))
            )
        kind = "reduce-scatter" if strategy.zero_stage else "all-reduce"
        messages = tuple(
            self._message(Collective(kind, "data", elements * width), span)  # type: ignore[arg-type]
            for elements, span in groups
            if elements and span.size > 1
        )
        if not strategy.zero_stage or not messages:
            return messages, None
        return messages, self._message(Collective("all-gather", "data", states.weights), self.spans["data"])

    def _optimizer(self, elements: float) -> Elementwise:
        weight, gradient, _ = bytes_per_parameter(self.strategy)
        master = MASTER_BYTES if weight < MASTER_BYTES else 0.0
        moments = STATE_BYTES[self.strategy.optimizer] / 2.0
        read, written = adam_bytes(
            elements, gradient_bytes=gradient, weight_bytes=weight, state_bytes=moments, master_bytes=master
        )
        norm_read, norm_written = self._gradient_passes(gradient)
        return Elementwise(read + elements * norm_read, written + elements * norm_written, 18.0 * elements)

    def _gradient_passes(self, width: float) -> tuple[float, float]:
        """Bytes read and written for each gradient element before the optimizer sees it, as kernels over all gradients.

        The norm is read, the clipped gradient written back, the buffer zeroed for the next step; in fp16 the loss scale is
        divided out (and infinities are looked for) first (Micikevicius et al. 2018, section 3.2).
        """
        scaled = width if self.strategy.precision == "fp16" else 0.0
        return 2.0 * width + scaled, 2.0 * width + scaled

    def _updated(self, parameters: tuple[float, float]) -> float:
        """Elements that one rank's optimizer updates."""
        total, expert = parameters
        if not self.strategy.zero_stage:
            return total
        return (total - expert) / self.plan.data + expert / max(1, self.plan.data // self.plan.expert)
