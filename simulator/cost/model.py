"""The cost model of one device: it prices works and operators, and knows no strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from simulator.cost.breakdown import Breakdown, Cost, OperatorTime
from simulator.cost.collectives import NODE, LinkConstants, collective_time
from simulator.cost.custom_all_reduce import CustomConstants, CustomKernel, custom_all_reduce_time
from simulator.cost.expert_exchange import (
    ExchangeConstants,
    ExchangeStep,
    exchange_time,
    low_latency_exchange_time,
)
from simulator.cost.kernels import Kernels, complete_constants
from simulator.cost.measured import with_measured
from simulator.cost.numeric import Parts, chosen, larger
from simulator.cost.overlap import Overlap, beside_shared_experts, operator_times
from simulator.cost.streams import gather_bytes, transfer_time
from simulator.graph.graph import Block, Operator
from simulator.graph.work import (
    Attention,
    Axis,
    Collective,
    Elementwise,
    Gather,
    Matmul,
    Numeric,
    Route,
    Work,
)
from simulator.specs.calibration import Calibration, OperatorClass
from simulator.specs.errors import MemroofError
from simulator.specs.hardware import Processor
from simulator.specs.machine import Span
from simulator.specs.measured import MeasuredTable

ALONE: Mapping[Axis, Span] = {"tensor": Span(()), "expert": Span(())}
"""Spans of an accelerator that shares its work with no other."""


@dataclass(frozen=True)
class CostModel:
    """Prices work on one device.

    Parameters
    ----------
    device : Processor
        What computes.
    calibration : Calibration
        Constants of the device, its architecture or its kind; every one must be given.
    memory_bandwidth : float, optional
        Bandwidth of the memory that operands stream from [B/s]; the device's main memory if absent. A CPU
        whose DRAM is configured by its node needs it.
    sustained : bool
        Whether matrix units run at the clock that they hold under minutes of load (a busy server) or at that of a short
        benchmark.
    training : bool
        Whether that is the clock of hours of dense products, which draws the most power.
    measured : MeasuredTable, optional
        Measured products that replace predicted times of the very same shape.

    Raises
    ------
    MemroofError
        If a constant is missing, or the memory bandwidth is unknown.
    """

    device: Processor
    calibration: Calibration
    memory_bandwidth: float | None = None
    sustained: bool = False
    training: bool = False
    measured: MeasuredTable | None = None
    kernels: Kernels = field(init=False, repr=False, compare=False)
    _links: LinkConstants = field(init=False, repr=False, compare=False)
    _custom: CustomConstants = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        constants = complete_constants(self.calibration)
        kernels = Kernels(self.device, constants, self.memory_bandwidth, self.sustained, self.training)
        object.__setattr__(self, "kernels", kernels)
        links = {k: v for k, v in constants["collective"].items() if k in LinkConstants._fields}
        object.__setattr__(self, "_links", LinkConstants(**links))
        object.__setattr__(self, "_custom", CustomConstants(**constants["custom_collective"]))

    def price(self, work: Work, span: Span | None = None) -> Cost:
        """Return the cost of one work; a :class:`Collective` needs the span of its group.

        Raises
        ------
        MemroofError
            If the device has no unit for the work's number format, or a collective comes without a span.
        """
        kernels = self.kernels
        if isinstance(work, Matmul):
            if work.grouped:
                return self._cost(kernels.grouped(work), "grouped-matmul")
            cost = self._cost(kernels.matmul(work), "matmul")
            return cost if self.measured is None else with_measured(cost, work, self.measured)
        if isinstance(work, Attention):
            decode: OperatorClass = "decode-attention" if work.decode else "attention"
            return self._cost(kernels.attention(work), "latent-attention" if work.latent else decode)
        if isinstance(work, Elementwise):
            return self._cost(kernels.elementwise(work), "elementwise")
        if isinstance(work, Gather):
            return self._cost(kernels.stream(gather_bytes(work.rows, work.row_bytes)), "embedding")
        if isinstance(work, Route):
            return self._cost(kernels.route(work), "grouped-matmul")
        if span is None:
            raise MemroofError(f"the {work.kind} of axis {work.axis!r} has no span: say which ranks it joins")
        if work.kernel != "library" and work.kind == "all-reduce":
            return self.custom_all_reduce(work.size, span, work.kernel, axis=work.axis)
        error = self.calibration.error["collective"]
        if any(tier.name != NODE for tier in span.tiers):
            error = math.hypot(error, self.kernels.constants["collective"]["network_spread"])
        parts = collective_time(work.kind, span, work.size, self._links, copies=work.copies, nodes=work.nodes)
        return Cost.of(parts, "collective", error, work.axis)

    def custom_all_reduce(
        self,
        size: Numeric,
        span: Span,
        kernel: CustomKernel,
        *,
        limit: float | None = None,
        eager: bool = False,
        axis: str = "",
    ) -> Cost:
        """Return the cost of an all-reduce as serving engines run it: their own kernel up to a size, then the library's.

        Parameters
        ----------
        size : number or array
            Bytes of the tensor.
        span : Span
            The tensor-parallel group; over several tiers the library reduces.
        kernel : str
            ``pull`` (vLLM, SGLang) or ``push`` (TensorRT-LLM).
        limit : float, optional
            Bytes above which the library takes over; the calibration's if absent.
        eager : bool
            Outside a captured graph: the tensor is copied first, and the host's launch is the least time.
        axis : str
            Whose group reduces.
        """
        library = collective_time("all-reduce", span, size, self._links)
        parts = library
        constants = self._custom
        if len(span.tiers) == 1 and span.tiers[0].name == NODE:
            own = custom_all_reduce_time(
                span, size, constants, kernel=kernel, staging_exponent=self._links.staging_exponent
            )
            parts = chosen(size <= (constants.limit_bytes if limit is None else limit), own, library)
        if eager:
            copied = parts.time + self.kernels.stream(2.0 * size).time
            time = larger(copied, constants.eager_latency * (span.size > 1))
            parts = Parts(time, 0.0, 0.0, parts.link, time - parts.link)
        return self._cost(parts, "custom-collective", axis)

    def expert_exchange(
        self,
        step: ExchangeStep,
        span: Span,
        tokens: Numeric,
        hidden: Numeric,
        top_k: Numeric,
        experts: Numeric,
        *,
        low_latency: bool = False,
        units: Numeric = 24.0,
    ) -> Cost:
        """Return the cost of a dispatch or combine of expert parallelism with kernels made for it (DeepEP).

        Parameters
        ----------
        step : str
            ``dispatch`` or ``combine``.
        span : Span
            The expert-parallel group. Normal kernels are priced inside a machine; low-latency ones send over the
            outermost tier.
        tokens, hidden, top_k, experts : number or array
            Tokens of one rank, elements of a row, experts of a token, experts of all ranks.
        low_latency : bool
        units : number or array
            Streaming multiprocessors that a normal kernel is given.

        Raises
        ------
        MemroofError
            If normal kernels shall cross nodes.
        """
        given = dict(self.kernels.constants["expert_exchange"])
        error = self.calibration.error["expert-exchange"] * (
            given.pop("low_latency_spread") if low_latency else 1.0
        )
        constants = ExchangeConstants(**{name: given[name] for name in ExchangeConstants._fields})
        if span.size == 1:
            return self._cost(Parts(0.0 * tokens), "expert-exchange", "expert")
        if low_latency:
            parts = low_latency_exchange_time(
                step, span.tiers[-1], tokens, hidden, top_k, experts, constants, units=self.kernels.common["units"],
                network_efficiency=self._links.network_efficiency,
            )  # fmt: skip
        elif len(span.tiers) == 1 and span.tiers[0].name == NODE:
            parts = exchange_time(step, span.tiers[0], tokens, hidden, top_k, constants, units=units)
        else:
            raise MemroofError(
                "normal dispatch and combine are priced inside a machine; use low_latency across"
            )
        return Cost.of(parts, "expert-exchange", error, "expert")

    def host_iteration(self, sequences: Numeric, workers: int = 1) -> Cost:
        """Return what the CPU adds to an iteration of a serving engine that hides nothing.

        iteration + per_sequence·sequences, and ``workers`` more where several worker processes take part.
        """
        host = self.kernels.constants["host"]
        time = (
            host["iteration"] + host["per_sequence"] * sequences + (host["workers"] if workers > 1 else 0.0)
        )
        return self._cost(Parts(time, latency=time), "host")

    def transfer(
        self,
        size: Numeric,
        bandwidth: Numeric,
        latency: float = 0.0,
        *,
        chunk: Numeric | None = None,
        storage: bool = False,
    ) -> Cost:
        """Return the cost of a copy over a path of ``bandwidth`` [B/s]; ``storage`` where an end is flash."""
        constants = self.kernels.constants["transfer"]
        efficiency = constants["storage_efficiency" if storage else "efficiency"]
        half = constants["half_bytes"]
        parts = transfer_time(
            size, bandwidth, latency=latency, efficiency=efficiency, half_bytes=half, chunk=chunk
        )
        return self._cost(parts, "transfer")

    def total(self, works: Iterable[Work], spans: Mapping[Axis, Span]) -> Breakdown:
        """Return the sum of works that run one after the other, collectives exposed."""
        result = Breakdown()
        for work in works:
            result = result + Breakdown.of(self.price(work, _span(work, spans)))
        return result

    def operator_times(
        self,
        operator: Operator,
        spans: Mapping[Axis, Span],
        *,
        overlap: Overlap = "backward",
        apart: bool = False,
    ) -> OperatorTime:
        """Return the passes of an operator; see :func:`simulator.cost.overlap.operator_times`."""
        occupancy = self.kernels.constants["collective"]["occupancy"]
        return operator_times(
            operator,
            lambda work: self._breakdown(work, spans),
            lambda axis: spans[axis].size,
            occupancy,
            overlap=overlap,
            apart=apart,
        )

    def block_times(
        self,
        block: Block,
        spans: Mapping[Axis, Span],
        *,
        overlap: Overlap = "backward",
        apart: bool = False,
        shared_experts: bool = False,
    ) -> dict[str, OperatorTime]:
        """Return the passes of a block's operators by name.

        ``shared_experts`` says whether those run while routed tokens are exchanged; see
        :func:`simulator.cost.overlap.beside_shared_experts`.
        """
        times = {
            op.name: self.operator_times(op, spans, overlap=overlap, apart=apart) for op in block.operators
        }
        if not shared_experts:
            return times
        occupancy = self.kernels.constants["collective"]["occupancy"]
        return beside_shared_experts(block, times, lambda work: self._breakdown(work, spans), occupancy)

    def _breakdown(self, work: Work, spans: Mapping[Axis, Span]) -> Breakdown:
        return Breakdown.of(self.price(work, _span(work, spans)))

    def _cost(self, parts: Parts, operator_class: OperatorClass, axis: str = "") -> Cost:
        return Cost.of(parts, operator_class, self.calibration.error[operator_class], axis)


def _span(work: Work, spans: Mapping[Axis, Span]) -> Span | None:
    if not isinstance(work, Collective):
        return None
    if work.axis not in spans:
        raise MemroofError(
            f"the {work.kind} of axis {work.axis!r} has no span; known axes: {', '.join(spans) or 'none'}"
        )
    return spans[work.axis]
