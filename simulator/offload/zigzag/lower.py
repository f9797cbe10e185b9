"""Lower a block of sequences to a Program: FlexGen's zig-zag over token steps, layers and GPU batches.

All GPU batches of the block go through a layer before the next layer, so that its weights are fetched once for all of
them. Meanwhile the weights of the layers ahead come in, the cache of the next batch is fetched and that of the previous
one is stored (Sheng et al. 2023, section 4.1 and algorithm 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.engine import Program
from simulator.offload.columns import Price, Rows
from simulator.offload.emit import Emitter
from simulator.offload.tiers import DRAM, GPU
from simulator.offload.zigzag.moves import Moves
from simulator.offload.zigzag.plan import PREFILL, Plan
from simulator.offload.zigzag.prices import Unit


@dataclass(frozen=True, slots=True)
class Lowered:
    """The program, and where each task belongs."""

    program: Program
    steps: tuple[int, ...]
    """The passes in it: :data:`~simulator.offload.zigzag.plan.PREFILL` or the number of a decode step."""
    shares: Sequence[Rows]
    """By task, the division of its seconds over :data:`~simulator.offload.columns.COLUMNS`."""
    pass_of: Sequence[int]
    """By task, the position of its pass in ``steps``."""
    carried: Mapping[str, Mapping[int, float]]
    """Bytes by name of the channel and by pass."""
    ends: Sequence[int]
    """By pass, the task that makes its tokens."""
    gpu: int
    """Stream of the accelerator."""


def lower(plan: Plan, steps: Sequence[int]) -> Lowered:
    """Return the program of some passes.

    Parameters
    ----------
    plan : Plan
        What is generated.
    steps : sequence of int
        Strictly increasing, the prefill first. Where steps are left out, the cache grows by what they would have added.
    """
    return _Zigzag(plan, tuple(steps)).lowered()


@dataclass(slots=True)
class _Fetched:
    """Copies of what a computation waits for, and the buffers that it is in: (tier, since, bytes)."""

    tasks: list[int]
    buffers: list[tuple[str, int, float]]


@dataclass(slots=True)
class _Slot:
    """One unit of one block in one pass, with what its weights hold up and what holds them up."""

    number: int
    step: int
    stage: int
    """Number of the block among those in flight."""
    position: int
    unit: Unit
    loads: list[tuple[int, float]]
    """Copies of its weights to the accelerator, and their bytes."""
    staged: list[int]
    """Those that leave a DRAM buffer."""
    last: int = -1
    """Its last computation, once there is one."""


class _Zigzag:
    def __init__(self, plan: Plan, steps: tuple[int, ...]) -> None:
        self.plan, self.steps = plan, steps
        self.emit = Emitter(plan.name, plan.tiers, channels=plan.channels, serial=plan.prefetch == 0)
        self.moves = Moves(plan, self.emit)
        self.slots = [
            _Slot(number, step, stage, position, plan.units[index], [], [])
            for number, step in enumerate(steps)
            for stage in range(plan.stages)
            for position, index in enumerate(plan.order)
        ]
        self.names = [plan.place(position) for position in range(len(plan.order))]
        self.decode = {id(unit): unit.decode for unit in plan.units}
        self.computed: list[int] = []
        """Last computation of each item: a batch in a slot."""
        self.fetched: dict[int, _Fetched] = {}
        self.arrived: dict[int, _Fetched] = {}
        """Hidden states by item."""
        self.stored: dict[tuple[int, int, int], list[int]] = {}
        """By block, position and batch, the copies that stored its latest keys and values."""
        self.left: dict[int, list[int]] = {}
        """By item, the copies of its hidden states to where they wait."""
        self.due: list[tuple[int, int, bool]] = []
        """Items whose cache and hidden states are stored beside the next: number, task, whether the new cache is in DRAM."""
        # a single batch is always the one that is computed
        self.moves_hidden = bool(plan.hidden.away) and plan.batches > 1
        # weights that share a queue with the cache come in as many pieces as there are batches, not to hold it up
        shares_queue = plan.prefetch and plan.cache.away and not plan.cpu_attention and not plan.barrier
        self.pieces = plan.batches if shares_queue else 1

    def lowered(self) -> Lowered:
        """Emit everything."""
        self._resident()
        for ahead in range(min(self.plan.prefetch, len(self.slots))):
            for _ in range(self.pieces):
                self._load(ahead)
        ends = []
        opening = -1
        for index, slot in enumerate(self.slots):
            first = self._pass_through(index, slot)
            if slot.position == 0 and slot.stage == 0:
                opening = first
            if slot.position == len(self.names) - 1 and slot.stage == self.plan.stages - 1:
                ends.append(slot.last)
                self._activations(slot, opening)
        self._store(self.due)
        emit = self.emit
        return Lowered(emit.program, self.steps, emit.shares, emit.pass_of, emit.carried, ends, emit.gpu)

    def _resident(self) -> None:
        for tier, share in self.plan.weights.by_tier.items():
            for position, index in enumerate(self.plan.order):
                size = self.plan.units[index].stored * share
                self.emit.keep(tier, size, "weights", f"weights of {self.names[position]}")

    def _pass_through(self, index: int, slot: _Slot) -> int:
        """Compute all batches of one unit; returns the first computation."""
        plan, emit = self.plan, self.emit
        first = -1
        self._load_rest(index)
        for batch in range(plan.batches):
            item = index * plan.batches + batch
            # copies queue in the order in which they are needed: the next batch's cache, then weights ahead
            if not emit.serial:
                self._fetch(item + 1)
            if batch < self.pieces:
                self._load(index + plan.prefetch)
            if emit.serial:
                self._fetch(item)
            waiting, self.due = self.due, []
            due: list[int] = []
            if plan.barrier:
                # hidden states move on the stream that computes, before the computation
                due = self._send(waiting)
                due += self._receive(item + 1, due).tasks
            else:
                self._receive(item if emit.serial else item + 1, [])
            emit.number = slot.number
            started = self._compute(item, slot, batch, due)
            if batch == 0:
                first = started
                self._grow(slot, started)
            if plan.barrier:
                self._store(waiting)
                emit.barrier()
            else:
                waiting, self.due = self.due, []
                self._send(waiting)
                self._store(waiting)
        slot.last = self.computed[-1]
        for task, size in slot.loads:
            name = f"streamed weights of {self.names[slot.position]}"
            emit.keep(GPU, size, "buffers", name, at=task, until=[slot.last])
        return first

    # --- what passes hold --------------------------------------------------------------------------------------------

    def _activations(self, slot: _Slot, opening: int) -> None:
        """Hold the block's hidden states, and the tensors inside one layer of one batch, through a pass."""
        plan = self.plan
        workspace = max(unit.workspace[slot.step != PREFILL] for unit in plan.units)
        hidden = plan.block * plan.new(slot.step) * plan.hidden_bytes
        for tier, share in plan.hidden.by_tier.items():
            self.emit.keep(
                tier, hidden * share, "activations", "hidden states", at=opening, until=[slot.last]
            )
        self.emit.keep(GPU, workspace, "activations", "tensors of a layer", at=opening, until=[slot.last])

    def _grow(self, slot: _Slot, first: int) -> None:
        """Keep what the cache of a unit has grown by since the pass before."""
        plan, unit = self.plan, slot.unit
        before = 0.0
        if slot.number:
            previous = self.steps[slot.number - 1]
            before = unit.cache_bytes(plan.cached(previous) + plan.new(previous))
        grown = plan.block * (unit.cache_bytes(plan.cached(slot.step) + plan.new(slot.step)) - before)
        for tier, share in plan.cache.by_tier.items():
            self.emit.keep(tier, grown * share, "KV cache", f"cache of {self.names[slot.position]}", at=first)

    # --- weights -----------------------------------------------------------------------------------------------------

    def _load(self, index: int) -> None:
        """Fetch one piece of a unit's weights into one of prefetch + 1 buffers, by way of as many in DRAM from flash."""
        plan = self.plan
        if index >= len(self.slots) or not plan.weights.away:
            return
        slot = self.slots[index]
        vacated = index - plan.prefetch - 1
        free = [self.slots[vacated].last] if vacated >= 0 else []
        room = self.slots[vacated].staged if vacated >= 0 else []
        self._fetch_weights(slot, slot.unit.weights * plan.ahead(slot.unit) / self.pieces, free, room)

    def _load_rest(self, index: int) -> None:
        """Fetch what of a unit's weights was not fetched ahead, once the unit before it is done."""
        slot = self.slots[index]
        rest = slot.unit.weights * (1.0 - self.plan.ahead(slot.unit))
        if rest and self.plan.weights.away:
            self._fetch_weights(slot, rest, self.computed[-1:], self.computed[-1:])

    def _fetch_weights(self, slot: _Slot, size: float, free: Sequence[int], room: Sequence[int]) -> None:
        self.emit.number = slot.number
        name = f"{self.names[slot.position]}: weights"
        for tier, share in self.plan.weights.by_tier.items():
            if not share or tier == GPU:
                continue
            hops = self.moves.bring("weights", tier, size * share, free, name, room=room)
            slot.loads.append((hops[-1][1], size * share))
            if len(hops) > 1:
                slot.staged.append(hops[-1][1])
                self.emit.keep(
                    DRAM, size * share, "buffers", f"{name} on their way", at=hops[0][1], until=[hops[-1][1]]
                )

    # --- cache and hidden states -------------------------------------------------------------------------------------

    def _fetch(self, item: int) -> None:
        """Fetch the cache that an item attends to into one of two buffers; CPUs attend in DRAM."""
        plan = self.plan
        index, batch = divmod(item, plan.batches)
        if index >= len(self.slots):
            return
        slot = self.slots[index]
        size = plan.batch * slot.unit.cache_bytes(plan.cached(slot.step))
        if slot.step == PREFILL or not size * plan.cache.away:
            return
        self.emit.number = slot.number
        after = self.stored.get((slot.stage, slot.position, batch), [])
        if item >= 2:
            after = [*after, self.computed[item - 2]]
        name = f"{self.names[slot.position]}: cache"
        fetched = self.fetched[item] = _Fetched([], [])
        target = DRAM if plan.cpu_attention else GPU
        for tier, share in plan.cache.by_tier.items():
            if not share or tier in (GPU, target):
                continue
            for reached, task in self.moves.bring("kv", tier, size * share, after, name, target=target):
                fetched.tasks.append(task)
                fetched.buffers.append((reached, task, size * share))

    def _receive(self, item: int, after: list[int]) -> _Fetched:
        """Bring the hidden states of an item back to the accelerator; token numbers that begin a pass are there."""
        plan = self.plan
        index = item // plan.batches
        if index >= len(self.slots) or not self.moves_hidden or self.slots[index].position == 0:
            return _Fetched([], [])
        slot = self.slots[index]
        size = plan.batch * plan.new(slot.step) * plan.hidden_bytes
        before = item - plan.batches
        self.emit.number = slot.number
        after = [*after, *self.left.get(before, [])]
        if item >= 2 and not plan.barrier:
            after = [*after, self.computed[item - 2]]
        found = self.arrived[item] = _Fetched([], [])
        for tier, share in plan.hidden.by_tier.items():
            if share and tier != GPU:
                hops = self.moves.bring(
                    "hidden", tier, size * share, after, f"{self.names[slot.position]}: hidden states"
                )
                found.tasks += [task for _, task in hops]
                found.buffers += [(reached, task, size * share) for reached, task in hops]
        return found

    def _send(self, items: Sequence[tuple[int, int, bool]]) -> list[int]:
        """Send hidden states of computed items to where they wait; those of the last unit are tokens."""
        plan, copies = self.plan, []
        for item, task, _ in items:
            slot = self.slots[item // plan.batches]
            if not self.moves_hidden or slot.position == len(self.names) - 1:
                continue
            self.emit.number = slot.number
            size = plan.batch * plan.new(slot.step) * plan.hidden_bytes
            parts = {
                tier: size * share for tier, share in plan.hidden.by_tier.items() if share and tier != GPU
            }
            name = f"{self.names[slot.position]}: hidden states"
            self.left[item] = self.moves.away("hidden", parts, [task], name)
            copies += self.left[item]
        return copies

    def _store(self, items: Sequence[tuple[int, int, bool]]) -> None:
        """Move the new keys and values of computed items to where they stay; after CPU attention they are in DRAM."""
        plan = self.plan
        for item, task, in_dram in items:
            slot = self.slots[item // plan.batches]
            size = plan.batch * slot.unit.cache_bytes(plan.new(slot.step))
            # those of the last token are never read again
            if not size * plan.cache.away or slot.step == plan.steps - 1:
                continue
            self.emit.number = slot.number
            parts = {
                tier: size * share for tier, share in plan.cache.by_tier.items() if share and tier != GPU
            }
            name = f"{self.names[slot.position]}: new cache"
            copies = self.moves.away("kv", parts, [task], name, source=DRAM if in_dram else GPU)
            self.stored[slot.stage, slot.position, item % plan.batches] = copies

    # --- computation -------------------------------------------------------------------------------------------------

    def _compute(self, item: int, slot: _Slot, batch: int, due: list[int]) -> int:
        """Compute one batch through one unit; returns the first computation."""
        emit, unit = self.emit, slot.unit
        name = self.names[slot.position]
        fetched, hidden = self.fetched.pop(item, _Fetched([], [])), self.arrived.pop(item, _Fetched([], []))
        needs = [*due, *hidden.tasks] + ([task for task, _ in slot.loads] if batch == 0 else [])
        sent = -1
        if slot.step == PREFILL:
            first = last = emit.compute(unit.prefill, 0, needs, "prefill", name)
        elif unit.host is None:
            needs += fetched.tasks
            first = last = emit.compute(self.decode[id(unit)], slot.step, needs, "decode", name)
        else:
            first, sent, last = self._beside_host(slot, unit.host, needs, fetched)
        for label, found in (("cache", fetched), ("hidden states", hidden)):
            for tier, task, size in found.buffers:
                emit.keep(tier, size, "buffers", f"{label} of {name}", at=task, until=[last])
        self.computed.append(last)
        self.due.append((item, last if sent < 0 else sent, sent >= 0))
        return first

    def _beside_host(
        self, slot: _Slot, price: Price, needs: list[int], fetched: _Fetched
    ) -> tuple[int, int, int]:
        """Send queries, keys and values down, attend on the CPU, and bring the outputs back (section 4.3).

        Their copies are small and have queues of their own. Returns the first computation, the copy down and the last
        computation.
        """
        plan, emit, unit, step = self.plan, self.emit, slot.unit, slot.step
        host = plan.tiers.host
        assert host is not None  # a unit has a price on the host only where there is one
        name, away = self.names[slot.position], plan.batch * plan.cache.away
        first = emit.compute(unit.before, step, needs, "decode", f"{name}: up to attention")
        down = (unit.query_bytes + unit.token_bytes) * away
        sent = emit.copy(GPU, DRAM, down, [first], "queries", f"{name}: queries to DRAM", queue="queries")
        traffic = float(unit.host_bytes[step])
        attended = emit.attend(
            host, price, traffic, step, [sent, *fetched.tasks], f"{name}: attention on the CPU"
        )
        up = emit.copy(
            DRAM,
            GPU,
            unit.output_bytes * away,
            [attended],
            "outputs",
            f"{name}: outputs to GPU",
            queue="outputs",
        )
        if plan.cache.gpu:
            emit.compute(unit.attention, step, [], "decode", f"{name}: attention")
        last = emit.compute(unit.after, step, [up], "decode", f"{name}: after attention")
        return first, sent, last
