"""Lower a schedule to a Program: tasks of packs in Harmony's order, on the streams of each GPU.

Each GPU has queues for copies in and out of DRAM, for copies from its peers, for computation, and for its process on the
CPU (messages, updates). A task brings a pack's weights in once and runs every micro-batch through it before the next
(Li et al. 2022; dependencies as in the event simulator of its repository, simulator.py and sim_data_struct.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from simulator.engine import Program
from simulator.offload.columns import BOTTLENECKS, Rows
from simulator.offload.emit import COPYING, Emitter
from simulator.offload.task_packs.layers import Layers, PassTable
from simulator.offload.task_packs.packing import Pack, Schedule
from simulator.offload.task_packs.server import Server
from simulator.offload.tiers import DRAM, GPU

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True, slots=True)
class Task:
    """One pack in one pass on one GPU."""

    which: str
    pack: Pack
    rank: int
    micro_batch: int
    count: int
    """Micro-batches."""


@dataclass(frozen=True)
class Lowered:
    """The program, and what it moves."""

    emit: Emitter
    tasks: tuple[Task, ...]
    swapped: Mapping[str, float]
    """Bytes between the GPUs and DRAM by what they are, of the simulated GPUs."""
    peer_bytes: float
    """Bytes between GPUs, of the simulated ones."""
    message_bytes: float
    """Bytes that processes pass on."""
    computing: Sequence[float]
    """Seconds of computation of each simulated GPU."""

    @property
    def program(self) -> Program:
        """What the engine runs."""
        return self.emit.program


@dataclass(slots=True)
class _Run:
    """A task under way: what later ones wait for."""

    task: Task
    table: PassTable
    computed: list[int] = field(default_factory=list)
    """Last computation of each micro-batch."""
    recomputed: list[int] = field(default_factory=list)
    """Of a backward task, the forward part of each micro-batch."""
    outputs: list[int] = field(default_factory=list)
    """By micro-batch of the next task, what brought to DRAM what it needs; empty where a peer fetches it."""
    last_out: list[int] = field(default_factory=list)
    """Last copy to DRAM of what the next task of the same GPU needs."""
    dropped: int = -1
    """The task's tensors are gone."""

    @property
    def gone(self) -> list[int]:
        return [self.dropped]


