"""Lower a training step to a Program: one rank a pipeline stage stands for all its tensor- and data-parallel peers.

Passes become compute tasks on the stage's stream, stage boundaries transfers over the link between two stages,
gradient reductions and parameter gathers transfers on the stage's data-parallel link. Ranks of a stage do the same, so one
is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.engine import Program
from simulator.training.pass_memory import PassMemory, Ran
from simulator.training.passes import ChunkPass, OperatorPass, paired_seconds
from simulator.training.replica_link import ReplicaLink
from simulator.training.schedules import Order, Part, Pipeline, in_flight
from simulator.training.work import LayerMessages, Message, StageWork

BOUNDARY = "stage boundary"
"""Tag of transfers between stages."""


@dataclass
class Lowered:
    """The program and where to find its parts again."""

    program: Program
    streams: list[int] = field(default_factory=list)
    memories: list[int] = field(default_factory=list)
    last_pass: list[int] = field(default_factory=list)
    """Task of each stage's last pass."""
    optimizer: list[int] = field(default_factory=list)
    gathers: list[list[int]] = field(default_factory=list)
    """Gathers of parameters after the optimizer step, by stage."""


@dataclass(frozen=True)
class Replica:
    """Replicas of the model that do the same: their tables, what their stages do, and the messages between these."""

    table: Pipeline
    stages: Sequence[StageWork]
    boundaries: Mapping[tuple[int, int], Message]
    """By the stages that send and receive: an activation, or its gradient."""
    label: str = ""
    """What tells them from others, where there are several kinds."""


def lower(name: str, replicas: Sequence[Replica], *, detail: bool = False) -> Lowered:
    """Return the program of one step.

    Parameters
    ----------
    name : str
        Of the program.
    replicas : sequence of Replica
        One of each kind; their gradients are reduced when all have them.
    detail : bool
        One task for each operator of a pass instead of one for each pass; the step takes the same time.
    """
    out = Lowered(Program(name))
    kinds = [_Lowering(out, replica, detail, together=len(replicas) == 1) for replica in replicas]
    for kind in kinds:
        kind.passes()
    _reduce_together(kinds)
    for stage in range(len(replicas[0].stages)):
        for kind in kinds:
            kind.reduce(stage, [other.last_pass[stage] for other in kinds])
    for kind in kinds:
        kind.finish()
    return out


def _reduce_together(kinds: Sequence[_Lowering]) -> None:
    """Emit the reductions that waited for replicas of another kind, layer by layer."""
    for stage in range(len(kinds[0].stages)):
        for entries in zip(*(kind.postponed[stage] for kind in kinds), strict=True):
            ends = [ran[1] for _, ran in entries]
            for kind, (own, ran) in zip(kinds, entries, strict=True):
                kind.send(stage, own, ran, ends, final=True)


