"""Closed forms of computing experts where they lie: what moves, and how many of them the accelerator should take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.graph import Numeric


def parameter_movement(experts: Numeric, hidden: Numeric, width: Numeric, matrices: int = 2) -> Numeric:
    """Return the elements that fetching experts moves: matrices·E·d_model·d_ff (Kim et al. 2024, *MoNDE*, section 3.1)."""
    return matrices * experts * hidden * width


def activation_movement(tokens: Numeric, hidden: Numeric) -> Numeric:
    """Return the elements that computing experts where they lie moves: 2·B·S·d_model, there and back (MoNDE, section 3.1)."""
    return 2 * tokens * hidden


def balanced_experts(experts: Numeric, link: Numeric, memory: Numeric) -> Numeric:
    """Return how many experts to fetch so that both paths take as long, where bandwidth alone counts.

    Parameters
    ----------
    experts : number or array
        Experts that tokens reach.
    link, memory : number or array
        Bandwidth to the accelerator, and of the memory that the others are computed in [B/s].

    Returns
    -------
    number or array
        H·w/link = (E - H)·w/memory, so H = E·link/(link + memory) (MoNDE's balance of its two paths, solved).
    """
    return experts * link / (link + memory)


def split_by_load(fetched: Sequence[float], stayed: Sequence[float]) -> int:
    """Return how many of some experts, the busiest first, are fetched so that the later of two paths is earliest.

    Parameters
    ----------
    fetched, stayed : sequence of float
        Seconds of each expert if it is fetched and computed by the accelerator, and if it is computed where it lies.
    """
    a: Any = np.concatenate([[0.0], np.cumsum(fetched)])
    b: Any = np.sum(stayed) - np.concatenate([[0.0], np.cumsum(stayed)])
    return int(np.argmin(np.maximum(a, b)))
