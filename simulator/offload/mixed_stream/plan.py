"""The steady state of an endless queue of requests: how many decode, how many prompts join each iteration, what it all costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from simulator.cost import ALONE, CostModel, stream_time
from simulator.graph import FORMAT_BYTES, Attention, Numerics, Operator, Shape, build
from simulator.offload.columns import COLUMNS, Price
from simulator.offload.place import Place, find_place
from simulator.offload.tiers import DRAM, GPU, single
from simulator.specs import MemroofError, MixedStreamScenario, Model
from simulator.strategy import Setup


@dataclass(frozen=True, slots=True)
class Unit:
    """The embedding, a layer or the head, for one group in one iteration."""

    name: str
    weights: tuple[float, float]
    """Streamed, up to attention and after it [B]."""
    before: Price
    """Up to attention; of a unit without attention, all of it."""
    prompts: Price
    """Attention of the prompts."""
    after: Price
    sent: float
    """Queries of decoding tokens, and keys and values of all that are new, to DRAM [B]."""
    returned: float
    """Attention output of decoding tokens [B]."""
    attended: float
    """Cache that CPUs read [B]."""
    host_time: float
    """Seconds that they take for it where nothing else uses the DRAM."""
    attends: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked scenario in its steady state."""

    name: str
    model: Model
    place: Place
    cost: CostModel
    units: tuple[Unit, ...]
    order: tuple[int, ...]
    """Embedding, layers and head as indices into ``units``."""
    groups: int
    copy_rate: float
    numerics: Numerics
    decoding: float
    """Requests that decode in an iteration."""
    joining: float
    """Requests whose prompts an iteration processes."""
    prompt: int
    output: int
    token_bytes: float
    """Cache of one token [B]."""
    capacity: float
    """Cache in DRAM [B]."""
    activations: float
    """Largest tensors alive at once on the accelerator [B]."""

    @property
    def tokens(self) -> float:
        """Tokens of an iteration."""
        return self.decoding + self.joining * self.prompt

    @property
    def model_bytes(self) -> float:
        """All weights [B]."""
        return sum(sum(self.units[index].weights) for index in self.order)


def make_plan(setup: Setup) -> Plan:
    """Check a scenario and find its steady state.

    Requests are at all ages alike, so that N of them hold N·(p + g/2) tokens; N/g end in an iteration, and as many join with
    their prompts.

    Raises
    ------
    MemroofError
        For a scenario of another kind, a model that does not generate or whose cache is latent, several accelerators, no
        CPU, or a cache that does not hold one request.
    """
    scenario = setup.scenario
    if not isinstance(scenario, MixedStreamScenario):
        raise MemroofError(f"mixed-stream cannot run a {scenario.kind} scenario")
    strategy, workload, model = scenario.strategy, scenario.workload, setup.model
    single(setup.hardware)
    if model.family != "decoder":
        raise MemroofError(f"offload generates with decoders; {model.name} is an {model.family}")
    if model.mla is not None:
        raise MemroofError(
            f"mixed-stream: attention of {model.name} over a latent cache on CPUs is not modelled"
        )
    place = find_place(setup.hardware, setup.cost.calibration, setup.host, strategy.pinned, None)
    if not place.accelerators:
        raise MemroofError(f"mixed-stream streams to an accelerator; {setup.hardware.name} has CPUs alone")
    width = FORMAT_BYTES[strategy.kv_precision] if strategy.kv_precision else 2.0
    numerics = Numerics.of(strategy.precision, None, strategy.kv_precision)
    graph = build(model, Shape(1, 1, 1, "decode"), numerics=numerics)
    token_bytes = sum(float(graph.blocks[index].kv_width) for index in graph.layers) * width
    held = workload.prompt + workload.output / 2.0
    most = strategy.kv_capacity / token_bytes / held
    if most < 1.0:
        raise MemroofError(
            f"strategy.kv_capacity: one request of {workload.prompt + workload.output} tokens does not fit in "
            f"{strategy.kv_capacity / 1e9:g} GB"
        )
    decoding = min(most, workload.sequences or most)
    joining = decoding / workload.output
    pricing = _Pricing(setup, place, numerics, decoding / strategy.groups, joining / strategy.groups, workload.prompt,
                       int(held))  # fmt: skip
    units, order, activations = pricing.units()
    copy_rate = strategy.copy_rate or place.ranks[0].channels[DRAM, GPU].rate
    return Plan(
        scenario.name, model, place, setup.cost, units, order, strategy.groups, copy_rate, numerics, decoding, joining,
        workload.prompt, workload.output, token_bytes, strategy.kv_capacity, activations,
    )  # fmt: skip


