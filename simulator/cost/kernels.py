"""Kernels of one device: the constants of its calibration put into the formulas of each kind of work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from simulator.cost.attention import attention_time, cached_speedup, decode_attention_time, store_time
from simulator.cost.grouped import GroupedKernel, grouped_time
from simulator.cost.matmul import matmul_time
from simulator.cost.numeric import Parts, chosen, smaller
from simulator.cost.peaks import peak_flops
from simulator.cost.streams import stream_time
from simulator.graph.work import Attention, Elementwise, Matmul, Numeric, Route
from simulator.specs.base import Spec
from simulator.specs.calibration import OPERATOR_CLASSES, Calibration
from simulator.specs.errors import MemroofError
from simulator.specs.hardware import Processor

Constants = dict[str, dict[str, float]]
"""Every constant of a calibration by section and name."""

_BY_KERNEL = ("narrow_efficiency", "engine_efficiency", "quarter_efficiency", "step_latency")
_PREFILL = (
    "memory_efficiency", "tile", "tile_latency", "tail", "exposed_traffic", "base_latency",
)  # fmt: skip
_DECODE = (
    "memory_efficiency", "row_tile", "key_tile", "split_keys", "fill", "split_sequences", "ungrouped_sequences",
    "split_parts", "unit_blocks", "block_latency", "combine_latency", "part_latency", "regroup_latency", "base_latency",
)  # fmt: skip
BITS: Mapping[str, float] = {
    "fp64": 64.0, "fp32": 32.0, "tf32": 32.0, "bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0, "fp6": 6.0, "fp4": 4.0,
    "int4": 4.0,
}  # fmt: skip
NARROW = tuple(format for format, bits in BITS.items() if bits <= 8.0)
"""Formats of 8 bits and fewer."""
UNIT_FLOPS = 1024.0
"""FLOP a clock of the unit that the constant ``softmax_dim`` is meant for."""
IDLE = 0.1
"""Idle power over the limit where a device's file has none: 0.07 to 0.17 on the boards that have one."""
BACKWARD_PRODUCTS = 2.5
"""Products of the backward pass of fused attention over the forward pass's: five for two (Dao 2023)."""


