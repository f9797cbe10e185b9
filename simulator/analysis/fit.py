"""Does a model fit on some hardware for inference: largest batch, largest context, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from simulator.analysis.export import plain
from simulator.analysis.result import format_value
from simulator.graph import ModelGraph, Numerics, Partition, Shape, build
from simulator.specs import Catalog, Hardware, MemroofError, Model
from simulator.specs.scenario_base import HardwareChoice

UTILIZATION = 0.9
"""Share of GPU memory that an engine may use: what serving engines take by default."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """Whether a model fits, and how much of what."""

    model: str
    hardware: str
    devices: int
    tensor_parallel: int
    precision: str
    kv_precision: str
    parameters: int
    capacity: float
    """Usable bytes of one accelerator."""
    weights: float
    """Bytes of weights on one accelerator."""
    reserved: float
    """Driver context, library buffers and workspaces of one accelerator [B]."""
    kv_per_token: float
    """KV cache of one token on one accelerator [B]; of a long sequence, where a window caps some layers."""
    context: int
    largest_batch: int
    """Sequences of ``context`` tokens that fit at once."""
    largest_context: int
    """Tokens of a single sequence that fit, the model's own limit at most."""
    longest_cached: int
    """Tokens of a single sequence that memory alone would allow."""
    remedies: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether weights and one sequence of ``context`` tokens fit."""
        return self.largest_batch >= 1

    @property
    def shortfall(self) -> float:
        """Bytes missing on one accelerator for one sequence; 0 where it fits."""
        return max(0.0, self.weights + self.reserved + self.kv_per_token * self.context - self.capacity)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        data = {name: getattr(self, name) for name in self.__slots__}
        document: dict[str, Any] = plain({**data, "fits": self.fits, "shortfall": self.shortfall})
        return document


def fit(
    model: str,
    hardware: str | HardwareChoice,
    *,
    catalog: Catalog | None = None,
    precision: str = "bf16",
    kv_precision: str | None = None,
    context: int | None = None,
    tensor_parallel: int | None = None,
) -> FitReport:
    """Answer whether a model fits for inference.

    Parameters
    ----------
    model, hardware : str
        Names of the catalog; hardware may be a device, a node or a cluster.
    precision, kv_precision : str
        Formats that weights and cache are stored in.
    context : int, optional
        Tokens of a sequence, prompt and output; the model's own limit, 8,192 at most, if absent.
    tensor_parallel : int, optional
        Accelerators that share the model; all of one node (the largest legal degree) if absent.

    Raises
    ------
    MemroofError
        For unknown names or an illegal degree.
    """
    catalog = catalog or Catalog()
    checked = catalog.model(model)
    choice = hardware if isinstance(hardware, HardwareChoice) else HardwareChoice(node=hardware)
    machine = catalog.hardware(choice)
    context = context or min(checked.max_position_embeddings, 8192)
    degrees = [
        degree for degree in _degrees(machine.ranks_per_node) if checked.num_attention_heads % degree == 0
    ]
    chosen = tensor_parallel or degrees[-1]
    if chosen > machine.size:
        raise MemroofError(
            f"tensor_parallel {chosen} exceeds the {machine.size} accelerators of {machine.name}"
        )
    if checked.num_attention_heads % chosen:
        raise MemroofError(
            f"tensor_parallel {chosen} does not divide the {checked.num_attention_heads} attention heads of {model}"
        )
    reserved = float(catalog.calibration(machine.device).host.context_bytes or 0.0)
    report = _report(checked, machine, chosen, precision, kv_precision, context, reserved, ())
    if report.fits:
        return report
    found = tuple(_remedies(checked, machine, report, degrees, reserved, kv_precision))
    return _report(checked, machine, chosen, precision, kv_precision, context, reserved, found)


def _report(
    model: Model,
    hardware: Hardware,
    degree: int,
    precision: str,
    kv_precision: str | None,
    context: int,
    reserved: float,
    remedies: tuple[str, ...],
) -> FitReport:
    numerics = Numerics.of(
        precision if precision in ("fp32", "fp16", "bf16", "fp8") else "bf16", precision, kv_precision
    )
    graph = build(model, Shape(1, 1, context, "decode"), Partition(degree), numerics)
    capacity = hardware.memory.capacity * UTILIZATION
    room = capacity - float(graph.weight_bytes) - reserved
    one = float(graph.kv_bytes(context))
    longest = _longest(graph, room)
    whole = build(model, Shape(1, 1))
    return FitReport(
        model.name, hardware.name, hardware.size, degree, precision, kv_precision or "bf16", round(float(whole.parameters)),
        capacity, float(graph.weight_bytes), reserved, one / context, context,
        int(room // one) if room > 0 and one else 0, min(longest, model.max_position_embeddings), longest, remedies,
    )  # fmt: skip


def _longest(graph: ModelGraph, room: float) -> int:
    """Largest count of tokens whose cache fits, by bisection: windows make the cache a concave function of tokens."""
    low, high = 0, 1
    if float(graph.kv_bytes(1)) > room:
        return 0
    while float(graph.kv_bytes(high)) <= room and high < 2**40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(graph.kv_bytes(middle)) <= room else (low, middle)
    return low


def _degrees(ranks: int) -> list[int]:
    return [degree for degree in range(1, ranks + 1) if ranks % degree == 0]


def _remedies(
    model: Model, hardware: Hardware, report: FitReport, degrees: list[int], reserved: float, kv: str | None
) -> Iterable[str]:
    def fits(degree: int, precision: str, kv_precision: str | None, context: int) -> bool:
        return _report(model, hardware, degree, precision, kv_precision, context, reserved, ()).fits

    base = (report.tensor_parallel, report.precision, kv, report.context)
    shorter = report.longest_cached
    if shorter >= 1:
        yield f"a context of {shorter:,} tokens instead of {report.context:,}"
    larger = [d for d in degrees if d > base[0] and fits(d, *base[1:])]
    if larger:
        yield f"tensor_parallel {larger[0]} instead of {base[0]}"
    for stored in ("fp8", "int4"):
        if fits(base[0], stored, kv, base[3]):
            yield f"weights in {stored}"
            break
    if kv is None and fits(base[0], base[1], "fp8", base[3]):
        yield "KV cache in fp8"
    needed = (
        report.weights * report.tensor_parallel
        + report.kv_per_token * report.tensor_parallel * report.context
    )
    count = -(-needed // max(1.0, report.capacity - reserved))
    yield (
        f"{count:.0f} of these accelerators ({format_value(report.capacity, 'bytes')} usable each) "
        f"for {format_value(needed, 'bytes')}"
    )
