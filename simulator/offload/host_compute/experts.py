"""Which routed experts lie on the accelerators, and what that leaves to the CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

ExpertPlacement = Literal["uniform", "frequency", "front-loading"]


@dataclass(frozen=True, slots=True)
class Load:
    """What the CPUs compute of one layer's routed experts.

    Attributes
    ----------
    copies : float
        Tokens times those of their experts that lie in DRAM.
    active : float
        Experts in DRAM that at least one token goes to.
    """

    copies: float
    active: float

    @property
    def rows(self) -> float:
        """Tokens of an active expert."""
        return self.copies / self.active if self.active else 0.0


def top_share(share: float, skew: float, experts: int) -> float:
    """Return the share of uses that fall on the most used ``share`` of experts.

    Popularity falls as the rank to the power -``skew`` (Zipf); the sums over ranks are exact at whole experts and linear
    between them.

    Examples
    --------
    >>> top_share(0.25, 0.0, 8)
    0.25
    >>> round(top_share(0.5, 1.0, 4), 3)  # (1 + 1/2) / (1 + 1/2 + 1/3 + 1/4)
    0.72
    """
    uses = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    reached = np.concatenate(([0.0], np.cumsum(uses))) / uses.sum()
    return float(np.interp(share * experts, np.arange(experts + 1), reached))


def held(placement: ExpertPlacement, share: float, layer: int, layers: int) -> float:
    """Return the share of a layer's experts that lie on the accelerators.

    Front-loading gives the first layers all of theirs; the others give every layer the same share.
    """
    if placement != "front-loading":
        return share
    return min(1.0, max(0.0, share * layers - layer))


def hits(placement: ExpertPlacement, here: float, skew: float, experts: int) -> float:
    """Return the share of uses that find their expert on the accelerators, where those hold ``here`` of a layer's."""
    return top_share(here, skew, experts) if placement == "frequency" else here


def host_load(tokens: float, per_token: float, experts: int, here: float, hit: float) -> Load:
    """Return what is left to the CPUs.

    Parameters
    ----------
    tokens, per_token, experts : float, float, int
        Tokens of a pass, routed experts of each, experts of the layer.
    here, hit : float
        Shares of experts, and of uses, on the accelerators.

    Notes
    -----
    A token uses one of the E·(1 - here) experts in DRAM with p = k·(1 - hit) / (E·(1 - here)); of T tokens at least one does
    with 1 - (1 - p)^T, uses in DRAM being equally likely.
    """
    kept = experts * (1.0 - here)
    copies = tokens * per_token * (1.0 - hit)
    if kept <= 1e-9 or copies <= 0.0:
        return Load(0.0, 0.0)
    used = min(1.0, per_token * (1.0 - hit) / kept)
    return Load(copies, kept * (1.0 - (1.0 - used) ** tokens))