@dataclass(frozen=True)
class Kernels:
    """Seconds of each kind of work on one device.

    Parameters
    ----------
    device : Processor
        What computes.
    constants : dict
        See :func:`complete_constants`.
    memory_bandwidth : float, optional
        Of the memory that operands stream from [B/s]; the device's main memory if absent.
    sustained, training : bool
        Clock of the matrix units; see :class:`simulator.cost.model.CostModel`.

    Raises
    ------
    MemroofError
        If the memory bandwidth is unknown.
    """

    device: Processor
    constants: Constants
    memory_bandwidth: float | None = None
    sustained: bool = False
    training: bool = False
    common: dict[str, float] = field(init=False, repr=False, compare=False)
    """Memory bandwidth [B/s] and units, which most formulas need."""
    _cache: float = field(init=False, repr=False, compare=False)
    _peaks: dict[tuple[str, bool], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bandwidth = self.memory_bandwidth
        if bandwidth is None:
            port = next(iter(self.device.memory.values()), None)
            if port is None:
                raise MemroofError(
                    f"{self.device.name} has no memory of its own; give the bandwidth of its DRAM"
                )
            bandwidth = port.bandwidth
        object.__setattr__(
            self, "common", {"bandwidth": float(bandwidth), "units": float(self.device.compute.units)}
        )
        object.__setattr__(
            self, "_cache", max((float(c.capacity) for c in self.device.cache.values()), default=0.0)
        )
        object.__setattr__(self, "_peaks", {})

    def matmul(self, work: Matmul) -> Parts:
        """Strided batch of matrix products."""
        constants = dict(self.constants["matmul"])
        vendor, engine, quarter, step = (constants.pop(name) for name in _BY_KERNEL)
        if work.format in NARROW:
            # where partial sums are scaled, the rate of that stands for all that is lost
            eight = 1.0 if work.scaled else engine if work.kernel == "engine" else vendor
            constants["peak_efficiency"] *= quarter if BITS[work.format] < 8.0 else eight
        cache = self._cache * constants.pop("cache_share")

        def on_units(*, matrix: bool) -> Parts:
            return matmul_time(
                work.m, work.n, work.k, work.count,
                peak=self._peak(work.format, matrix), launch=self.constants["host"]["launch"],
                left_bytes=work.left_bytes, right_bytes=work.right_bytes, out_bytes=work.out_bytes,
                row_padding=matrix, splits=work.split_k and not work.scaled, tile=work.tile,
                step_latency=step * work.scaled, promotions=work.scaled,
                cache=cache, reuse_distance=work.reuse_distance, **self.common, **constants,
            )  # fmt: skip

        if not self.device.compute.matrix:
            return on_units(matrix=False)
        # weights that are widened on load have kernels for few rows on the vector units too, which pad no tile
        widened = work.right_bytes < work.left_bytes and work.format not in NARROW
        if not widened:
            return on_units(matrix=True)
        padded, plain = on_units(matrix=True), on_units(matrix=False)
        return chosen(plain.time < padded.time, plain, padded)

    def grouped(self, work: Matmul) -> Parts:
        """One kernel over the experts of a rank."""
        constants, launch = self.constants["grouped_matmul"], self.constants["host"]["launch"]
        tile = self.constants["matmul"]
        parts = grouped_time(
            work, GroupedKernel(*(constants[name] for name in GroupedKernel._fields)),
            peak=self._peak(work.format, True), tile_m=tile["tile_m"], tile_n=tile["tile_n"], cache=self._cache,
            row_padding=bool(self.device.compute.matrix), **self.common,
        )  # fmt: skip
        return parts._replace(time=parts.time + launch, latency=launch)

    def route(self, work: Route) -> Parts:
        """Counting and sorting of token copies."""
        constants = self.constants["grouped_matmul"]
        memory = work.copies / constants["sort_rate"] + work.summed / constants["sum_rate"]
        latency = constants["layer_latency"]
        return Parts(memory + latency, 0.0, memory, 0.0, latency)

    def attention(self, work: Attention) -> Parts:
        """Fused attention, with the keys and values that it stores."""
        parts = self._decode(work) if work.decode else self._prefill(work)
        stored = self._store(work)
        if work.stores:
            parts = Parts(parts.time + stored, parts.compute, parts.memory + stored, 0.0, parts.latency)
        return parts

    def elementwise(self, work: Elementwise) -> Parts:
        """Kernels that stream activations."""
        return self.stream(
            work.bytes, work.flops, work.format, work.kernels, work.scalar, work.rows, work.chained, work.reuse_distance
        )  # fmt: skip

    def stream(
        self,
        size: Numeric,
        flops: Numeric = 0.0,
        format: str = "fp32",
        kernels: Numeric = 1,
        scalar: Numeric = 0.0,
        rows: Numeric = np.inf,
        chained: bool = False,
        reuse_distance: Numeric | None = None,
    ) -> Parts:
        """Kernels that stream bytes, as :func:`simulator.cost.streams.stream_time` describes them."""
        constants = self.constants["elementwise"]
        latency = constants["chained_latency" if chained else "base_latency"]
        return stream_time(
            size, flops, kernels, peak=self._peak(format, False), bandwidth=self.common["bandwidth"],
            memory_efficiency=constants["memory_efficiency"], base_latency=latency,
            cache=self._cache * constants["cache_share"], cache_bandwidth=constants["cache_bandwidth"],
            reuse_distance=reuse_distance, scalar=scalar,
            scalar_rate=constants["scalar_rate"] * smaller(rows, self.common["units"]),
        )  # fmt: skip

    def _prefill(self, work: Attention) -> Parts:
        c = self.constants["attention"]
        efficiency = c["backward_efficiency"] if work.backward else c["peak_efficiency"]
        if work.latent:
            # longer products for each score help both passes alike
            efficiency *= self.constants["latent_attention"]["prefill_efficiency"] / c["peak_efficiency"]
        if work.kv_bytes < work.activation_bytes:
            efficiency *= c["narrow_efficiency"]
        if work.kernel != "latest":
            efficiency *= c[work.kernel.replace("-", "_")]
        # a tile of queries sees its window and its own rows
        keys = smaller(work.keys, work.window + c["tile"]) if np.any(np.isfinite(work.window)) else work.keys
        size = (2.5 * work.attended_bytes if work.backward else work.attended_bytes) / work.passes
        # a tile of the backward pass stays with its keys and values, and writes their gradients at its end
        ends = 2.0 * work.cache_bytes if work.backward else work.attended_bytes
        one = attention_time(
            work.batch, work.heads, work.queries, keys / work.passes, work.pairs / work.passes,
            work.qk_dim + work.v_dim, size, ends=ends / work.passes,
            peak=self._peak(work.format, True), products=BACKWARD_PRODUCTS if work.backward else 1.0,
            units=self.common["units"], peak_efficiency=efficiency,
            softmax_dim=c["softmax_dim"] * self._unit_rate(work.format),
            bandwidth=self.common["bandwidth"] * self._speedup(size, c), **{n: c[n] for n in _PREFILL},
        )  # fmt: skip
        return Parts(*(part * work.passes for part in one))

    def _unit_rate(self, format: str) -> float:
        """FLOP a clock of one unit over 1,024: what its exponentials, of constant rate, hold up."""
        compute = self.device.compute
        return float(peak_flops(self.device, format)) / (compute.units * compute.clock) / UNIT_FLOPS

    def _decode(self, work: Attention) -> Parts:
        c = self.constants["decode_attention"]
        if work.latent:
            c = {**c, **self.constants["latent_attention"]}
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
            **self.common, **{n: c[n] for n in _DECODE},
        )  # fmt: skip

    def _store(self, work: Attention) -> Numeric:
        if not work.stores:
            return 0.0
        c = self.constants["attention"]
        size, tokens = work.stored_bytes, work.batch * work.queries
        bandwidth = self.common["bandwidth"] * c["memory_efficiency"] * self._speedup(size, c)
        written = store_time(
            tokens, 0.5 * work.kv_width, size, bandwidth=bandwidth, token_time=c["store_time"]
        )
        return written + self.constants["host"]["launch"]

    def _speedup(self, size: Numeric, constants: Mapping[str, float]) -> Numeric:
        return cached_speedup(size, self._cache * constants["cache_share"], constants["cache_bandwidth"])

    def _peak(self, format: str, matrix: bool) -> float:
        key = (format, matrix)
        if key not in self._peaks:
            peak = float(peak_flops(self.device, format, matrix))
            self._peaks[key] = peak * self._clock(format, peak) if matrix and self.sustained else peak
        return self._peaks[key]

    def _clock(self, format: str, peak: float) -> float:
        """Clock under load over the boost clock; in training, what the board's power, less that of waiting, pays for."""
        if not self.training:
            return self.constants["host"]["sustained_clock"]
        training, power = self.constants["training"], self.device.power
        energy = training["flop_energy"] * (BITS[format] / 16.0) ** training["energy_exponent"]
        if power is None or not energy:
            return training["sustained_clock"]
        idle = power.limit * IDLE if power.idle is None else power.idle
        return min(training["sustained_clock"], float((power.limit - idle) / (energy * peak)))


def complete_constants(calibration: Calibration) -> Constants:
    """Return every constant as a plain float, by section; raises :class:`MemroofError` where one is missing."""
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
