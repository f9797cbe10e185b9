"""The link of a stage to its replicas in a Program, with the streams that its collectives queue on."""

from __future__ import annotations

from simulator.engine import Program
from simulator.training.work import Message, StageWork

GATHER, REDUCTION = "parameter gather", "gradient reduction"
"""Tags of transfers."""


class ReplicaLink:
    """What a stage sends to its replicas: gathers on one stream, reductions on another, both over one link."""

    def __init__(self, program: Program, name: str, work: StageWork) -> None:
        self.program = program
        messages = [*work.reduction, *work.gather]
        for chunk in work.messages:
            for layer in chunk:
                messages += [*layer.gather, *layer.reduce, *layer.replicate]
        if messages:
            self.link = program.link(f"{name} data-parallel", max(m.bandwidth for m in messages))
            self.gathering = program.stream(f"{name} gather")
            self.reducing = program.stream(f"{name} reduction")
        self.reductions: list[int] = []

    def gather(self, message: Message, after: list[int]) -> int:
        """Add a gather of parameters; returns its task."""
        return self.program.transfer(
            [self.link], message.size, after=after, latency=message.latency, max_rate=message.rate,
            stream=self.gathering, tag=GATHER, name="parameters",
        )  # fmt: skip

    def reduce(self, message: Message, after: list[int]) -> int:
        """Add a reduction of gradients; returns its task."""
        task = self.program.transfer(
            [self.link], message.size, after=after, latency=message.latency, max_rate=message.rate,
            stream=self.reducing, tag=REDUCTION, name="gradients",
        )  # fmt: skip
        self.reductions.append(task)
        return task

    def take(self) -> list[int]:
        """Return the reductions since the last call."""
        found, self.reductions = self.reductions, []
        return found
