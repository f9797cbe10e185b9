"""Lower a training step to a Program: one rank a pipeline stage stands for all its tensor- and data-parallel peers.

Passes become compute tasks on the stage's stream, stage boundaries transfers over the link between two stages,
gradient reductions transfers on the stage's data-parallel link. Ranks of a stage do the same, so one is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.engine import Program
from simulator.training.passes import ChunkPass, OperatorPass
from simulator.training.schedule import Order, Schedule


@dataclass(frozen=True, slots=True)
class Message:
    """A communication as the engine sees it: bytes over a link of a bandwidth, after a latency, at a sustained rate."""

    size: float
    bandwidth: float
    latency: float
    rate: float

    @property
    def time(self) -> float:
        """Seconds when nothing else uses the link."""
        return self.latency + (self.size / self.rate if self.size else 0.0)


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage does and holds in a step."""

    schedule: Schedule
    chunks: tuple[ChunkPass, ...]
    boundary: Message | None
    """Activation (and, backwards, gradient) message to the next stage; absent without a pipeline."""
    reduction: tuple[Message, ...]
    """Gradient communication after the last backward pass, one after another."""
    bucketed: bool
    """Whether the reduction is cut by layers and runs beside the last backward pass."""
    optimizer: float
    """Seconds of the optimizer step."""
    gather: Message | None
    """Parameters that are gathered after the optimizer step (ZeRO-1)."""
    resident: dict[str, float]
    """Bytes held through the whole step, by category."""
    capacity: float


@dataclass
class Lowered:
    """The program and where to find its parts again."""

    program: Program
    streams: list[int] = field(default_factory=list)
    memories: list[int] = field(default_factory=list)
    last_backward: list[int] = field(default_factory=list)
    """Task id of each stage's last backward pass."""
    optimizer: list[int] = field(default_factory=list)


def lower(name: str, stages: Sequence[StageWork], *, detail: bool = False) -> Lowered:
    """Return the program of one step.

    Parameters
    ----------
    name : str
        Of the program.
    stages : sequence of StageWork
        In pipeline order.
    detail : bool
        One task for each operator of a pass instead of one for each pass; the step takes the same time.
    """
    lowering = _Lowering(name, stages, detail)
    lowering.passes()
    lowering.finish()
    return lowering.out


