"""What passes hold in the memories of a Program: saved tensors, and what each needs while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulator.engine import Program
from simulator.graph import Numeric
from simulator.training.passes import ChunkPass
from simulator.training.schedules import Order

Ran = tuple[int, int]
"""First and last task of a pass, or of one layer of it."""


class PassMemory:
    """Allocates for passes as they are emitted.

    Parameters
    ----------
    program : Program
        Where the passes run.
    memories : sequence of int
        Handle of each stage's memory.
    several : bool
        Whether a stage holds several model chunks, which names then tell apart.
    """

    def __init__(self, program: Program, memories: Sequence[int], *, several: bool) -> None:
        self.program, self.memories, self.several = program, memories, several
        self.forward_ran: dict[tuple[int, int, int], list[Ran]] = {}

    def passed(self, stage: int, row: Order, chunk: ChunkPass, tasks: list[Ran]) -> None:
        """Allocate what a forward pass saves when its last use is known, and what a pass needs while it runs."""
        key = (stage, row.chunk, row.micro_batch)
        parts = [chunk.layers[i].memory for i in chunk.order(row.part)] if len(tasks) > 1 else [chunk.memory]
        if row.part == "forward":
            self.forward_ran[key] = tasks
            for part, ran in zip(parts, tasks, strict=True):
                self._working(stage, part.forward_peak, "forward pass", part.forward_holders, ran)
            return
        started = self._started(key, row, chunk, tasks)
        name = f"activations {row.micro_batch}" + (f".{row.chunk}" if self.several else "")
        for part, ran, start in zip(parts, tasks, started, strict=True):
            if row.part == "weight-gradient":
                self._hold(stage, part.between, f"{name}, for weight gradients", start, ran)
                continue
            later = part.between if row.part == "input-gradient" else 0.0
            if len(tasks) > 1 and not later:
                for tensor, size in part.by_tensor.items():
                    self._hold(stage, size, f"{name}, {tensor}", start, ran)
            else:
                self._hold(stage, max(0.0, float(part.saved - later)), name, start, ran)
            self._working(stage, part.backward_peak, "backward pass", part.backward_holders, ran)

    def _started(
        self, key: tuple[int, int, int], row: Order, chunk: ChunkPass, tasks: list[Ran]
    ) -> list[int]:
        """Return the tasks whose starts have saved what a backward pass needs: of each layer, or of all."""
        forward = self.forward_ran[key] if row.part == "input-gradient" else self.forward_ran.pop(key)
        if len(tasks) == 1 or len(forward) == 1:
            return [forward[0][0]] * len(tasks)
        return [forward[layer][0] for layer in chunk.order(row.part)]

    def _hold(self, stage: int, size: Numeric, name: str, start: int, ran: Ran) -> None:
        if float(size):
            self.program.allocate(
                self.memories[stage], float(size), "activations", at=start, until=[ran[1]], name=name
            )

    def _working(
        self, stage: int, size: Numeric, name: str, holders: Mapping[str, Numeric], ran: Ran
    ) -> None:
        if float(size):
            largest = next(iter(holders), "")
            self.program.allocate(
                self.memories[stage], float(size), "working memory", at=ran[0], until=[ran[1]],
                name=f"{name}: {largest}" if largest else name,
            )  # fmt: skip
