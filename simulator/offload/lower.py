"""Lower a block of sequences to a Program: FlexGen's zig-zag over layers, GPU batches and token steps.

For each token step and layer all GPU batches of the block are computed before the next layer, so that the layer's
weights are fetched once for all of them (Sheng et al. 2023, section 4.1 and algorithm 1). Meanwhile the weights of the
layers ahead come in, the cache of the next batch is fetched and that of the previous one is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.engine import Program
from simulator.offload.prices import Price, Unit
from simulator.offload.tiers import DRAM, GPU, NVME, Channel, Tiers
from simulator.specs import OPERATOR_CLASSES, OperatorClass
from simulator.strategy import Bottleneck

PREFILL = -1
"""Number of the prefill among decode steps 0, 1, 2, ..."""
BOTTLENECKS: tuple[Bottleneck, ...] = ("compute", "memory", "host link", "storage", "host", "latency", "waiting")
COLUMNS: tuple[Bottleneck | OperatorClass, ...] = (*BOTTLENECKS, *OPERATOR_CLASSES)
"""What the seconds of a task are divided by: first by what binds them, then by operator class."""
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of a tensor class on each tier; they add up to 1."""

    gpu: float
    dram: float
    nvme: float

    @property
    def away(self) -> float:
        """What is not on the accelerator."""
        return self.dram + self.nvme


@dataclass(frozen=True, slots=True)
class Plan:
    """What is generated, and how."""

    name: str
    units: tuple[Unit, ...]
    order: tuple[int, ...]
    """Embedding, layers and head as indices into ``units``."""
    tiers: Tiers
    batch: int
    batches: int
    prompt: int
    output: int
    weights: Split
    cache: Split
    cpu_attention: bool
    prefetch: int
    hidden_bytes: float
    """One token's hidden state [B]."""

    @property
    def block(self) -> int:
        """Sequences that are generated together."""
        return self.batch * self.batches

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output - 1

    def cached(self, step: int) -> int:
        """Tokens of a sequence in the cache when a pass begins."""
        return 0 if step == PREFILL else self.prompt + step

    def new(self, step: int) -> int:
        """Tokens of a sequence that a pass adds."""
        return self.prompt if step == PREFILL else 1


@dataclass
class Lowered:
    """The program, and where each task belongs."""

    program: Program
    steps: tuple[int, ...]
    """The passes in it: :data:`PREFILL` or the number of a decode step."""
    shares: list[Shares] = field(default_factory=list)
    """Division of each task's seconds over :data:`COLUMNS`, by task."""
    pass_of: list[int] = field(default_factory=list)
    """By task, the position of its pass in ``steps``."""
    ends: list[int] = field(default_factory=list)
    """Last task on the accelerator, by pass."""
    gpu: int = -1
    """Stream of the accelerator."""


def lower(plan: Plan, steps: Sequence[int]) -> Lowered:
    """Return the program of some passes, in order.

    Parameters
    ----------
    plan : Plan
        What is generated.
    steps : sequence of int
        Strictly increasing; :data:`PREFILL` first.
    """
    lowering = _Lowering(plan, steps)
    lowering.run()
    return lowering.out