class _Lowering:
    def __init__(self, name: str, stages: Sequence[StageWork], detail: bool) -> None:
        self.stages, self.detail = stages, detail
        self.program = program = Program(name)
        self.out = Lowered(program)
        count = len(stages)
        for index, stage in enumerate(stages):
            self.out.streams.append(program.stream(f"stage {index}"))
            self.out.memories.append(program.memory(f"stage {index} HBM", stage.capacity))
            for category, size in stage.resident.items():
                program.allocate(self.out.memories[index], size, category, name=category)
        self.next = [
            self._link(f"stage {i} to {(i + 1) % count}, activations", s.boundary)
            for i, s in enumerate(stages)
        ]
        self.back = [
            self._link(f"stage {(i + 1) % count} to {i}, gradients", s.boundary) for i, s in enumerate(stages)
        ]
        self.reduce = [
            program.link(f"stage {i} data-parallel", stage.reduction[0].bandwidth) if stage.reduction else -1
            for i, stage in enumerate(stages)
        ]
        self.reducing = [
            program.stream(f"stage {i} reduction") if s.reduction else -1 for i, s in enumerate(stages)
        ]
        self.arrived: dict[tuple[str, int, int], int] = {}
        self.forward_task: dict[tuple[int, int], int] = {}
        self.reductions: list[list[int]] = [[] for _ in stages]
        self.last_pass = [-1] * count

    def _link(self, name: str, message: Message | None) -> int:
        return self.program.link(name, message.bandwidth) if message else -1

    def passes(self) -> None:
        """Emit passes stage by stage, each as soon as what it depends on has been emitted."""
        position = [0] * len(self.stages)
        ready = list(range(len(self.stages)))
        while ready:
            stage = ready.pop()
            schedule = self.stages[stage].schedule
            while position[stage] < len(schedule):
                order = schedule[position[stage]]
                if not self._dependency_known(stage, order):
                    break
                neighbour = self._emit(stage, order)
                position[stage] += 1
                if neighbour is not None and neighbour != stage and neighbour not in ready:
                    ready.append(neighbour)

    def _global_chunk(self, stage: int, chunk: int) -> int:
        return chunk * len(self.stages) + stage

    @property
    def _last(self) -> int:
        return len(self.stages) * len(self.stages[0].chunks) - 1

    def _dependency_known(self, stage: int, order: Order) -> bool:
        place = self._global_chunk(stage, order.chunk)
        if order.direction == "forward":
            return place == 0 or ("forward", place, order.micro_batch) in self.arrived
        return place == self._last or ("backward", place, order.micro_batch) in self.arrived

    def _emit(self, stage: int, order: Order) -> int | None:
        work = self.stages[stage]
        place = self._global_chunk(stage, order.chunk)
        chunk = work.chunks[order.chunk]
        key = (order.direction, place, order.micro_batch)
        after = [self.arrived.pop(key)] if key in self.arrived else []
        label = f"{order.direction} {order.micro_batch}" + (f".{order.chunk}" if len(work.chunks) > 1 else "")
        if order.direction == "forward":
            first, last = self._run(
                stage, label, chunk.forward, float(chunk.forward_time.time), after, "forward"
            )
            self.forward_task[(place, order.micro_batch)] = first
        else:
            first, last = self._backward(stage, label, chunk, after, order)
            self._memory(stage, chunk, self.forward_task.pop((place, order.micro_batch)), first, last, label)
        self.last_pass[stage] = last
        return self._send(stage, order, place, last)

    def _run(
        self,
        stage: int,
        label: str,
        operators: Sequence[OperatorPass],
        time: float,
        after: list[int],
        tag: str,
    ) -> tuple[int, int]:
        stream = self.out.streams[stage]
        if not self.detail:
            task = self.program.compute(stream, time, after=after, tag=tag, name=label)
            return task, task
        tasks = []
        for operator in operators:
            name = f"{label} {operator.name}"
            tasks.append(self.program.compute(stream, operator.time, after=after, tag=tag, name=name))
            after = []
        return tasks[0], tasks[-1]

    def _backward(
        self, stage: int, label: str, chunk: ChunkPass, after: list[int], order: Order
    ) -> tuple[int, int]:
        work = self.stages[stage]
        final = order.micro_batch == work.schedule[-1].micro_batch
        if not (final and work.bucketed):
            return self._run(stage, label, chunk.backward, float(chunk.backward_time.time), after, "backward")
        tasks = []
        share = 1.0 / sum(len(c.layer_backward) for c in work.chunks)
        for index, layer in enumerate(chunk.layer_backward):
            task = self.program.compute(
                self.out.streams[stage],
                float(layer.time),
                after=after,
                tag="backward",
                name=f"{label} layer {index}",
            )
            tasks.append(task)
            after = []
            for message in work.reduction:
                self._reduce(stage, message, share, task)
        return tasks[0], tasks[-1]

    def _reduce(self, stage: int, message: Message, share: float, after: int) -> None:
        task = self.program.transfer(
            [self.reduce[stage]], message.size * share, after=[after], latency=message.latency, max_rate=message.rate,
            stream=self.reducing[stage], tag="gradient reduction", name="gradients",
        )  # fmt: skip
        self.reductions[stage].append(task)

    def _memory(
        self, stage: int, chunk: ChunkPass, forward: int, backward: int, end: int, label: str
    ) -> None:
        memory = self.out.memories[stage]
        name = label.replace("backward", "activations")
        self.program.allocate(memory, chunk.saved, "activations", at=forward, until=[end], name=name)
        if chunk.working:
            self.program.allocate(
                memory, chunk.working, "recomputation", at=backward, until=[end], name="one layer again"
            )

    def _send(self, stage: int, order: Order, place: int, task: int) -> int | None:
        """Pass the result on to the stage that needs it; returns that stage."""
        count, forward = len(self.stages), order.direction == "forward"
        target = place + 1 if forward else place - 1
        if target < 0 or target > self._last:
            return None
        neighbour = target % count
        sender = stage if forward else neighbour
        message = self.stages[sender].boundary
        if message is not None and neighbour != stage:
            task = self.program.transfer(
                [self.next[sender] if forward else self.back[sender]], message.size, after=[task],
                latency=message.latency, max_rate=message.rate, tag="stage boundary",
                name=f"{order.direction} {order.micro_batch}",
            )  # fmt: skip
        self.arrived[(order.direction, target, order.micro_batch)] = task
        return neighbour

    def finish(self) -> None:
        """Reduce gradients, step the optimizer, gather parameters."""
        program = self.program
        for stage, work in enumerate(self.stages):
            last = self.last_pass[stage]
            self.out.last_backward.append(last)
            if not work.bucketed:
                for message in work.reduction:
                    self._reduce(stage, message, 1.0, last)
            step = program.compute(
                self.out.streams[stage],
                work.optimizer,
                after=self.reductions[stage],
                tag="optimizer",
                name="optimizer",
            )
            self.out.optimizer.append(step)
            if work.gather is not None:
                program.transfer(
                    [self.reduce[stage]], work.gather.size, after=[step], latency=work.gather.latency,
                    max_rate=work.gather.rate, stream=self.reducing[stage], tag="parameter gather", name="parameters",
                )  # fmt: skip
