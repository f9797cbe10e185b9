"""The cost model of one device: it prices works and operators, and knows no strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from simulator.cost.attention import attention_time, cached_speedup, decode_attention_time, store_time
from simulator.cost.breakdown import Breakdown, Cost, OperatorTime
from simulator.cost.collectives import NODE, LinkConstants, collective_time
from simulator.cost.custom_all_reduce import CustomConstants, CustomKernel, custom_all_reduce_time
from simulator.cost.expert_exchange import (
    ExchangeConstants,
    ExchangeStep,
    exchange_time,
    low_latency_exchange_time,
)
from simulator.cost.grouped import GroupedKernel, grouped_time
from simulator.cost.matmul import matmul_time
from simulator.cost.measured import with_measured
from simulator.cost.numeric import Parts, chosen, larger, smaller
from simulator.cost.peaks import peak_flops
from simulator.cost.streams import gather_bytes, stream_time, transfer_time
from simulator.graph.graph import Operator
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
from simulator.specs.base import Spec
from simulator.specs.calibration import OPERATOR_CLASSES, Calibration, OperatorClass
from simulator.specs.errors import MemroofError
from simulator.specs.hardware import Processor
from simulator.specs.machine import Span
from simulator.specs.measured import MeasuredTable

_PREFILL = (
    "memory_efficiency", "tile", "tile_latency", "tail", "exposed_traffic", "base_latency",
)  # fmt: skip
_DECODE = (
    "memory_efficiency", "row_tile", "key_tile", "split_keys", "fill", "split_sequences", "ungrouped_sequences",
    "split_parts", "unit_blocks", "block_latency", "combine_latency", "part_latency", "regroup_latency", "base_latency",
)  # fmt: skip
NARROW = ("fp8", "int8", "fp6", "fp4", "int4")
"""Formats of 8 bits and fewer."""
UNIT_FLOPS = 1024.0
"""FLOP a clock of the unit that the constant ``softmax_dim`` is meant for."""
BACKWARD_PRODUCTS = 2.5
"""Products of the backward pass of fused attention over the forward pass's: five for two (Dao 2023)."""


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
    _constants: dict[str, dict[str, float]] = field(init=False, repr=False, compare=False)
    _common: dict[str, float] = field(init=False, repr=False, compare=False)
    _cache: float = field(init=False, repr=False, compare=False)
    _peaks: dict[tuple[str, bool], float] = field(init=False, repr=False, compare=False)
    _links: LinkConstants = field(init=False, repr=False, compare=False)
    _custom: CustomConstants = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bandwidth = self.memory_bandwidth
        if bandwidth is None:
            ports = iter(self.device.memory.values())
            port = next(ports, None)
            if port is None:
                raise MemroofError(
                    f"{self.device.name} has no memory of its own; give the bandwidth of its DRAM"
                )
            bandwidth = port.bandwidth
        object.__setattr__(self, "_constants", _complete(self.calibration))
        object.__setattr__(
            self, "_common", {"bandwidth": float(bandwidth), "units": float(self.device.compute.units)}
        )
        object.__setattr__(
            self, "_cache", max((float(c.capacity) for c in self.device.cache.values()), default=0.0)
        )
        object.__setattr__(self, "_peaks", {})
        links = {k: v for k, v in self._constants["collective"].items() if k in LinkConstants._fields}
        object.__setattr__(self, "_links", LinkConstants(**links))
        object.__setattr__(self, "_custom", CustomConstants(**self._constants["custom_collective"]))

    def price(self, work: Work, span: Span | None = None) -> Cost:
        """Return the cost of one work; a :class:`Collective` needs the span of its group.

        Raises
        ------
        MemroofError
            If the device has no unit for the work's number format, or a collective comes without a span.
        """
        if isinstance(work, Matmul):
            if work.grouped:
                return self._cost(self._grouped(work), "grouped-matmul")
            cost = self._cost(self._matmul(work), "matmul")
            return cost if self.measured is None else with_measured(cost, work, self.measured)
        if isinstance(work, Attention):
            return self._attention(work)
        if isinstance(work, Elementwise):
            return self._stream(
                work.bytes,
                "elementwise",
                work.flops,
                work.format,
                work.kernels,
                work.scalar,
                work.rows,
                work.chained,
                work.reuse_distance,
            )
        if isinstance(work, Gather):
            return self._stream(gather_bytes(work.rows, work.row_bytes), "embedding")
        if isinstance(work, Route):
            return self._cost(self._route(work), "grouped-matmul")
        if span is None:
            raise MemroofError(f"the {work.kind} of axis {work.axis!r} has no span: say which ranks it joins")
        if work.kernel != "library" and work.kind == "all-reduce":
            return self.custom_all_reduce(work.size, span, work.kernel, axis=work.axis)
        error = self.calibration.error["collective"]
        if any(tier.name != NODE for tier in span.tiers):
            error = math.hypot(error, self._constants["collective"]["network_spread"])
        parts = collective_time(work.kind, span, work.size, self._links)
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
            copied = parts.time + self._stream(2.0 * size, "elementwise").time
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
        given = dict(self._constants["expert_exchange"])
        error = self.calibration.error["expert-exchange"] * (
            given.pop("low_latency_spread") if low_latency else 1.0
        )
        constants = ExchangeConstants(**{name: given[name] for name in ExchangeConstants._fields})
        if span.size == 1:
            return self._cost(Parts(0.0 * tokens), "expert-exchange", "expert")
        if low_latency:
            parts = low_latency_exchange_time(
                step, span.tiers[-1], tokens, hidden, top_k, experts, constants, units=self._common["units"],
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
        host = self._constants["host"]
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
        constants = self._constants["transfer"]
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

    def operator_times(self, operator: Operator, spans: Mapping[Axis, Span]) -> OperatorTime:
        """Return the passes of an operator with its hidden collectives.

        A collective with ``hidden_by`` runs on the communication stream beside the work of the other part of
        the same operator's backward pass: the reduction of the input gradient beside the weight gradient's
        product, and the repeated gather of the input beside the input gradient's (Megatron-LM's asynchronous
        linear layers). The collective's kernels take a share of the units from the product meanwhile
        (:meth:`Breakdown.beside`). What is exposed counts where the collective stands.
        """
        occupancy = self._constants["collective"]["occupancy"]
        parts = {
            "input-gradient": self._split(operator.input_gradient, spans),
            "weight-gradient": self._split(operator.weight_gradient, spans),
        }
        times: dict[str, Breakdown] = {}
        for name, (exposed, hidden) in parts.items():
            times[name] = exposed
            for hider, collective in hidden.items():
                times[name] = times[name] + collective.beside(parts[hider][0].time, occupancy)
        return OperatorTime(
            self.total(operator.forward, spans), times["input-gradient"], times["weight-gradient"]
        )

    def _split(
        self, works: Iterable[Work], spans: Mapping[Axis, Span]
    ) -> tuple[Breakdown, dict[str, Breakdown]]:
        exposed = Breakdown()
        hidden: dict[str, Breakdown] = {}
        for work in works:
            cost = Breakdown.of(self.price(work, _span(work, spans)))
            hider = work.hidden_by if isinstance(work, Collective) else ""
            if hider:
                hidden[hider] = hidden[hider] + cost if hider in hidden else cost
            else:
                exposed = exposed + cost
        return exposed, hidden

    def _cost(self, parts: Parts, operator_class: OperatorClass, axis: str = "") -> Cost:
        return Cost.of(parts, operator_class, self.calibration.error[operator_class], axis)

    def _peak(self, format: str, matrix: bool) -> float:
        key = (format, matrix)
        if key not in self._peaks:
            section = "training" if self.training else "host"
            clock = self._constants[section]["sustained_clock"] if matrix and self.sustained else 1.0
            self._peaks[key] = float(peak_flops(self.device, format, matrix)) * clock
        return self._peaks[key]

    def _matmul(self, work: Matmul) -> Parts:
        constants = dict(self._constants["matmul"])
        narrow, step = (constants.pop(name) for name in ("narrow_efficiency", "step_latency"))
        if work.format in NARROW:
            constants["peak_efficiency"] *= narrow
        cache = self._cache * constants.pop("cache_share")

        def on_units(*, matrix: bool) -> Parts:
            return matmul_time(
                work.m, work.n, work.k, work.count,
                peak=self._peak(work.format, matrix), launch=self._constants["host"]["launch"],
                left_bytes=work.left_bytes, right_bytes=work.right_bytes, out_bytes=work.out_bytes,
                row_padding=matrix, splits=work.split_k and not work.scaled, tile=work.tile,
                step_latency=step * work.scaled, promotions=work.scaled,
                cache=cache, reuse_distance=work.reuse_distance, **self._common, **constants,
            )  # fmt: skip

        if not self.device.compute.matrix:
            return on_units(matrix=False)
        # weights that are widened on load have kernels for few rows on the vector units too, which pad no tile
        widened = work.right_bytes < work.left_bytes and work.format not in NARROW
        if not widened:
            return on_units(matrix=True)
        padded, plain = on_units(matrix=True), on_units(matrix=False)
        return chosen(plain.time < padded.time, plain, padded)

    def _grouped(self, work: Matmul) -> Parts:
        constants, launch = self._constants["grouped_matmul"], self._constants["host"]["launch"]
        tile = self._constants["matmul"]
        parts = grouped_time(
            work, GroupedKernel(*(constants[name] for name in GroupedKernel._fields)),
            peak=self._peak(work.format, True), tile_m=tile["tile_m"], tile_n=tile["tile_n"], cache=self._cache,
            row_padding=bool(self.device.compute.matrix), **self._common,
        )  # fmt: skip
        return parts._replace(time=parts.time + launch, latency=launch)

    def _route(self, work: Route) -> Parts:
        constants = self._constants["grouped_matmul"]
        memory = work.copies / constants["sort_rate"] + work.summed / constants["sum_rate"]
        latency = constants["layer_latency"]
        return Parts(memory + latency, 0.0, memory, 0.0, latency)

    def _attention(self, work: Attention) -> Cost:
        parts = self._decode(work) if work.decode else self._prefill(work)
        stored = self._store(work)
        if work.stores:
            parts = Parts(parts.time + stored, parts.compute, parts.memory + stored, 0.0, parts.latency)
        if work.latent:
            return self._cost(parts, "latent-attention")
        return self._cost(parts, "decode-attention" if work.decode else "attention")

    def _prefill(self, work: Attention) -> Parts:
        c = self._constants["attention"]
        efficiency = c["backward_efficiency"] if work.backward else c["peak_efficiency"]
        if work.latent and not work.backward:
            efficiency = self._constants["latent_attention"]["prefill_efficiency"]
        if work.kv_bytes < work.activation_bytes:
            efficiency *= c["narrow_efficiency"]
        # a tile of queries sees its window and its own rows
        keys = smaller(work.keys, work.window + c["tile"]) if np.any(np.isfinite(work.window)) else work.keys
        size = 2.5 * work.attended_bytes if work.backward else work.attended_bytes
        return attention_time(
            work.batch, work.heads, work.queries, keys, work.pairs, work.qk_dim + work.v_dim, size,
            peak=self._peak(work.format, True), products=BACKWARD_PRODUCTS if work.backward else 1.0,
            units=self._common["units"], peak_efficiency=efficiency,
            softmax_dim=c["softmax_dim"] * self._unit_rate(work.format),
            bandwidth=self._common["bandwidth"] * self._speedup(size, c), **{n: c[n] for n in _PREFILL},
        )  # fmt: skip

    def _unit_rate(self, format: str) -> float:
        """FLOP a clock of one unit over 1,024: what its exponentials, of constant rate, hold up."""
        compute = self.device.compute
        return float(peak_flops(self.device, format)) / (compute.units * compute.clock) / UNIT_FLOPS

    def _decode(self, work: Attention) -> Parts:
        c = self._constants["decode_attention"]
        if work.latent:
            c = {**c, **self._constants["latent_attention"]}
            c["peak_efficiency"] = c["decode_efficiency"]
        narrow = c["narrow_efficiency"] if work.kv_bytes < work.activation_bytes else 1.0
        keys = work.pairs / work.queries
        # in a model's step other layers have used the caches since the last reading
        speedup = 1.0 if self.sustained else self._speedup(work.cache_bytes, c)
        size = work.attended_bytes - work.cache_bytes * (1.0 - 1.0 / speedup)
        return decode_attention_time(
            work.batch, work.heads, work.kv_heads, work.queries, keys, work.qk_dim + work.v_dim, size,
            work.batch * work.heads * work.queries * work.v_dim, peak=self._peak(work.format, True),
            peak_efficiency=c["peak_efficiency"] * narrow, key_latency=c["key_latency"] / narrow,
            **self._common, **{n: c[n] for n in _DECODE},
        )  # fmt: skip

    def _store(self, work: Attention) -> Numeric:
        if not work.stores:
            return 0.0
        c = self._constants["attention"]
        size, tokens = work.stored_bytes, work.batch * work.queries
        bandwidth = self._common["bandwidth"] * c["memory_efficiency"] * self._speedup(size, c)
        written = store_time(
            tokens, 0.5 * work.kv_width, size, bandwidth=bandwidth, token_time=c["store_time"]
        )
        return written + self._constants["host"]["launch"]

    def _speedup(self, size: Numeric, constants: Mapping[str, float]) -> Numeric:
        return cached_speedup(size, self._cache * constants["cache_share"], constants["cache_bandwidth"])

    def _stream(
        self,
        size: Numeric,
        operator_class: OperatorClass,
        flops: Numeric = 0.0,
        format: str = "fp32",
        kernels: int = 1,
        scalar: Numeric = 0.0,
        rows: Numeric = np.inf,
        chained: bool = False,
        reuse_distance: Numeric | None = None,
    ) -> Cost:
        constants = self._constants["elementwise"]
        latency = constants["chained_latency" if chained else "base_latency"]
        parts = stream_time(
            size, flops, kernels, peak=self._peak(format, False), bandwidth=self._common["bandwidth"],
            memory_efficiency=constants["memory_efficiency"], base_latency=latency,
            cache=self._cache * constants["cache_share"], cache_bandwidth=constants["cache_bandwidth"],
            reuse_distance=reuse_distance, scalar=scalar,
            scalar_rate=constants["scalar_rate"] * smaller(rows, self._common["units"]),
        )  # fmt: skip
        return self._cost(parts, operator_class)


def _span(work: Work, spans: Mapping[Axis, Span]) -> Span | None:
    if not isinstance(work, Collective):
        return None
    if work.axis not in spans:
        raise MemroofError(
            f"the {work.kind} of axis {work.axis!r} has no span; known axes: {', '.join(spans) or 'none'}"
        )
    return spans[work.axis]


def _complete(calibration: Calibration) -> dict[str, dict[str, float]]:
    """Return every constant as a plain float, by section."""
    sections: dict[str, dict[str, float]] = {}
    missing: list[str] = []
    for section, constants in calibration:
        if not isinstance(constants, Spec):
            continue
        missing += [f"{section}.{name}" for name, value in constants if value is None]
        sections[section] = {name: float(value) for name, value in constants if value is not None}
    missing += [f"error.{name}" for name in OPERATOR_CLASSES if name not in calibration.error]
    if missing:
        raise MemroofError(f"calibration {calibration.name}: missing {', '.join(missing)}")
    return sections