class _Lowering:
    def __init__(self, plan: Plan, steps: Sequence[int]) -> None:
        self.plan, self.steps = plan, tuple(steps)
        self.program = program = Program(plan.name)
        self.out = Lowered(program, self.steps)
        self.slots = [(number, unit) for number in range(len(self.steps)) for unit in plan.order]
        self.serial = plan.prefetch == 0
        self.links: dict[tuple[str, float], int] = {}
        self.paths: dict[str, list[int]] = {}
        self.gpu = self.out.gpu = program.stream("gpu")
        self.streams = {self.gpu: "gpu"}
        self.handles: dict[str, int] = {"gpu": self.gpu}
        self.memory = {tier: program.memory(pool.name, pool.capacity) for tier, pool in plan.tiers.pools.items()}
        self.last: list[list[int]] = [[] for _ in self.slots]
        """Last computation of each slot, once it is known."""
        self.loaded: list[list[int]] = [[] for _ in self.slots]
        self.sent: list[list[int]] = [[] for _ in self.slots]
        """Copies that free the DRAM buffers of each slot."""
        self.buffers: list[list[tuple[int, float]]] = [[] for _ in self.slots]
        self.fetched: dict[tuple[int, int], tuple[list[int], list[tuple[str, int, float]]]] = {}
        self.stored: dict[tuple[int, int], list[int]] = {}
        self.previous: list[int] = []
        self.priced: dict[tuple[int, int], Shares] = {}
        self.pass_number = 0
        self.pieces = plan.batches if plan.prefetch and plan.cache.away and not plan.cpu_attention else 1

    # --- resident, then pass after pass ---------------------------------------------------------------------------

    def run(self) -> None:
        """Emit everything."""
        plan = self.plan
        for tier, share in ((GPU, plan.weights.gpu), (DRAM, plan.weights.dram), (NVME, plan.weights.nvme)):
            for position, index in enumerate(plan.order):
                unit = plan.units[index]
                if unit.stored * share:
                    name = f"weights of {_place(position, unit.name)}"
                    self.program.allocate(self.memory[tier], unit.stored * share, "weights", name=name)
        for ahead in range(min(plan.prefetch, len(self.slots))):
            for piece in range(self.pieces):
                self._load(ahead, piece)
        for slot in range(len(self.slots)):
            self._unit(slot)

    def _unit(self, slot: int) -> None:
        plan = self.plan
        number, index = self.slots[slot]
        unit, layer = plan.units[index], slot % len(plan.order)
        step = self.steps[number]
        for batch in range(plan.batches):
            target = slot + plan.prefetch
            if batch < self.pieces and target < len(self.slots):
                self.pass_number = self.slots[target][0]
                self._load(target, batch)
            item = slot * plan.batches + batch
            self._fetch(item if self.serial else item + 1)
            self.pass_number = number
            first, last = self._compute(item, unit, step)
            if batch == 0:
                self._grow(unit, layer, number, first)
                if layer == 0:
                    opening = first
        self.last[slot] = [last]
        self._release(slot)
        if layer == 0:
            self.opening = opening
        if layer == len(plan.order) - 1:
            self.out.ends.append(last)
            self._activations(step, last)

    def _activations(self, step: int, last: int) -> None:
        """Hidden states of the block, and the tensors inside of one layer of one batch, live through a pass."""
        plan = self.plan
        hidden = plan.block * plan.new(step) * plan.hidden_bytes
        workspace = max(unit.workspace[step != PREFILL] for unit in plan.units)
        for size, name in ((hidden, "hidden states"), (workspace, "tensors of a layer")):
            self.program.allocate(self.memory[GPU], size, "activations", at=self.opening, until=[last], name=name)

    def _grow(self, unit: Unit, layer: int, number: int, first: int) -> None:
        """Keep what the cache of a layer has grown by since the pass before."""
        plan, step = self.plan, self.steps[number]
        before = unit.cache_bytes(plan.cached(self.steps[number - 1]) + plan.new(self.steps[number - 1])) if number else 0
        grown = plan.block * (unit.cache_bytes(plan.cached(step) + plan.new(step)) - before)
        name = f"cache of {_place(layer, unit.name)}"
        for tier, share in ((GPU, plan.cache.gpu), (DRAM, plan.cache.dram), (NVME, plan.cache.nvme)):
            if grown * share and (tier == GPU or self._stores(step)):
                self.program.allocate(self.memory[tier], grown * share, "KV cache", at=first, name=name)

    def _stores(self, step: int) -> bool:
        # keys and values of the last token are never read again
        return step != self.plan.steps - 1

    # --- weights ----------------------------------------------------------------------------------------------------

    def _load(self, slot: int, piece: int) -> None:
        """Fetch a piece of the weights that a slot needs into one of prefetch + 1 buffers."""
        plan = self.plan
        number, index = self.slots[slot]
        self.pass_number = number
        unit = plan.units[index]
        buffer = slot - plan.prefetch - 1
        free = self.last[buffer] if buffer >= 0 else []
        name = _place(slot % len(plan.order), unit.name)
        size = unit.weights / self.pieces
        if plan.weights.dram:
            self._to_gpu(slot, DRAM, size * plan.weights.dram, free, name)
        if plan.weights.nvme and not plan.tiers.staged():
            self._to_gpu(slot, NVME, size * plan.weights.nvme, free, name)
        elif plan.weights.nvme:
            part = size * plan.weights.nvme
            vacated = self.sent[buffer] if buffer >= 0 else []
            staged = self._copy(NVME, DRAM, part, vacated, "weights", f"{name}: weights to DRAM")
            sent = self._to_gpu(slot, DRAM, part, [*free, staged], name)
            self.sent[slot].append(sent)
            self.program.allocate(self.memory[DRAM], part, "buffers", at=staged, until=[sent], name=f"{name} on its way")

    def _to_gpu(self, slot: int, source: str, size: float, after: list[int], name: str) -> int:
        task = self._copy(source, GPU, size, after, "weights", f"{name}: weights to GPU")
        self.loaded[slot].append(task)
        self.buffers[slot].append((task, size))
        return task

    def _release(self, slot: int) -> None:
        name = _place(slot % len(self.plan.order), self.plan.units[self.slots[slot][1]].name)
        for task, size in self.buffers[slot]:
            self.program.allocate(
                self.memory[GPU], size, "buffers", at=task, until=self.last[slot], name=f"streamed weights of {name}"
            )

    # --- cache ------------------------------------------------------------------------------------------------------

    def _fetch(self, item: int) -> None:
        """Fetch the cache that an item's attention needs; two buffers, so that one batch is fetched ahead."""
        plan = self.plan
        slot, batch = divmod(item, plan.batches)
        if slot >= len(self.slots):
            return
        number, index = self.slots[slot]
        unit, step = plan.units[index], self.steps[number]
        if step == PREFILL or not unit.token_bytes:
            return
        self.pass_number = number
        size = plan.batch * unit.cache_bytes(plan.cached(step))
        after = [*self._computed(item - 2), *self.stored.get((slot % len(plan.order), batch), ())]
        name = _place(slot % len(plan.order), unit.name) + (f", batch {batch}" if plan.batches > 1 else "")
        arrived: list[int] = []
        held: list[tuple[str, int, float]] = []
        source = NVME
        for source, share in ((DRAM, plan.cache.dram), (NVME, plan.cache.nvme)):
            part, needs = size * share, after
            if not part:
                continue
            start = source
            if source == NVME and plan.tiers.staged():
                staged = self._copy(NVME, DRAM, part, after, "cache", f"{name}: cache to DRAM")
                held.append((DRAM, staged, part))
                needs, start = [*after, staged], DRAM
                arrived.append(staged)
            if not plan.cpu_attention:
                task = self._copy(start, GPU, part, needs, "cache", f"{name}: cache to GPU")
                held.append((GPU, task, part))
                arrived.append(task)
        self.fetched[slot, batch] = (arrived, held)

    def _computed(self, item: int) -> list[int]:
        return [self.items[item]] if 0 <= item < len(self.items) else []

    def _store(self, unit: Unit, slot: int, batch: int, step: int, task: int, *, in_dram: bool) -> None:
        """Move the new keys and values of a batch to where they stay; those on DRAM may have gone there as queries did."""
        plan = self.plan
        size = plan.batch * unit.cache_bytes(plan.new(step))
        away = size * plan.cache.away
        if not away or not self._stores(step):
            return
        name = _place(slot % len(plan.order), unit.name)
        done: list[int] = []
        written = size * plan.cache.nvme
        if plan.tiers.staged():
            if not in_dram:
                down = self._copy(GPU, DRAM, away, [task], "cache", f"{name}: new cache to DRAM")
                self.program.allocate(self.memory[GPU], away, "buffers", at=task, until=[down], name="new cache")
                done.append(task := down)
            if written:
                flash = self._copy(DRAM, NVME, written, [task], "cache", f"{name}: new cache to flash")
                self.program.allocate(self.memory[DRAM], written, "buffers", at=task, until=[flash], name="new cache")
                done.append(flash)
        else:
            done.append(self._copy(GPU, NVME, away, [task], "cache", f"{name}: new cache to flash"))
            self.program.allocate(self.memory[GPU], away, "buffers", at=task, until=done, name="new cache")
        self.stored[slot % len(plan.order), batch] = done

    # --- computation ------------------------------------------------------------------------------------------------

    def _compute(self, item: int, unit: Unit, step: int) -> tuple[int, int]:
        """Compute one batch through one unit; returns the first and the last task on the accelerator."""
        plan = self.plan
        slot, batch = divmod(item, plan.batches)
        name = _place(slot % len(plan.order), unit.name) + (f", batch {batch}" if plan.batches > 1 else "")
        arrived, held = self.fetched.pop((slot, batch), ([], []))
        loads = self.loaded[slot] if batch == 0 else []
        in_dram = False
        if step == PREFILL:
            first = last = self._on_gpu(unit.prefill, 0, loads, "prefill", name)
        elif unit.host is None:
            whole = (unit.before, unit.attention, unit.after) if unit.token_bytes else (unit.before,)
            first = last = self._on_gpu(whole, step, [*loads, *arrived], "decode", name)
        else:
            first, last, attended = self._beside_host(unit, step, loads, arrived, name)
            arrived, in_dram = [attended], True
        for tier, task, size in held:
            until = arrived if in_dram else [last]
            self.program.allocate(self.memory[tier], size, "buffers", at=task, until=until, name=f"cache of {name}")
        self.items.append(last)
        source = self.queried if in_dram else last
        if unit.token_bytes:
            self._store(unit, slot, batch, step, source, in_dram=in_dram)
        return first, last

    items: list[int]
    queried: int

    def _beside_host(
        self, unit: Unit, step: int, loads: list[int], arrived: list[int], name: str
    ) -> tuple[int, int, int]:
        """Send queries, keys and values down, attend on the CPU, bring the outputs back (Sheng et al. 2023, sec. 4.1)."""
        raise NotImplementedError

    def _on_gpu(self, price: Price, step: int, after: list[int], tag: str, name: str) -> int:
        raise NotImplementedError
