"""What a run of an expert cache leaves behind: passes, and what happened to the experts that tokens were routed to."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.engine import Timeline


@dataclass
class Counts:
    """What happened to experts that tokens were routed to, by kind of pass (prefill, decode); experts, not tokens."""

    used: int = 0
    hits: int = 0
    """Resident when the gate named them."""
    elsewhere: int = 0
    """Computed where they lie."""
    substituted: int = 0
    predicted: int = 0
    """Named by the predictor."""
    right: int = 0
    """Of those: used."""
    wanted: int = 0
    """Of those named: not resident, so to be fetched."""
    timely: int = 0
    """Of those to be fetched: there when the gate spoke."""
    useful: int = 0
    """Of those there in time: used."""


@dataclass
class Pass:
    """One prefill or decode step as it ran."""

    prefill: bool
    begin: float
    end: float = 0.0
    encoded: float = 0.0
    """End of the encoder's last layer, of a prefill that has one."""
    computing: float = 0.0
    """Seconds in which the accelerator computed."""
    elsewhere: float = 0.0
    """Seconds in which it would have computed the experts that something else did."""

    @property
    def resident(self) -> float:
        """Seconds that it would have taken with all experts resident."""
        return self.computing + self.elsewhere


@dataclass
class Ran:
    """A run: passes in order, counts of prefill and decode, the timeline."""

    passes: list[Pass] = field(default_factory=list)
    prefill: Counts = field(default_factory=Counts)
    decode: Counts = field(default_factory=Counts)
    timeline: Timeline | None = None
