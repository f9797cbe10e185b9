"""Predictors of what a later layer will need: how often they are right, when, and what of it is fetched in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from simulator.engine.errors import ProgramError


@dataclass(frozen=True, slots=True)
class Predictor:
    """Names ahead of time the items (experts, neurons) that a layer will use.

    Attributes
    ----------
    accuracy : float
        Share of the items used that it names (its recall), at its lead.
    latency : float
        Seconds from its input to its answer [s].
    lead : int
        Layers between the one that gives its input and the one that it predicts for.
    fetch_share : float
        Share of the items named that are fetched before they are due; 1 where queues decide what is in time.
    """

    accuracy: float
    latency: float = 0.0
    lead: int = 1
    fetch_share: float = 1.0

    def __post_init__(self) -> None:
        for name, share in (("accuracy", self.accuracy), ("fetch_share", self.fetch_share)):
            if not 0.0 <= share <= 1.0:
                raise ProgramError(f"predictor: {name} must lie between 0 and 1, is {share}")
        if not 0.0 <= self.latency < inf:
            raise ProgramError(f"predictor: latency must be finite and not negative, is {self.latency} s")
        if self.lead < 0:
            raise ProgramError(f"predictor: lead must not be negative, is {self.lead} layers")


class Prediction(NamedTuple):
    """What came of one prediction: `right`, `late` and `missed` are the items used, `wrong` ones are not."""

    right: tuple[int, ...]
    """Named, and fetched in time."""
    late: tuple[int, ...]
    """Named, but not fetched in time."""
    missed: tuple[int, ...]
    """Not named."""
    wrong: tuple[int, ...]
    """Named and fetched, but not used."""


def predict(
    predictor: Predictor,
    used: Sequence[int],
    n_items: int,
    generator: np.random.Generator,
    *,
    named: int | None = None,
    weights: Sequence[float] | None = None,
) -> Prediction:
    """Draw what a predictor says of a layer, and what of it is fetched.

    Parameters
    ----------
    predictor : Predictor
        Its accuracy and fetch share.
    used : sequence of int
        Distinct items that the layer will use.
    n_items : int
        All items are numbered from 0 up to it.
    generator : numpy.random.Generator
        Source of the random numbers, seeded by whoever owns it.
    named : int, optional
        Items that it names; as many as are used if absent. The accuracy is that with so many.
    weights : sequence of float, optional
        By item, how likely a wrong one is; all alike if absent.

    Returns
    -------
    Prediction
        Each used item is named with the probability `accuracy`, independently (but never more than `named`),
        wrong ones fill up to `named`, and of all named each is fetched with the probability `fetch_share`.

    Raises
    ------
    ProgramError
        If an item is out of range or used twice.
    """
    if len(set(used)) < len(used) or not all(0 <= item < n_items for item in used):
        raise ProgramError(
            f"the items used must be distinct and between 0 and {n_items - 1}, are {tuple(used)}"
        )
    count = len(used) if named is None else named
    hit = generator.random(len(used)) < predictor.accuracy
    found = [item for item, good in zip(used, hit.tolist(), strict=True) if good][:count]
    wrong = _others(used, n_items, count - len(found), generator, weights)
    fetched = generator.random(len(found) + len(wrong)) < predictor.fetch_share
    in_time = dict(zip((*found, *wrong), fetched.tolist(), strict=True))
    return Prediction(
        right=tuple(item for item in found if in_time[item]),
        late=tuple(item for item in found if not in_time[item]),
        missed=tuple(item for item in used if item not in in_time),
        wrong=tuple(item for item in wrong if in_time[item]),
    )


def useful_fraction(predictor: Predictor) -> float:
    """Return the expected share of what is used that was fetched ahead: accuracy x fetch share.

    The GOODPRED of Song et al. 2024, *ProMoE*.
    """
    return predictor.accuracy * predictor.fetch_share


def wasted_fraction(predictor: Predictor, named: float = 1.0) -> float:
    """Return the expected wrong fetches over the items used, where `named` items are named for each one used."""
    return max(named - predictor.accuracy, 0.0) * predictor.fetch_share


def fetch_share(predictor: Predictor, layer_time: float, fetch_time: float) -> float:
    """Return the share of what is named that arrives in time, in the steady state of a stack of equal layers.

    Parameters
    ----------
    predictor : Predictor
        Its latency and lead.
    layer_time : float
        Seconds that a layer takes [s].
    fetch_time : float
        Seconds that the link is busy with all that is named for one layer [s].

    Returns
    -------
    float
        At most 1: the link serves one layer's fetches in each layer time, and those of one layer have
        lead x layer time - latency from the answer of the predictor until they are due.
    """
    if not fetch_time > 0.0:
        return 1.0
    due = max(predictor.lead * layer_time - predictor.latency, 0.0)
    return min(1.0, layer_time / fetch_time, due / fetch_time)


def _others(
    used: Sequence[int],
    n_items: int,
    count: int,
    generator: np.random.Generator,
    weights: Sequence[float] | None,
) -> tuple[int, ...]:
    """Draw distinct items that are not used."""
    share = np.ones(n_items) if weights is None else np.array(weights, dtype=np.float64)
    share[list(used)] = 0.0
    count = min(max(count, 0), int(np.count_nonzero(share)))
    if not count:
        return ()
    return tuple(generator.choice(n_items, count, replace=False, p=share / share.sum()).tolist())
