"""Prices of iterations, as the scheduler asks for them: it knows neither models nor hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from simulator.serving.workload import Floats, Integers


@dataclass(frozen=True, slots=True)
class Steps:
    """Prices of consecutive iterations of one batch.

    Attributes
    ----------
    seconds : array, shape (steps,)
        Of each iteration [s].
    fixed : array, shape (parts,)
        What every iteration adds to the account, by part.
    varying : tuple of (int, array of shape (steps,))
        What further parts get in each iteration.
    """

    seconds: Floats
    fixed: Floats
    varying: tuple[tuple[int, Floats], ...] = ()

    def total(self, count: int) -> Floats:
        """Account of the first ``count`` iterations, by part."""
        account = self.fixed * count
        for part, values in self.varying:
            account[part] += values[:count].sum()
        return account


class Pricer(Protocol):
    """Knows how long an iteration takes."""

    def decode(self, contexts: Integers, steps: int) -> Steps:
        """Price ``steps`` iterations that add a token to each sequence; contexts as cached before the first."""
        ...

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, sampled: int) -> Steps:
        """Price one iteration: prompt pieces of ``new`` tokens after ``cached`` ones, and decodes after contexts."""
        ...