def order(schedule: Schedule, minibatch: int, gpus: int, mode: str) -> tuple[Task, ...]:
    """Return the tasks in order: forward packs, then backward packs from the last; round the GPUs in a pipeline."""
    samples = minibatch if mode == "pipeline" else minibatch // gpus
    found = []
    passes = [(FORWARD, pack) for pack in schedule.forward_packs]
    passes += [(BACKWARD, pack) for pack in reversed(schedule.backward_packs)]
    for index, (which, pack) in enumerate(passes):
        size = schedule.forward_micro_batch if which == FORWARD else schedule.backward_micro_batch
        rank = index % gpus if mode == "pipeline" else 0
        found.append(Task(which, pack, rank, size, samples // size))
    return tuple(found)


def lower(
    name: str, layers: Layers, server: Server, tasks: Sequence[Task], *, prefetch: bool, overhead: float
) -> Lowered:
    """Return the program of one iteration.

    Parameters
    ----------
    name : str
        Of the program.
    layers : Layers
        What is computed and moved.
    server : Server
        GPUs and ways; of equal GPUs in data parallelism one, see :func:`~simulator.offload.task_packs.server.alone`.
    tasks : sequence of Task
        As :func:`order` returns them.
    prefetch : bool
        Whether copies run ahead into double buffers; else each waits for what comes before it.
    overhead : float
        Seconds after each task in which its tensors are dropped [s].
    """
    return _Lowering(name, layers, server, tasks, prefetch, overhead).run()


class _Lowering:
    def __init__(
        self,
        name: str,
        layers: Layers,
        server: Server,
        tasks: Sequence[Task],
        prefetch: bool,
        overhead: float,
    ) -> None:
        self.layers, self.server, self.tasks = layers, server, tuple(tasks)
        self.prefetch, self.overhead = prefetch, overhead
        self.emit = Emitter(name, server.ranks, channels=server.channels)
        self.twins = server.twins
        self.stash = {
            task.pack[0] for task in tasks if task.which == BACKWARD and task.pack[1] < layers.count
        }
        self.stashed: dict[tuple[int, int], int] = {}
        """By layer and backward micro-batch, what brought the layer's input to the process that needs it."""
        self.last: dict[int, list[_Run]] = {}
        """By GPU, its tasks so far."""
        self.sent: dict[int, int] = {}
        """By GPU, its last copy to a peer."""
        self.swapped: dict[str, float] = {}
        self.peer_bytes = self.message_bytes = 0.0
        self.computing = [0.0] * len(server.ranks)

    def run(self) -> Lowered:
        self._resident()
        previous: _Run | None = None
        for index, task in enumerate(self.tasks):
            run = _Run(task, self.layers.at(task.micro_batch))
            following = self.tasks[index + 1] if index + 1 < len(self.tasks) else None
            if task.which == FORWARD:
                self._forward(run, previous, following)
            else:
                self._backward(run, previous, following)
            self.last.setdefault(task.rank, []).append(run)
            previous = run
        return Lowered(
            self.emit, self.tasks, self.swapped, self.peer_bytes, self.message_bytes, tuple(self.computing)
        )

    def _resident(self) -> None:
        """What stays in DRAM: weights, as much for gradients, and optimizer states."""
        for label, sizes in (("weights", self.layers.stored), ("gradients", self.layers.gradients)):
            self.emit.keep(DRAM, float(sizes.sum()), label, f"{label} of all layers")
        self.emit.keep(
            DRAM, float(self.layers.state.sum()), "optimizer states", "optimizer states of all layers"
        )

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _forward(self, run: _Run, previous: _Run | None, following: Task | None) -> None:
        task = run.task
        bounds = self._parts(task.pack)
        weights = -1 if self._late(task) else self._weights(run)
        for i in range(task.count):
            entered = self._input(run, previous, i, weights)
            weights = self._weights(run) if weights < 0 else weights
            after = [entered, weights] if i == 0 else [entered]
            parts: list[int] = []
            for low, high in bounds:
                if low in self.stash:
                    saved = self._stash(run, i, low, parts[-1:] or self._opened(run, i, entered))
                    after = after if self.prefetch else [*after, saved]
                parts.append(self._compute(run, low, high, i, after, "forward", run.table.forward))
                after = parts[-1:]
            run.computed.append(parts[-1])
            self._workspace(run, FORWARD, parts[0], parts[-1])
            self._buffer(
                GPU, run, float(run.table.inputs[task.pack[0]]), "activations", "input", entered, parts[-1:]
            )
            if following is not None:
                self._output(run, following, i, "output")
        self._drop(run, [] if self.prefetch else run.last_out)
        self._hold_weights(run, weights)

    def _backward(self, run: _Run, previous: _Run | None, following: Task | None) -> None:
        task = run.task
        low, high = task.pack
        first = high == self.layers.count
        weights = -1 if self._late(task) else self._weights(run)
        opening = -1
        for i in range(task.count):
            entered = self._input(run, previous, i, weights) if first else self._restore(run, i, weights)
            gradient = -1 if first or not self.prefetch else self._gradient(run, previous, i)
            weights = self._weights(run) if weights < 0 else weights
            after = [entered, weights] if i == 0 else [entered]
            again = self._compute(run, low, high, i, after, "recomputation", run.table.forward)
            run.recomputed.append(again)
            opening = again if i == 0 else opening
            if not first and not self.prefetch:
                gradient = self._gradient(run, previous, i)
            after = [again] if first else [again, gradient]
            done = self._compute(run, low, high, i, after, "backward", run.table.backward)
            run.computed.append(done)
            self._workspace(run, BACKWARD, again, done)
            self._buffer(GPU, run, float(run.table.inputs[low]), "activations", "input", entered, [done])
            if gradient >= 0:
                self._buffer(
                    GPU,
                    run,
                    float(run.table.inputs[high]),
                    "activations",
                    "gradient of output",
                    gradient,
                    [done],
                )
            if low > 0 and following is not None:
                self._output(run, following, i, "input gradient")
        self._update(run, weights, opening)

    def _update(self, run: _Run, weights: int, opening: int) -> None:
        """Reduce a pack's gradients over the GPUs, send them to DRAM, drop the task's tensors, update on the CPU."""
        task, layers, emit = run.task, self.layers, self.emit
        low, high = task.pack
        size = float(layers.gradients[low:high].sum())
        ready = run.computed[-1:]
        if self.twins > 1:
            seconds = all_reduce_time(size, self.twins, self.server.peer_rate)
            waits = ready if self.prefetch else [*ready, *run.last_out]
            ready = [
                emit.work(
                    emit.gpus[task.rank], seconds, COPYING["host link"], waits, "all-reduce",
                    f"all-reduce of layers {low}-{high - 1}",
                )
            ]  # fmt: skip
            self.peer_bytes += 2.0 * (self.twins - 1) / self.twins * size
        elif not self.prefetch:
            ready = [*ready, *run.last_out]
        sent = self._swap(GPU, DRAM, size, "gradients", ready, run)
        self._buffer(GPU, run, size, "gradients", "gradients", opening, [sent])
        self._drop(run, [sent])
        self._hold_weights(run, weights)
        queue = f"cpu of gpu{emit.ranks[task.rank].rank}"
        name = f"update of layers {low}-{high - 1}"
        traffic = float(layers.update_traffic[low:high].sum()) / self.twins
        host = emit.ranks[task.rank].host
        if traffic and host is not None:
            emit.transfer(host.channel, traffic, host.channel.rate, queue, [sent], "update", name, "host")
        elif traffic:
            rate = emit.ranks[task.rank].channels[GPU, DRAM].rate
            emit.work(emit.stream(queue), traffic / rate, COPYING["host"], [sent], "update", name)
        else:
            emit.work(
                emit.stream(queue),
                float(layers.update[low:high].sum()),
                COPYING["host"],
                [sent],
                "update",
                name,
            )

    # --- what goes in ------------------------------------------------------------------------------------------------

    def _late(self, task: Task) -> bool:
        """Whether weights queue behind the task's first input, which is fetched ahead."""
        return self.prefetch and bool(self.last.get(task.rank))

    def _weights(self, run: _Run) -> int:
        left = self._before(run, 1)
        after: list[int] = []
        if left is not None:
            after = left.computed[-1:] if self.prefetch else left.gone
        low, high = run.task.pack
        return self._swap(DRAM, GPU, float(self.layers.weights[low:high].sum()), "weights", after, run)

    def _input(self, run: _Run, previous: _Run | None, i: int, weights: int) -> int:
        """Bring one micro-batch's input of a forward task, or of the last pack's backward task."""
        task = run.task
        low = task.pack[0]
        size = float(run.table.inputs[low])
        gate = self._gate(run, i, weights)
        if previous is None:
            return self._swap(DRAM, GPU, size, "activations", gate, run, f"data {i}")
        source = self._made(previous, run, i)
        if previous.outputs:
            return self._fetch(previous.outputs[source], run, size, gate, f"input {i}")
        return self._peer(previous, run, size, [*gate, previous.computed[source]], f"input {i}")

    def _restore(self, run: _Run, i: int, weights: int) -> int:
        """Bring one micro-batch's stashed input of a backward task."""
        low = run.task.pack[0]
        size, gate = float(run.table.inputs[low]), self._gate(run, i, weights)
        return self._fetch(self.stashed[low, i], run, size, gate, f"stashed input {i}", "stashed activations")

    def _fetch(
        self, sent: int, run: _Run, size: float, gate: Sequence[int], name: str, what: str = "activations"
    ) -> int:
        """Bring a tensor back that lies in DRAM from the start of one copy to the end of another."""
        brought = self._swap(DRAM, GPU, size, what, [*gate, sent], run, name)
        label = f"{name} of {run.task.which} task {run.task.pack[0]}-{run.task.pack[1] - 1}"
        self.emit.keep(DRAM, size * self.twins, what, label, at=sent, until=[brought], rank=run.task.rank)
        return brought

    def _gradient(self, run: _Run, previous: _Run | None, i: int) -> int:
        """Bring the gradient of one micro-batch's output from the task before."""
        assert previous is not None
        task = run.task
        size = float(run.table.inputs[task.pack[1]])
        left = self._before(run, 1)
        if not self.prefetch:
            gate = run.recomputed[i:]
        elif i > 0:
            gate = [run.recomputed[i - 1]]
        elif left is not None and left.recomputed:
            gate = left.recomputed[-1:]
        else:
            gate = self._ahead(run)
        if previous.task.rank == task.rank:
            return self._fetch(previous.outputs[i], run, size, gate, f"gradient of output {i}")
        return self._peer(previous, run, size, [*gate, previous.computed[i]], f"gradient of output {i}")

    def _gate(self, run: _Run, i: int, weights: int) -> list[int]:
        """Return what frees the buffer of one micro-batch's input: two buffers, or one."""
        if not self.prefetch:
            if i == 0:
                return [weights]
            return run.last_out or run.computed[-1:]
        if i == 0:
            return self._ahead(run)
        left = self._before(run, 1)
        if i == 1:
            return left.gone if left is not None else []
        return [run.computed[i - 2]]

    def _ahead(self, run: _Run) -> list[int]:
        """Return what frees a buffer for a task's first input while the task before it runs."""
        left, further = self._before(run, 1), self._before(run, 2)
        if left is not None and len(left.computed) >= 2:
            return [left.computed[-2]]
        return further.gone if left is not None and further is not None else []

    def _before(self, run: _Run, steps: int) -> _Run | None:
        """Return the task of the same GPU some tasks ago."""
        runs = self.last.get(run.task.rank, [])
        return runs[-steps] if len(runs) >= steps else None

    # --- what goes out -----------------------------------------------------------------------------------------------

    def _opened(self, run: _Run, i: int, entered: int) -> list[int]:
        """Return what a task's own input waits for before it is stashed."""
        left = self._before(run, 1)
        if not self.prefetch or (i == 0 and left is None):
            return [entered]
        return [entered, *(run.computed[-1:] if i else left.gone if left is not None else [])]

    def _stash(self, run: _Run, i: int, layer: int, after: Sequence[int]) -> int:
        """Send a layer's input to DRAM, and on to the process of the backward task that starts there."""
        size = float(run.table.inputs[layer])
        saved = self._swap(GPU, DRAM, size, "stashed activations", after, run, f"input of layer {layer}, {i}")
        self._buffer(GPU, run, size, "activations", f"input of layer {layer}", saved, [saved])
        target = next(t for t in self.tasks if t.which == BACKWARD and t.pack[0] == layer)
        for j in self._into(run, target, i):
            self.stashed[layer, j] = self._pass_on(saved, run, target, layer, j)
        return saved

    def _output(self, run: _Run, following: Task, i: int, what: str) -> None:
        """Send what the next task needs to DRAM; nothing where a peer fetches it."""
        task = run.task
        edge = task.pack[1] if task.which == FORWARD else task.pack[0]
        rebatched = task.micro_batch != following.micro_batch
        if task.rank != following.rank and not rebatched:
            return
        size = float(run.table.inputs[edge])
        out = self._swap(GPU, DRAM, size, "activations", run.computed[-1:], run, f"{what} {i}")
        self._buffer(GPU, run, size, "activations", what, out, [out])
        if task.rank == following.rank:
            run.outputs.append(out)
            run.last_out = [out]
            return
        for j in self._into(run, following, i):
            run.outputs.append(self._pass_on(out, run, following, edge, j))

    def _pass_on(self, saved: int, run: _Run, target: Task, layer: int, j: int) -> int:
        """Hand a tensor to the process of another GPU; a process has its own already."""
        if target.rank == run.task.rank:
            return saved
        size = float(self.layers.at(target.micro_batch).inputs[layer])
        self.message_bytes += size
        channel, rank = self.server.messages, self.emit.ranks[run.task.rank].rank
        return self.emit.transfer(
            channel, 2.0 * size, channel.rate, f"cpu of gpu{rank}", [saved], "messages",
            f"message of layer {layer}, {j}", "host",
        )  # fmt: skip

    @staticmethod
    def _into(run: _Run, target: Task, i: int) -> range:
        """Return the target's micro-batches whose last sample the i-th micro-batch of a task brings."""
        size = run.task.micro_batch
        return range(i * size // target.micro_batch, (i + 1) * size // target.micro_batch)

    @staticmethod
    def _made(previous: _Run, run: _Run, i: int) -> int:
        """Return the position among a task's outputs of what a micro-batch of the next needs."""
        if len(previous.outputs) == run.task.count:
            return i
        return ((i + 1) * run.task.micro_batch - 1) // previous.task.micro_batch

    def _drop(self, run: _Run, after: Sequence[int]) -> None:
        task = run.task
        name = f"tensors of {task.which} task {task.pack[0]}-{task.pack[1] - 1} dropped"
        run.dropped = self.emit.work(
            self.emit.gpus[task.rank], self.overhead, COPYING["host"], after, "deletion", name
        )

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _parts(self, pack: Pack) -> list[Pack]:
        """Cut a pack where the input of a layer is stashed."""
        cuts = sorted({pack[0], *(layer for layer in self.stash if pack[0] < layer < pack[1]), pack[1]})
        return list(pairwise(cuts))

    def _compute(
        self, run: _Run, low: int, high: int, i: int, after: Sequence[int], tag: str, rows: Rows
    ) -> int:
        row = rows[low:high].sum(axis=0)
        time = float(row[: len(BOTTLENECKS)].sum())
        rank = run.task.rank
        self.computing[rank] += time
        name = f"{tag} of layers {low}-{high - 1}, {i}"
        return self.emit.work(self.emit.gpus[rank], time, row / (time or 1.0), after, tag, name)

    def _swap(
        self,
        source: str,
        target: str,
        size: float,
        what: str,
        after: Sequence[int],
        run: _Run,
        name: str = "",
    ) -> int:
        task = run.task
        self.swapped[what] = self.swapped.get(what, 0.0) + size
        label = f"{name or what} of {task.which} task {task.pack[0]}-{task.pack[1] - 1}"
        return self.emit.copy(source, target, size, after, what, label, rank=task.rank)

    def _peer(self, previous: _Run, run: _Run, size: float, after: Sequence[int], name: str) -> int:
        """Copy from one GPU to another; the sender's copies wait for one another as the receiver's do."""
        source, target = previous.task.rank, run.task.rank
        self.peer_bytes += size
        channel = self.server.peers[source, target]
        before = [self.sent[source]] if source in self.sent else []
        task = run.task
        label = f"{name} of {task.which} task {task.pack[0]}-{task.pack[1] - 1} from gpu{source}"
        copied = self.emit.transfer(
            channel,
            size,
            channel.rate,
            f"peers to gpu{target}",
            [*after, *before],
            "peer copies",
            label,
            "host link",
        )
        self.sent[source] = copied
        return copied

    def _workspace(self, run: _Run, which: str, start: int, end: int) -> None:
        """Hold what a micro-batch needs of a pack's memory beside weights, gradients and input."""
        low, high = run.task.pack
        whole = float(run.table.pack_memory(which, np.array([low, high]))[0])
        apart = float(self.layers.weights[low:high].sum() + run.table.inputs[low])
        if which == BACKWARD:
            apart += float(self.layers.gradients[low:high].sum())
        self._buffer(GPU, run, max(0.0, whole - apart), "working memory", "working memory", start, [end])

    def _hold_weights(self, run: _Run, weights: int) -> None:
        low, high = run.task.pack
        size = float(self.layers.weights[low:high].sum())
        self._buffer(GPU, run, size, "weights", "weights", weights, run.gone)

    def _buffer(
        self, tier: str, run: _Run, size: float, category: str, name: str, at: int, until: Sequence[int]
    ) -> None:
        task = run.task
        label = f"{name} of {task.which} task {task.pack[0]}-{task.pack[1] - 1}"
        self.emit.keep(tier, size, category, label, at=at, until=until, rank=task.rank)


def all_reduce_time(size: float, gpus: int, rate: float) -> float:
    """Return the seconds of a ring all-reduce over peers: 2·(N - 1)/N·size/rate."""
    return 2.0 * (gpus - 1) / gpus * size / rate if gpus > 1 else 0.0


def reserved_memory(layers: Layers, schedule: Schedule) -> float:
    """Return the most bytes that a task may hold with double buffers: Harmony's own estimate (CofTask).

    Forward: its pack, one more input, one more output, and the inputs that it stashes. Backward: its pack, two more
    inputs (the stashed one and its gradient), the gradient of its output, and that of its input.
    """
    stash = {low for low, high in schedule.backward_packs if high < layers.count}
    most = 0.0
    for which, size, packs in (
        (FORWARD, schedule.forward_micro_batch, schedule.forward_packs),
        (BACKWARD, schedule.backward_micro_batch, schedule.backward_packs),
    ):
        table = layers.at(size)
        for low, high in packs:
            held = float(table.pack_memory(which, np.array([low, high]))[0])
            entering, leaving = float(table.inputs[low]), float(table.inputs[high])
            if which == FORWARD:
                held += (
                    entering
                    + leaving
                    + sum(float(table.inputs[layer]) for layer in stash if low <= layer < high)
                )
            else:
                held += 2.0 * entering + leaving + (entering if low else 0.0)
            most = max(most, held)
    return most