class _Lowering:
    def __init__(self, out: Lowered, replica: Replica, detail: bool, *, together: bool) -> None:
        self.table, self.stages, self.boundaries = replica.table, replica.stages, replica.boundaries
        self.detail, self.together = detail, together
        self.out, self.program = out, out.program
        self.first = len(out.streams)
        program, label = out.program, f"{replica.label} " if replica.label else ""
        for index, stage in enumerate(self.stages):
            out.last_pass.append(-1)
            out.streams.append(program.stream(f"{label}stage {index}"))
            out.memories.append(program.memory(f"{label}stage {index} HBM", stage.capacity))
            for category, size in stage.resident.items():
                program.allocate(out.memories[-1], size, category, name=category)
        self.streams, self.memories = out.streams[self.first :], out.memories[self.first :]
        self.links = {
            (sender, receiver): program.link(f"{label}stage {sender} to {receiver}", message.bandwidth)
            for (sender, receiver), message in self.boundaries.items()
        }
        self.sending = {
            pair: program.stream(f"{label}stage {pair[0]} sends to {pair[1]}") for pair in self.boundaries
        }
        self.replicas = [
            ReplicaLink(program, f"{label}stage {index}", stage) for index, stage in enumerate(self.stages)
        ]
        self.finals = [_finals(stage) for stage in self.stages]
        self.alone = in_flight(self.table.orders[0]) == 1
        self.position = [0] * len(self.stages)
        self.arrived: dict[tuple[bool, int, int, int], int] = {}
        self.memory = PassMemory(program, self.memories, several=self.table.chunks > 1)
        self.computed: list[list[int]] = [[] for _ in self.stages]
        self.held: dict[tuple[int, int, int, int], int] = {}
        self.sent: list[list[list[int]]] = [[] for _ in self.stages]
        self.postponed: list[list[tuple[LayerMessages, Ran]]] = [[] for _ in self.stages]
        self.last_pass = [-1] * len(self.stages)

    # --- order of emission ------------------------------------------------------------------------------------------

    def passes(self) -> None:
        """Emit passes stage by stage, each as soon as what it depends on has been emitted."""
        ready = list(range(len(self.stages)))
        waiting = [True] * len(self.stages)
        while ready:
            stage = ready.pop()
            waiting[stage] = False
            schedule = self.stages[stage].schedule
            while self.position[stage] < len(schedule):
                rows = self._rows(stage)
                if not all(self._known(stage, row) for row in rows):
                    break
                for neighbour in self._emit(stage, rows):
                    if neighbour != stage and not waiting[neighbour]:
                        waiting[neighbour] = True
                        ready.append(neighbour)
                self.position[stage] += len(rows)

    def _rows(self, stage: int) -> tuple[Order, ...]:
        """Return the next row of a stage's table, with the one that runs together with it."""
        at, schedule = self.position[stage], self.stages[stage].schedule
        joint = schedule[at].paired and self.stages[stage].pairs and at + 1 < len(schedule)
        return schedule[at : at + (2 if joint else 1)]

    def _known(self, stage: int, row: Order) -> bool:
        place, route = self.table.place(stage, row.chunk), self.table.route_of[row.micro_batch]
        if row.part == "weight-gradient":
            return True
        forward = row.part == "forward"
        if place == (0 if forward else self.table.places - 1):
            return True
        return (forward, route, place, row.micro_batch) in self.arrived

    # --- passes -----------------------------------------------------------------------------------------------------

    def _emit(self, stage: int, rows: tuple[Order, ...]) -> list[int]:
        """Emit a pass, or two that run together; returns the stages that now may go on."""
        work = self.stages[stage]
        after: list[int] = []
        for row in rows:
            place, route = self.table.place(stage, row.chunk), self.table.route_of[row.micro_batch]
            key = (row.part == "forward", route, place, row.micro_batch)
            if row.part != "weight-gradient" and key in self.arrived:
                after.append(self.arrived.pop(key))
        labels = [self._label(work, row) for row in rows]
        if len(rows) == 2:
            chunks = [work.chunk(row.chunk, row.micro_batch) for row in rows]
            both = [(chunk, row.part) for chunk, row in zip(chunks, rows, strict=True)]
            seconds = paired_seconds(
                sum(chunk.seconds(part) for chunk, part in both),
                sum(chunk.exchange(part) for chunk, part in both),
                work.communication.occupancy,
            )
            task = self.program.compute(
                self.streams[stage], seconds, after=after, tag="pair", name=" with ".join(labels)
            )
            tasks = [[(task, task)], [(task, task)]]
        else:
            tasks = [self._pass(stage, rows[0], labels[0], after)]
        found = []
        for row, own in zip(rows, tasks, strict=True):
            self.memory.passed(stage, row, work.chunk(row.chunk, row.micro_batch), own)
            self.last_pass[stage] = own[-1][1]
            found += self._send(stage, row, own[-1][1])
        return found

    def _label(self, work: StageWork, row: Order) -> str:
        return f"{row.part} {row.micro_batch}" + (f".{row.chunk}" if len(work.chunks) > 1 else "")

    def _pass(self, stage: int, row: Order, label: str, after: list[int]) -> list[Ran]:
        """Emit one pass; returns its first and last task, or those of each layer where layers are tasks."""
        work = self.stages[stage]
        chunk = work.chunk(row.chunk, row.micro_batch)
        if self._by_layer(stage, row):
            return self._layers(stage, row, label, chunk, after)
        if not self.detail:
            task = self.program.compute(
                self.streams[stage], chunk.seconds(row.part), after=after, tag=row.part, name=label
            )
            return [(task, task)]
        found = []
        for layer in chunk.operators[row.part]:
            found.append(self._operators(stage, label, layer, row.part, after))
            after = []
        return found

    def _operators(
        self,
        stage: int,
        label: str,
        operators: Sequence[OperatorPass],
        part: Part,
        after: list[int],
        scale: float = 1.0,
    ) -> Ran:
        """Emit the operators of a layer one by one."""
        tasks = []
        for operator in operators:
            name = f"{label} {operator.name}"
            tasks.append(
                self.program.compute(
                    self.streams[stage], operator.time * scale, after=after, tag=part, name=name
                )
            )
            after = []
        if not tasks:
            tasks = [self.program.compute(self.streams[stage], 0.0, after=after, tag=part, name=label)]
        return tasks[0], tasks[-1]

    # --- communication with replicas ----------------------------------------------------------------------------------

    def _by_layer(self, stage: int, row: Order) -> bool:
        """Whether layers of a pass have something to wait for or to send on."""
        communication = self.stages[stage].communication
        first, final = self._first(row), self._final(stage, row)
        gathers = communication.gather == "each" or (communication.gather == "next" and first)
        reduces = communication.reduce == "each" or (communication.reduce == "last" and final)
        updates = any(layer.optimizer for layer in self.stages[stage].messages[row.chunk])
        return (gathers and row.part != "weight-gradient") or (
            (reduces or updates) and row.part in ("backward", "weight-gradient")
        )

    def _first(self, row: Order) -> bool:
        return row.part == "forward" and row.micro_batch == self._first_of(row)

    def _first_of(self, row: Order) -> int:
        route = self.table.route_of[row.micro_batch]
        return self.table.route_of.index(route)

    def _final(self, stage: int, row: Order) -> bool:
        return self.finals[stage].get(row.chunk) == row

    def _layers(self, stage: int, row: Order, label: str, chunk: ChunkPass, after: list[int]) -> list[Ran]:
        """Emit a pass layer by layer, each with what it waits for and what it sends on."""
        work, part = self.stages[stage], row.part
        communication, messages = work.communication, work.messages[row.chunk]
        gradients, final = part in ("backward", "weight-gradient"), self._final(stage, row)
        sends = gradients and (communication.reduce == "each" or (communication.reduce == "last" and final))
        found: list[Ran] = []
        for operators, layer in zip(chunk.operators[part], chunk.order(part), strict=True):
            own = messages[layer]
            gathers, gathered = self._gather(stage, row, layer, own)
            waits = [*after, *gathers, *(self._room(stage) if sends and own.gradients else ())]
            seconds = sum(operator.time for operator in operators)
            beside = sum(m.time for m in own.gather) * bool(gathers) + sum(m.time for m in own.reduce) * sends
            slowed = communication.crowding * min(seconds, beside)
            if self.detail:
                scale = 1.0 + (slowed / seconds if seconds else 0.0)
                ran = self._operators(stage, label, operators, part, waits, scale)
            else:
                task = self.program.compute(
                    self.streams[stage], seconds + slowed, after=waits, tag=part,
                    name=f"{label} layer {layer}",
                )  # fmt: skip
                ran = (task, task)
            after = []
            self.computed[stage].append(ran[1])
            self._release(stage, row, layer, own, gathered, ran[1])
            if sends:
                self._reduce(stage, own, ran, final=final)
            if gradients and own.optimizer:
                self.program.compute(
                    self.streams[stage], own.optimizer, after=self.replicas[stage].take(), tag="optimizer",
                    name=f"update of layer {layer}",
                )  # fmt: skip
            found.append(ran)
        return found

    def _gather(self, stage: int, row: Order, layer: int, own: LayerMessages) -> tuple[list[int], int | None]:
        """Emit the gathers that a layer waits for; returns them and the task whose start holds the parameters."""
        communication, replicas = self.stages[stage].communication, self.replicas[stage]
        if communication.gather == "next" and self._first(row):
            return [replicas.gather(message, []) for message in own.gather], None
        if communication.gather != "each" or row.part == "weight-gradient" or not own.gather:
            return [], None
        if row.part != "forward" and self._keeps(stage, own):
            return [], self.held.pop((stage, row.chunk, row.micro_batch, layer))
        done = self.computed[stage]
        ahead = len(done) - 1 - communication.prefetch
        tasks = [
            replicas.gather(message, done[ahead : ahead + 1] if ahead >= 0 else []) for message in own.gather
        ]
        return tasks, tasks[0]

    def _keeps(self, stage: int, own: LayerMessages) -> bool:
        """Whether gathered parameters stay until the backward pass."""
        return (own.stays and self.alone) or not self.stages[stage].communication.reshard

    def _room(self, stage: int) -> list[int]:
        """Return the reductions that must be over before another layer's gradients may be made: of the layer before the last."""
        sent = self.sent[stage]
        return sent[-2] if len(sent) > 1 else []

    def _release(
        self, stage: int, row: Order, layer: int, own: LayerMessages, gathered: int | None, end: int
    ) -> None:
        """Hold gathered parameters until the layer, or its backward pass, is done."""
        if gathered is None:
            return
        if row.part == "forward" and self._keeps(stage, own):
            self.held[(stage, row.chunk, row.micro_batch, layer)] = gathered
            return
        self.program.allocate(
            self.memories[stage], own.gathered, "gathered parameters", at=gathered, until=[end],
            name=f"parameters of layer {layer}",
        )  # fmt: skip

    def _reduce(self, stage: int, own: LayerMessages, ran: Ran, *, final: bool) -> None:
        """Send a layer's gradients on, or wait with it for replicas of another kind."""
        if self.together:
            self.send(stage, own, ran, [ran[1]], final=final)
        else:
            self.postponed[stage].append((own, ran))

    def send(self, stage: int, own: LayerMessages, ran: Ran, ends: list[int], *, final: bool) -> None:
        """Send a layer's gradients on when all replicas have them; they are held until they have arrived."""
        replicas = self.replicas[stage]
        messages = [*own.reduce, *(own.replicate if final else ())]
        tasks = [replicas.reduce(message, ends) for message in messages]
        if own.gradients and tasks:
            self.sent[stage].append(tasks)
            self.program.allocate(
                self.memories[stage],
                own.gradients,
                "gradient buckets",
                at=ran[0],
                until=tasks,
                name="gradients of a layer",
            )

    # --- between stages, and the end ----------------------------------------------------------------------------------

    def _send(self, stage: int, row: Order, task: int) -> list[int]:
        """Pass the result on to the stage that needs it; returns that stage."""
        if row.part == "weight-gradient":
            return []
        forward = row.part == "forward"
        route = self.table.route_of[row.micro_batch]
        place = self.table.place(stage, row.chunk) + (1 if forward else -1)
        if not 0 <= place < self.table.places:
            return []
        neighbour = self.table.routes[route][place][0]
        message = self.boundaries.get((stage, neighbour))
        if message is not None:
            task = self.program.transfer(
                [self.links[stage, neighbour]], message.size, after=[task], latency=message.latency,
                max_rate=message.rate, stream=self.sending[stage, neighbour], tag=BOUNDARY,
                name=f"{row.part} {row.micro_batch}",
            )  # fmt: skip
        self.arrived[(forward, route, place, row.micro_batch)] = task
        return [neighbour]

    def reduce(self, stage: int, ends: list[int]) -> None:
        """Reduce the gradients of a whole stage when all replicas have them."""
        self.out.last_pass[self.first + stage] = self.last_pass[stage]
        for message in self.stages[stage].reduction:
            self.replicas[stage].reduce(message, ends)

    def finish(self) -> None:
        """Step the optimizer, gather parameters."""
        for stage, work in enumerate(self.stages):
            replicas = self.replicas[stage]
            step = self.program.compute(
                self.streams[stage], work.optimizer, after=replicas.take(), tag="optimizer", name="optimizer"
            )
            self.out.optimizer.append(step)
            self.out.gathers.append([replicas.gather(message, [step]) for message in work.gather])


def _finals(stage: StageWork) -> dict[int, Order]:
    """The row of a stage's table after which a chunk's gradients are complete."""
    return {row.chunk: row for row in stage.schedule if row.part in ("backward", "weight-gradient")}
