"""Lower a schedule to a Program: tasks of packs in Harmony's order, and what each copy and computation waits for.

A task brings a pack's weights in once and runs every micro-batch through it before the next (Li et al. 2022;
dependencies as in the event simulator of its repository, simulator.py and sim_data_struct.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from simulator.engine import Program
from simulator.offload.emit import Emitter
from simulator.offload.task_packs.layers import Layers, PassTable
from simulator.offload.task_packs.moves import Moves
from simulator.offload.task_packs.packing import Pack
from simulator.offload.task_packs.server import Server
from simulator.offload.task_packs.tasks import BACKWARD, FORWARD, Task
from simulator.offload.tiers import DRAM, GPU

ACTIVATIONS, STASHED = "activations", "stashed activations"


@dataclass(frozen=True)
class Lowered:
    """The program of one iteration, and what it moves."""

    tasks: tuple[Task, ...]
    moves: Moves

    @property
    def program(self) -> Program:
        """What the engine runs."""
        return self.moves.emit.program

    @property
    def emit(self) -> Emitter:
        """What the program was built with."""
        return self.moves.emit


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
    gone: list[int] = field(default_factory=list)
    """When the task's tensors are dropped."""


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
        As :func:`~simulator.offload.task_packs.tasks.order` returns them.
    prefetch : bool
        Whether copies run ahead into double buffers; else each waits for what comes before it.
    overhead : float
        Seconds after each task in which its tensors are dropped [s].
    """
    return _Lowering(Moves(name, layers, server), tasks, prefetch, overhead).run()


class _Lowering:
    def __init__(self, moves: Moves, tasks: Sequence[Task], prefetch: bool, overhead: float) -> None:
        self.moves, self.layers, self.tasks = moves, moves.layers, tuple(tasks)
        self.prefetch, self.overhead = prefetch, overhead
        last = self.layers.count
        self.stash = {task.pack[0]: task for task in tasks if task.which == BACKWARD and task.pack[1] < last}
        """By layer whose input is stashed, the backward task that starts there."""
        self.stashed: dict[tuple[int, int], int] = {}
        """By layer and backward micro-batch, what brought the layer's input to the process that needs it."""
        self.runs: dict[int, list[_Run]] = {}
        """By GPU, its tasks so far."""

    def run(self) -> Lowered:
        previous: _Run | None = None
        for index, task in enumerate(self.tasks):
            run = _Run(task, self.layers.at(task.micro_batch))
            following = self.tasks[index + 1] if index + 1 < len(self.tasks) else None
            (self._forward if task.which == FORWARD else self._backward)(run, previous, following)
            self.runs.setdefault(task.rank, []).append(run)
            previous = run
        return Lowered(self.tasks, self.moves)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _forward(self, run: _Run, previous: _Run | None, following: Task | None) -> None:
        task, moves, inputs = run.task, self.moves, run.table.inputs
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
                parts.append(moves.compute(task, low, high, i, after, "forward", run.table.forward))
                after = parts[-1:]
            run.computed.append(parts[-1])
            moves.hold_working(task, run.table, parts[0], parts[-1])
            moves.hold(task, float(inputs[task.pack[0]]), ACTIVATIONS, "input", entered, parts[-1:])
            if following is not None:
                self._output(run, following, i, "output")
        self._end(run, weights, [] if self.prefetch else run.last_out)

    def _backward(self, run: _Run, previous: _Run | None, following: Task | None) -> None:
        task, moves, inputs = run.task, self.moves, run.table.inputs
        low, high = task.pack
        first = high == self.layers.count
        weights = -1 if self._late(task) else self._weights(run)
        for i in range(task.count):
            entered = self._input(run, previous, i, weights) if first else self._restore(run, i, weights)
            gradient = [] if first or not self.prefetch else [self._gradient(run, previous, i)]
            weights = self._weights(run) if weights < 0 else weights
            after = [entered, weights] if i == 0 else [entered]
            again = moves.compute(task, low, high, i, after, "recomputation", run.table.forward)
            run.recomputed.append(again)
            if not first and not self.prefetch:
                gradient = [self._gradient(run, previous, i)]
            done = moves.compute(task, low, high, i, [again, *gradient], "backward", run.table.backward)
            run.computed.append(done)
            moves.hold_working(task, run.table, again, done)
            moves.hold(task, float(inputs[low]), ACTIVATIONS, "input", entered, [done])
            for brought in gradient:
                moves.hold(task, float(inputs[high]), ACTIVATIONS, "gradient of output", brought, [done])
            if low > 0 and following is not None:
                self._output(run, following, i, "input gradient")
        self._update(run, weights)

    def _update(self, run: _Run, weights: int) -> None:
        """Reduce a pack's gradients over the GPUs, send them to DRAM, drop the task's tensors, update on the CPU."""
        task, moves = run.task, self.moves
        size = float(self.layers.gradients[task.layers].sum())
        ready = [*run.computed[-1:], *([] if self.prefetch else run.last_out)]
        if moves.twins > 1:
            ready = [moves.reduce(task, size, ready)]
        sent = moves.swap(GPU, DRAM, size, "gradients", ready, task)
        moves.hold(task, size, "gradients", "gradients", run.recomputed[0], [sent])
        self._end(run, weights, [sent])
        moves.update(task, [sent])

    def _end(self, run: _Run, weights: int, after: Sequence[int]) -> None:
        run.gone = [self.moves.drop(run.task, self.overhead, after)]
        size = float(self.layers.weights[run.task.layers].sum())
        self.moves.hold(run.task, size, "weights", "weights", weights, run.gone)

    def _parts(self, pack: Pack) -> list[Pack]:
        """Cut a pack where the input of a layer is stashed."""
        cuts = sorted({pack[0], *(layer for layer in self.stash if pack[0] < layer < pack[1]), pack[1]})
        return list(pairwise(cuts))

    # --- what goes in ------------------------------------------------------------------------------------------------

    def _late(self, task: Task) -> bool:
        """Whether weights queue behind the task's first input, which is fetched ahead."""
        return self.prefetch and bool(self.runs.get(task.rank))

    def _weights(self, run: _Run) -> int:
        left = self._before(run, 1)
        after: list[int] = []
        if left is not None:
            after = left.computed[-1:] if self.prefetch else left.gone
        size = float(self.layers.weights[run.task.layers].sum())
        return self.moves.swap(DRAM, GPU, size, "weights", after, run.task)

    def _input(self, run: _Run, previous: _Run | None, i: int, weights: int) -> int:
        """Bring one micro-batch's input of a forward task, or of the last pack's backward task."""
        task = run.task
        low = task.pack[0]
        size = float(run.table.inputs[low])
        gate = self._gate(run, i, weights)
        if previous is None:
            return self.moves.swap(DRAM, GPU, size, ACTIVATIONS, gate, task, f"data {i}")
        source = self._made(previous, run, i)
        if previous.outputs:
            return self.moves.fetch(previous.outputs[source], task, size, gate, f"input {i}", ACTIVATIONS)
        after = [*gate, previous.computed[source]]
        return self.moves.peer(previous.task.rank, task, size, after, f"input {i}")

    def _restore(self, run: _Run, i: int, weights: int) -> int:
        """Bring one micro-batch's stashed input of a backward task."""
        low = run.task.pack[0]
        size, gate = float(run.table.inputs[low]), self._gate(run, i, weights)
        return self.moves.fetch(self.stashed[low, i], run.task, size, gate, f"stashed input {i}", STASHED)

    def _gradient(self, run: _Run, previous: _Run | None, i: int) -> int:
        """Bring the gradient of one micro-batch's output from the task before."""
        assert previous is not None
        task = run.task
        size, name = float(run.table.inputs[task.pack[1]]), f"gradient of output {i}"
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
            return self.moves.fetch(previous.outputs[i], task, size, gate, name, ACTIVATIONS)
        return self.moves.peer(previous.task.rank, task, size, [*gate, previous.computed[i]], name)

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
        runs = self.runs.get(run.task.rank, [])
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
        size, target, name = float(run.table.inputs[layer]), self.stash[layer], f"input of layer {layer}"
        saved = self.moves.swap(GPU, DRAM, size, STASHED, after, run.task, f"{name}, {i}")
        self.moves.hold(run.task, size, ACTIVATIONS, name, saved, [saved])
        for j in self._into(run, target, i):
            self.stashed[layer, j] = self.moves.pass_on(saved, run.task, target, layer, j)
        return saved

    def _output(self, run: _Run, following: Task, i: int, what: str) -> None:
        """Send what the next task needs to DRAM; nothing where a peer fetches it."""
        task = run.task
        edge = task.pack[1] if task.which == FORWARD else task.pack[0]
        rebatched = task.micro_batch != following.micro_batch
        if task.rank != following.rank and not rebatched:
            return
        size = float(run.table.inputs[edge])
        out = self.moves.swap(GPU, DRAM, size, ACTIVATIONS, run.computed[-1:], task, f"{what} {i}")
        self.moves.hold(task, size, ACTIVATIONS, what, out, [out])
        if task.rank == following.rank:
            run.outputs.append(out)
            run.last_out = [out]
            return
        for j in self._into(run, following, i):
            run.outputs.append(self.moves.pass_on(out, task, following, edge, j))

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
