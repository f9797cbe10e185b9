"""Lower decode steps to a Program: layer after layer, what is read, moved and computed, one after the other or at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.offload.emit import Emitter
from simulator.offload.neuron_cache.plan import NeuronBytes, Plan
from simulator.offload.neuron_cache.residency import Residency
from simulator.offload.processors import shares_of
from simulator.offload.tiers import GPU, NVME
from simulator.offload.weights import LayerWeights

READ, MANAGE, SOFTWARE = "flash reads", "management", "software"
"""Tags of tasks beside computations, and names of their streams."""
HOST = shares_of({"host": 1.0}, "host")
"""Division of a second of software."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """The program, and what it needs to be read."""

    emit: Emitter
    tokens: int


def lower(plan: Plan, residency: Residency, factors: Sequence[float]) -> Lowered:
    """Return the program of some decode steps.

    Parameters
    ----------
    plan, residency : Plan, Residency
        What a step does, and what lies in memory.
    factors : sequence of float
        For each step, what it misses over what an average one does.
    """
    return _Decode(plan, residency).lowered(factors)


class _Decode:
    def __init__(self, plan: Plan, residency: Residency) -> None:
        self.plan, self.residency = plan, residency
        workers = dict.fromkeys((plan.dense.channel, plan.sparse.channel, plan.predicting.channel))
        channels = (plan.flash.channel, *workers)
        self.emit = Emitter(plan.name, plan.tiers, channels=channels)
        self.computed: list[int] = []
        """Layers of a scheme that reads ahead."""

    def lowered(self, factors: Sequence[float]) -> Lowered:
        """Emit everything."""
        plan = self.plan
        for category, size in self.residency.held.items():
            self.emit.keep(GPU, size, category, category)
        self.emit.keep(NVME, self.residency.stored, "weights", "the model")
        before: list[int] = []
        for number, factor in enumerate(factors):
            self.emit.number = number
            for position, layer in enumerate(plan.weights.layers):
                before = self._layer(layer, f"token {number}, layer {position}", before, factor)
            before = [self._head(f"token {number}", before)]
        return Lowered(self.emit, len(factors))

    def _layer(self, layer: LayerWeights, name: str, before: list[int], factor: float) -> list[int]:
        plan = self.plan
        if plan.overhead:
            before = [self._software(before, plan.overhead, SOFTWARE, name)]
        if plan.scheme.mapped:
            return self._mapped(layer, name, before)
        if plan.scheme.dense:
            return self._dense(layer, name, before)
        neurons = self.residency.neurons[layer]
        attended = plan.dense.work(
            self.emit,
            plan.attention_bytes(layer),
            2.0 * layer.fixed,
            before,
            "attention",
            f"{name}: attention",
        )
        known = attended
        if plan.scheme.predictor:
            elements = plan.predictor_elements(layer) * layer.chosen
            known = plan.predicting.work(
                self.emit,
                elements * plan.predictor_width,
                2.0 * elements,
                [attended],
                "predictor",
                f"{name}: predictor",
            )
        missed = min(neurons.missed * factor, neurons.needed)
        if plan.scheme.pipeline:
            return self._clusters(neurons, missed, plan.scheme.pipeline.clusters, name, known)
        return self._in_series(neurons, missed, name, known)

    # --- neurons -----------------------------------------------------------------------------------------------------

    def _in_series(self, neurons: NeuronBytes, missed: float, name: str, known: int) -> list[int]:
        """Read, move, compute, one after the other (Alizadeh et al. 2024, section 3)."""
        last = self._read(neurons.first * missed, neurons.first_rate, [known], name)
        last = self._read(neurons.rest * missed, neurons.rest_rate, last, f"{name}, rest")
        last = self._manage(neurons, missed, last, name)
        last = [self._pinned(neurons, name, last)] if neurons.dense else last
        return [self._computed(neurons, neurons.needed, name, last)]

    def _clusters(
        self, neurons: NeuronBytes, missed: float, clusters: int, name: str, known: int
    ) -> list[int]:
        """Compute what is there while the rest is read, cluster by cluster (Xue et al. 2024, section 4.2)."""
        ends = [self._pinned(neurons, name, [known])] if neurons.dense else []
        here = neurons.needed - missed
        ends += [self._computed(neurons, here, name, [known])] if here else []
        part = missed / clusters
        if part:
            gates = [
                self._read(
                    neurons.first * part, neurons.first_rate, [known], f"{name}, cluster {i}", queued=i > 0
                )
                for i in range(clusters)
            ]
            for i, gate in enumerate(gates):
                last = self._read(
                    neurons.rest * part, neurons.rest_rate, gate, f"{name}, cluster {i}", queued=clusters > 1
                )
                last = self._manage(neurons, part, last, name)
                ends.append(self._computed(neurons, part, f"{name}, cluster {i}", last))
        return ends or [known]

    def _pinned(self, neurons: NeuronBytes, name: str, after: list[int]) -> int:
        flops = 2.0 * neurons.dense / self.plan.width
        return self.plan.dense.work(
            self.emit, neurons.dense, flops, after, "neurons", f"{name}: pinned neurons"
        )

    def _computed(self, neurons: NeuronBytes, count: float, name: str, after: list[int]) -> int:
        size = neurons.sparse * count
        return self.plan.sparse.work(
            self.emit, size, 2.0 * size / self.plan.width, after, "neurons", f"{name}: neurons"
        )

    def _read(
        self, size: float, rate: float, after: list[int], name: str, *, queued: bool = False
    ) -> list[int]:
        if not size:
            return after
        flash = self.plan.flash
        channel = flash.following if queued else flash.first
        return [self.emit.transfer(channel, size, rate, READ, after, READ, f"{name}: read", "storage")]

    def _manage(self, neurons: NeuronBytes, new: float, after: list[int], name: str) -> list[int]:
        """Move rows: each new one into the matrix, and for each a kept one into the hole of an evicted one."""
        management = self.plan.scheme.management
        if management is None or not new:
            return after
        time = managed_bytes(new, neurons.stored) / management.rate
        return [self._software(after, time, MANAGE, f"{name}: rows moved")]

    # --- plain ways --------------------------------------------------------------------------------------------------

    def _mapped(self, layer: LayerWeights, name: str, before: list[int]) -> list[int]:
        plan = self.plan
        mapped = plan.scheme.mapped
        assert mapped is not None
        size = layer.used * plan.width * self.residency.missed_share(layer)
        rate = plan.flash.faulted(mapped.readahead, mapped.faults)
        read = self._read(size, rate, before, name)
        return [self._whole(layer, name, read)]

    def _dense(self, layer: LayerWeights, name: str, before: list[int]) -> list[int]:
        plan = self.plan
        dense = plan.scheme.dense
        assert dense is not None
        size = layer.used * plan.width * (1.0 - dense.resident)
        rate = plan.flash.sequential()
        if dense.block is not None:
            rate = min(rate, plan.flash.scattered(dense.block, self.residency.stored, dense.outstanding))
        # one buffer is computed from while the other is filled
        free = self.computed[-2:-1] if dense.overlap else before
        read = self._read(size, rate, free, name)
        self.computed.append(self._whole(layer, name, [*before, *read]))
        return self.computed[-1:]

    def _whole(self, layer: LayerWeights, name: str, after: list[int]) -> int:
        plan = self.plan
        size = plan.attention_bytes(layer) + layer.chosen * layer.neuron_elements * plan.width
        return plan.dense.work(self.emit, size, 2.0 * layer.used, after, "layer", f"{name}: layer")

    def _head(self, name: str, before: list[int]) -> int:
        plan = self.plan
        size = plan.weights.head * plan.width
        after = before
        if plan.scheme.dense or plan.scheme.mapped:
            after = self._tables(name, before)
        return plan.dense.work(self.emit, size, 2.0 * plan.weights.head, after, "head", f"{name}: head")

    def _tables(self, name: str, before: list[int]) -> list[int]:
        """Read what embedding and head lack."""
        plan = self.plan
        size = self.residency.table_misses
        if plan.scheme.mapped:
            rate = plan.flash.faulted(plan.scheme.mapped.readahead, plan.scheme.mapped.faults)
        else:
            rate = plan.flash.sequential()
        return self._read(size, rate, before, f"{name}: tables")

    def _software(self, after: list[int], time: float, tag: str, name: str) -> int:
        return self.emit.work(self.emit.stream(tag), time, HOST, after, tag, name)


def managed_bytes(new: float, stored: float) -> float:
    """Return the DRAM traffic of replacing ``new`` neurons of ``stored`` bytes each in a dense matrix [B].

    Each new row is copied out of the read buffer, and a kept row from the end of the matrix into the hole of each row that
    is dropped: two copies, each read and written (Alizadeh et al. 2024, section 3.3).
    """
    return 4.0 * new * stored
