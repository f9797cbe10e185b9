"""Lower some iterations to a Program: groups take turns on the accelerator while CPUs attend and weights stream in.

On the accelerator the second half of a layer of one group is followed by the first half of its next layer; meanwhile CPUs
attend for the other group. Weights come in by halves of layers, each into the buffer of the same half two layers before, so
that the first half of a layer need not wait for the experts of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.offload.emit import Emitter
from simulator.offload.mixed_stream.plan import Plan, Unit
from simulator.offload.tiers import DRAM, GPU

ITERATIONS = 3
"""That are simulated: the last one is steady."""
BUFFERS = 2
"""First halves of layers, and second ones, that the accelerator holds."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """The program, the tasks that end each iteration, and its weight copies by iteration."""

    emit: Emitter
    ends: tuple[tuple[int, ...], ...]
    loads: tuple[tuple[int, ...], ...]


def lower(plan: Plan) -> Lowered:
    """Return the program of :data:`ITERATIONS` iterations."""
    return _Lowering(plan).lowered()


class _Lowering:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.emit = Emitter(plan.name, plan.place.ranks)
        self.slots = [(turn, position) for turn in range(ITERATIONS) for position in range(len(plan.order))]
        self.loads: list[list[int]] = [[] for _ in self.slots]
        """By slot, the copies of its weights."""
        self.first: list[list[int]] = [[] for _ in self.slots]
        self.last: list[list[int]] = [[] for _ in self.slots]
        """By slot, the computation of each half by each group."""
        self.waiting: list[list[int]] = [[] for _ in range(plan.groups)]
        """By group, what its next computation waits for."""
        # each core reads for itself, and the memory serves cores and copies alike
        self.lanes = plan.place.sockets.count * plan.place.sockets.device.compute.units
        self.core = f"cpu, one of {self.lanes} cores"
        self.attended: list[int] = []
        """The last attention of the first core."""

    def lowered(self) -> Lowered:
        """Emit everything."""
        emit, plan = self.emit, self.plan
        emit.keep(DRAM, plan.model_bytes, "weights", "weights")
        emit.keep(DRAM, plan.capacity, "KV cache", "cache")
        emit.keep(GPU, plan.activations, "activations", "tensors of a layer")
        emit.keep(GPU, plan.tokens * plan.model.hidden_size * plan.numerics.activation_bytes, "activations",
                  "hidden states")  # fmt: skip
        for slot in range(min(BUFFERS, len(self.slots))):
            self._load(slot)
        halves: list[tuple[int, int, list[int]]] = []
        for slot in range(len(self.slots)):
            for group in range(plan.groups):
                halves.append((slot, group, self._first_half(slot, group, halves)))
        for slot, group, needs in halves[-plan.groups :]:
            self._second_half(slot, group, needs)
        self._buffers()
        size = len(plan.order)
        return Lowered(
            emit,
            tuple(tuple(self.last[turn * size + size - 1]) for turn in range(ITERATIONS)),
            tuple(
                tuple(task for tasks in self.loads[turn * size : (turn + 1) * size] for task in tasks)
                for turn in range(ITERATIONS)
            ),
        )

    def _first_half(self, slot: int, group: int, halves: list[tuple[int, int, list[int]]]) -> list[int]:
        """Finish the group's layer before, then compute up to attention; returns what the second half waits for."""
        if slot:
            before = halves[-self.plan.groups]
            self._second_half(*before)
        emit, unit = self.emit, self._unit(slot)
        emit.number = self.slots[slot][0]
        name = f"{unit.name}, group {group}"
        first = emit.compute(unit.before, 0, [self.loads[slot][0], *self.waiting[group]], "computation", name)
        self.first[slot].append(first)
        if not unit.attends:
            return [first]
        prompts = emit.compute(unit.prompts, 0, [], "computation", f"{name}: attention of prompts")
        sent = self._copy(GPU, DRAM, unit.sent, [first], f"{name}: queries, keys and values")
        lanes = self._attend(unit, sent, f"{name}: attention on CPUs")
        returned = self._copy(DRAM, GPU, unit.returned, lanes, f"{name}: outputs")
        return [returned, prompts]

    def _attend(self, unit: Unit, sent: int, name: str) -> list[int]:
        """Attend on all cores, which are alike: the first has a queue, the others keep step with it."""
        size = unit.attended / self.lanes
        after = [sent, *self.attended]
        lanes = [
            self.emit.transfer(
                self.plan.place.host.channel, size, size / unit.host_time, "" if lane else self.core, after, "attention",
                name, "host",
            )
            for lane in range(self.lanes)
        ]  # fmt: skip
        self.attended = lanes[:1]
        return lanes

    def _second_half(self, slot: int, group: int, needs: list[int]) -> None:
        unit = self._unit(slot)
        self.emit.number = self.slots[slot][0]
        done = needs[0]
        if unit.attends:
            done = self.emit.compute(
                unit.after,
                0,
                [*needs, self.loads[slot][1]],
                "computation",
                f"{unit.name}, group {group}: after attention",
            )
        self.waiting[group] = [done]
        self.last[slot].append(done)
        if group == self.plan.groups - 1:
            self._load(slot + BUFFERS)

    def _load(self, slot: int) -> None:
        """Copy both halves of a layer, each as soon as the buffer of two layers before is free."""
        if slot >= len(self.slots):
            return
        self.emit.number = self.slots[slot][0]
        unit = self._unit(slot)
        for size, used in zip(unit.weights, (self.first, self.last), strict=True):
            free = used[slot - BUFFERS] if slot >= BUFFERS else []
            if size:
                task = self._copy(DRAM, GPU, size, free, f"{unit.name}: weights", queue="weights")
                self.loads[slot].append(task)

    def _buffers(self) -> None:
        for slot, tasks in enumerate(self.loads):
            used = (self.first[slot], self.last[slot])
            for task, size, until in zip(tasks, self._unit(slot).weights, used, strict=False):
                self.emit.keep(GPU, size, "buffers", "streamed weights", at=task, until=until)

    def _copy(
        self, source: str, target: str, size: float, after: list[int], name: str, *, queue: str = ""
    ) -> int:
        channel = self.plan.place.ranks[0].channels[source, target]
        return self.emit.transfer(
            channel, size, self.plan.copy_rate, queue or f"activations {source} to {target}", after,
            queue or "activations", name, "host link",
        )  # fmt: skip

    def _unit(self, slot: int) -> Unit:
        return self.plan.units[self.plan.order[self.slots[slot][1]]]
