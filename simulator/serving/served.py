"""What a replica leaves behind: times by request, accounts by part, and series of queue, batch and memory over time."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulator.engine import Timeline
from simulator.serving.workload import Floats, Integers, Requests


def _reals() -> Any:
    return array("d")


def _wholes() -> Any:
    return array("q")


@dataclass
class Log:
    """What happened, one entry a run of iterations, in columns; arrays once the run is over.

    Start and length [s], steps, sequences that decode, prompts, their tokens, requests that wait and that are swapped out;
    bytes held by those who run, bytes of them that hold keys and values at the end of the run, and bytes of cached prefixes
    that nobody refers to [B].
    """

    start: Any = field(default_factory=_reals)
    seconds: Any = field(default_factory=_reals)
    steps: Any = field(default_factory=_wholes)
    decoding: Any = field(default_factory=_wholes)
    prefilling: Any = field(default_factory=_wholes)
    prefill_tokens: Any = field(default_factory=_wholes)
    waiting: Any = field(default_factory=_wholes)
    swapped: Any = field(default_factory=_wholes)
    kv_bytes: Any = field(default_factory=_reals)
    stored_bytes: Any = field(default_factory=_reals)
    idle_bytes: Any = field(default_factory=_reals)

    def columns(self) -> Log:
        """Return the same as numpy arrays."""
        return Log(**{name: np.array(column) for name, column in vars(self).items()})


@dataclass(frozen=True)
class Served:
    """A run of one replica, requests in order of arrival: times by request [s], the accounts by part, and what happened when."""

    requests: Requests
    admitted: Floats
    first_token: Floats
    end: Floats
    preemptions: int
    prefill_account: Floats
    """Iterations that process prompts."""
    decode_account: Floats
    """Iterations that only decode."""
    log: Log
    timeline: Timeline
    found: Integers
    """Tokens of each prompt that were found in the prefix cache when it was first admitted."""
    moved: Mapping[str, float]
    """Bytes that moved, by way: ``swapped out``, ``swapped in``, and ``from`` each tier [B]."""
    stall: float = 0.0
    """Iterations waited for copies [s]."""
    mapping: float = 0.0
    """Iterations waited for pages to be mapped [s]."""

    @property
    def account(self) -> Floats:
        """All iterations, by part."""
        return self.prefill_account + self.decode_account

    @property
    def makespan(self) -> float:
        """End of the last request [s]."""
        return float(self.end.max())