class _Pricing:
    """Prices of one group: products over all of its tokens at once, attention apart."""

    def __init__(
        self,
        setup: Setup,
        place: Place,
        numerics: Numerics,
        decoding: float,
        joining: float,
        prompt: int,
        held: int,
    ) -> None:
        self.setup, self.place, self.numerics = setup, place, numerics
        self.decoding, self.joining, self.prompt = decoding, joining, prompt
        self.tokens = decoding + joining * prompt
        self.mixed = build(setup.model, Shape(self.tokens, 1, held, "decode"), numerics=numerics)
        self.prefill = build(setup.model, Shape(joining, prompt, 0, "prefill"), numerics=numerics)
        self.decode = build(setup.model, Shape(decoding, 1, held, "decode"), numerics=numerics)

    def units(self) -> tuple[tuple[Unit, ...], tuple[int, ...], float]:
        """Return the distinct units, their order and the most bytes of tensors alive."""
        blocks = self.mixed.blocks
        ends = [(self.mixed.embedding, "embedding"), (self.mixed.head, "head")]
        found = [self.end(block.operators, float(block.parameters), name) for block, name in ends]
        layers = [self.layer(index) for index in range(len(blocks))]
        order = (0, *(2 + index for index in self.mixed.layers), 1)
        # hidden states in and out, and what the widest operator reads and writes
        largest = max(
            sum(float(np.max(block.tensors[name].size)) for name in (*op.inputs, *op.outputs))
            for block in blocks
            for op in block.operators
            if not op.core
        )
        return (*found, *layers), order, largest

    def end(self, operators: Iterable[Operator], parameters: float, name: str) -> Unit:
        price = self.price(operators)
        empty = self.price(())
        size = parameters * self.numerics.weight_bytes
        return Unit(name, (size, 0.0), price, empty, empty, 0.0, 0.0, 0.0, 0.0, attends=False)

    def layer(self, index: int) -> Unit:
        mixed, prefill, decode = (graph.blocks[index] for graph in (self.mixed, self.prefill, self.decode))
        places = [i for i, op in enumerate(mixed.operators) if op.core]
        before, after = mixed.operators[: places[0]], mixed.operators[places[-1] + 1 :]
        cores = [op for op in prefill.operators if op.core]
        on_cpus = [
            work for op in decode.operators if op.core for work in op.forward if isinstance(work, Attention)
        ]
        width = self.numerics.activation_bytes
        queries = sum(float(work.batch * work.heads * work.qk_dim) * width for work in on_cpus)
        outputs = sum(float(work.batch * work.heads * work.v_dim) * width for work in on_cpus)
        new = self.tokens * float(mixed.kv_width) * width
        attended = sum(float(work.cache_bytes) for work in on_cpus)
        flops = sum(float(np.max(work.flops)) for work in on_cpus)
        return Unit(
            mixed.name, (self.size(before), self.size(after)), self.price(before), self.price(cores), self.price(after),
            queries + new, outputs, attended, self.attention(attended, flops), attends=True,
        )  # fmt: skip

    def size(self, operators: Iterable[Operator]) -> float:
        """Weights of some operators [B]."""
        return sum(float(op.parameters) for op in operators) * self.numerics.weight_bytes

    def attention(self, size: float, flops: float) -> float:
        """Seconds of decode attention on the CPUs: a roofline over their DRAM and their fp32 vector units."""
        host, sockets = self.setup.host, self.place.sockets
        assert host is not None  # or find_place had refused it
        constants = host.calibration
        efficiency = constants.decode_attention.memory_efficiency or 1.0
        peak = (
            sockets.count
            * sockets.device.compute.vector["fp32"]
            * (constants.attention.peak_efficiency or 1.0)
        )
        rate = min(sockets.bandwidth * efficiency, self.place.host.channel.rate)
        parts = stream_time(size, flops, peak=peak, bandwidth=rate, memory_efficiency=1.0, base_latency=0.0)
        return float(parts.time)

    def price(self, operators: Iterable[Operator]) -> Price:
        works = (work for op in operators for work in op.forward)
        total = self.setup.cost.total(works, ALONE)
        row = np.zeros(len(COLUMNS))
        for name, seconds in (*total.by_bound.items(), *total.by_class.items()):
            if name in COLUMNS:  # a single accelerator waits for no link of its own
                row[COLUMNS.index(name)] += float(np.max(seconds))
        return Price(row[None, :])
