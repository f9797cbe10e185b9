"""Phases as a program: a stream for each unit, the memory as a link, a barrier after each stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from simulator.engine import Program
from simulator.offload.waterfall.attention import Phase


@dataclass
class Waterfall:
    """A program under construction.

    Attributes
    ----------
    program : Program
        With streams ``array`` and ``vector`` and a link ``memory``.
    attends : dict of int to bool
        Whether each task that takes time is attention's.
    """

    program: Program
    attends: dict[int, bool] = field(default_factory=dict)
    _last: tuple[int, ...] = ()

    @staticmethod
    def on(bandwidth: float) -> Waterfall:
        """Return an empty one over a memory of some bandwidth [B/s]."""
        program = Program("waterfall")
        for name in ("array", "vector"):
            program.stream(name)
        program.link("memory", bandwidth)
        return Waterfall(program)

    def add(self, phases: Iterable[Phase], label: str, *, attention: bool) -> int:
        """Add phases after all that is there; return the task with which they end."""
        program = self.program
        streams = {name: program.handle(name) for name in ("array", "vector")}
        link = program.handle("memory")
        for phase in phases:
            name = f"{label} {phase.name}"
            moved = program.transfer(
                [link], phase.traffic, after=self._last, tag="memory", name=f"{name} operands"
            )
            self.attends[moved] = attention
            after = self._last
            for stage in phase.stages:
                ends: list[int] = []
                for work in stage:
                    task = program.compute(
                        streams[work.unit], work.time, after=after, tag=work.unit, name=f"{label} {work.name}"
                    )
                    self.attends[task] = attention
                    ends.append(task)
                after = tuple(ends)
            self._last = (program.barrier(after=[*after, moved], name=name),)
        return self._last[0]
