"""Generate one sequence: programs of the prompt and of decode steps, timelines, and what they say."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.cost import peak_flops
from simulator.engine import Timeline, execute
from simulator.graph import Matmul
from simulator.offload.stream_decode.lower import (
    cache_bytes,
    graph_of,
    lower,
    pieces,
    stored_bytes,
)
from simulator.specs import MemroofError, OperatorClass
from simulator.specs.stream_decode_scenario import StreamDecodeScenario
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Remedy, Setup

SOURCES = (
    "Zeng et al. 2024, arXiv:2401.03868 (FlightLLM): activations always on chip, sparse weights of mixed precision streamed",
)
BOUND: dict[str, Bottleneck] = {"memory": "memory", "array": "compute", "round trip": "latency"}


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate the generation of one sequence.

    Parameters
    ----------
    setup : Setup
        A stream-decode scenario with its model and accelerator.
    detail : bool
        Without effect: a pass is simulated operator by operator anyway.

    Returns
    -------
    Outcome
        Of one sequence; the time of decode is that of the first, the middle and the last step by Simpson's rule.

    Raises
    ------
    MemroofError
        If there are several accelerators, or the device has no such format.
    """
    scenario = setup.scenario
    assert isinstance(scenario, StreamDecodeScenario)
    if setup.hardware.size != 1:
        raise MemroofError(
            f"this method runs on one accelerator; {setup.hardware.name} has {setup.hardware.size}"
        )
    work, strategy, peak = scenario.workload, scenario.strategy, setup.hardware.memory.read.bandwidth
    steps = work.output - 1
    _, prefill = _pass(setup, work.prompt, 0)
    contexts = (work.prompt, work.prompt + max(steps - 1, 0) // 2, work.prompt + max(steps - 1, 0))
    moved, runs = zip(*(_pass(setup, 1, context) for context in contexts), strict=True)
    simpson = (1 / 6, 4 / 6, 1 / 6)
    token = sum(weight * run.makespan for weight, run in zip(simpson, runs, strict=True))
    size = sum(weight * bytes_ for weight, bytes_ in zip(simpson, moved, strict=True))
    total = prefill.makespan + steps * token
    metrics = {
        "generation_throughput": Metric("output tokens per second, with prefill", work.output / total, "1/s", better="higher"),
        "time_per_output_token": Metric("time per decode step", token, "seconds", better="lower"),
        "decode_throughput": Metric("output tokens per second of decode", 1.0 / token, "1/s", better="higher"),
        "prefill_time": Metric("prefill time", prefill.makespan, "seconds", better="lower"),
        "token_bytes": Metric("weights and cache read for a token", size, "bytes", better="lower"),
        "memory_utilisation": Metric("of the memory's bandwidth in decode", size / token / peak, "fraction", better="higher"),
    }  # fmt: skip
    bound, classes = _divided(prefill, runs[1], total - steps * token, steps * token)
    return Outcome(
        headline="decode_throughput", metrics=metrics, memory=_memory(setup), class_times=classes, bottlenecks=bound,
        total_time=total, sources=SOURCES, timeline=runs[1], class_errors=dict.fromkeys(classes, 0.0),
        assumptions=(
            "one sequence at a time; nothing is launched, loads run beside products in two buffers",
            "norms, activations and softmax are hidden on the chip",
            f"a stream reaches {strategy.memory_efficiency:.1%} of the memory's bandwidth: given, not found",
        ),
    )  # fmt: skip


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield weights in fewer bits."""
    scenario = setup.scenario
    assert isinstance(scenario, StreamDecodeScenario)
    for bits in (8.0, 4.0, 3.0, 2.0):
        if bits < scenario.strategy.weight_bits:
            yield Remedy(f"weights in {bits:g} bits", {"strategy.weight_bits": f"{bits:g}"})


def _pass(setup: Setup, tokens: int, cached: int) -> tuple[float, Timeline]:
    """Bytes of a pass, and its timeline."""
    scenario, hardware = setup.scenario, setup.hardware
    assert isinstance(scenario, StreamDecodeScenario)
    strategy = scenario.strategy
    items = pieces(graph_of(setup.model, strategy, tokens, cached), strategy)
    bandwidth = hardware.memory.read.bandwidth * strategy.memory_efficiency
    rate = peak_flops(hardware.device, strategy.precision) / 2.0 * strategy.array_efficiency
    return sum(item.bytes for item in items), execute(lower(items, strategy, bandwidth, rate))


def _divided(
    prefill: Timeline, decode: Timeline, prompt_time: float, decode_time: float
) -> tuple[dict[Bottleneck, float], dict[OperatorClass, float]]:
    bound: dict[Bottleneck, float] = {}
    for run, seconds in ((prefill, prompt_time), (decode, decode_time)):
        for task in run.critical_path().tasks.tolist():
            tag = run.program.tags[run.program.tag[task]]
            spent = float(run.end[task] - run.start[task]) / run.makespan * seconds
            if spent:
                bound[BOUND[tag]] = bound.get(BOUND[tag], 0.0) + spent
    return bound, {"matmul": sum(bound.values())}


def _memory(setup: Setup) -> tuple[MemoryUse, ...]:
    """Weights and the cache at its fullest in memory."""
    scenario, store = setup.scenario, setup.hardware.memory
    assert isinstance(scenario, StreamDecodeScenario)
    graph = graph_of(setup.model, scenario.strategy, 1, 1)
    blocks = (graph.embedding, *(graph.blocks[i] for i in graph.layers), graph.head)
    products = {
        op.name for b in blocks for op in b.operators if any(isinstance(w, Matmul) for w in op.forward)
    }
    narrow = sum(float(op.parameters) for b in blocks for op in b.operators if op.name in products)
    wide = sum(float(b.parameters) for b in blocks) - narrow
    work = scenario.workload
    held = {
        "weights": narrow * stored_bytes(scenario.strategy),
        "embedding and norms": 2.0 * wide,
        "KV cache": cache_bytes(setup.model, scenario.strategy, work.prompt + work.output),
    }
    largest = tuple(Holding(name, size) for name, size in sorted(held.items(), key=lambda item: -item[1]))
    return (MemoryUse(store.name, store.tier, store.capacity, sum(held.values()), 0.0, held, largest),)
