"""How often each neuron is needed, and what a cache of them misses: laws of frequencies, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from simulator.specs import MemroofError
from simulator.specs.neuron_cache_scenario import Neurons

Array = npt.NDArray[np.float64]
NODES = 4000
"""Points at which the frequencies are sampled, equally spaced in the logarithm of the rank."""
FINEST = 1e-7
"""Least rank that is sampled, as a share of the neurons."""
STEEPEST = 10.0
"""Largest exponent that a measured point may ask for."""


@dataclass(frozen=True)
class Activity:
    """Neurons of a layer by how often a token needs them.

    Attributes
    ----------
    rank, weight : array, shape (nodes,)
        Share of the neurons that are more frequent than a node, and share of them that it stands for; the sum is 1.
    frequency : array, shape (nodes,)
        Probability that a token needs a neuron of the node; falls with the rank.
    """

    rank: Array
    weight: Array
    frequency: Array

    @property
    def active(self) -> float:
        """Share of the neurons that a token needs, on average."""
        return float(self.weight @ self.frequency)

    def new(self, window: float, hot: float = 0.0) -> float:
        """Return the share of the neurons that a token needs and none of the last ``window`` tokens did.

        Tokens are taken as independent draws given the frequencies p: the mean of p (1 - p)^window. The ``hot`` share of
        most frequent neurons is left out.
        """
        cold = self.weight * (1.0 - self._inside(hot))
        return float(cold @ (self.frequency * self._absent(window)))

    def kept(self, window: float, hot: float = 0.0) -> float:
        """Return the share of the neurons that at least one of the last ``window`` tokens needed, hot ones left out."""
        cold = self.weight * (1.0 - self._inside(hot))
        return float(cold @ (1.0 - self._absent(window)))

    def covered(self, share: float) -> float:
        """Return the share of all neurons that a token needs among the ``share`` of most frequent ones."""
        return float((self.weight * self._inside(share)) @ self.frequency)

    def window_of(self, share: float, hot: float = 0.0) -> float:
        """Return the age at which a cache of a ``share`` of the neurons drops the least recently needed.

        The characteristic time of an LRU cache (Che, Tung and Wang 2002, *Hierarchical Web caching systems*, equation 6):
        as many different neurons are needed within it as there is room for. Infinite where there is room for all.
        """
        if share >= (1.0 - hot) * (1.0 - 1e-9):
            return float("inf")
        low, high = 0.0, 1.0
        while self.kept(high, hot) < share and high < 1e12:
            low, high = high, 2.0 * high
        for _ in range(100):
            middle = (low + high) / 2.0
            low, high = (middle, high) if self.kept(middle, hot) < share else (low, middle)
        return high

    def thinned(self, share: float) -> Activity:
        """Return the same neurons where only a ``share`` of tokens asks for them at all (experts chosen by a router)."""
        return Activity(self.rank, self.weight, self.frequency * share)

    def _absent(self, window: float) -> Array:
        """Probability that none of the last ``window`` tokens needed a neuron; a part of a token needs its part."""
        if window < 1.0:
            return 1.0 - window * self.frequency
        absent: Array = (1.0 - self.frequency) ** window
        return absent

    def _inside(self, share: float) -> Array:
        """Which part of each node's neurons is among the ``share`` of most frequent ones."""
        inside: Array = np.clip((share - self.rank) / self.weight, 0.0, 1.0)
        return inside


def activity_of(neurons: Neurons) -> Activity:
    """Return the frequencies that a scenario's statistics mean.

    Raises
    ------
    MemroofError
        If no power law with this active share goes through the measured point.
    """
    active = neurons.active
    if neurons.exponent is not None:
        return power_law(active, neurons.exponent)
    if neurons.reuse:
        window, new = neurons.reuse.window, neurons.reuse.new
        exponent = _exponent(lambda s: -power_law(active, s).new(window), -new)
        what = f"neurons.reuse: {new:g} of the neurons new beyond {window} tokens"
    else:
        assert neurons.hottest  # the schema asks for one of the three
        share, wanted = neurons.hottest.share, neurons.hottest.activations
        exponent = _exponent(lambda s: power_law(active, s).covered(share) / active, wanted)
        what = f"neurons.hottest: {wanted:g} of the activations on {share:g} of the neurons"
    if exponent is None:
        raise MemroofError(f"{what} cannot be where {active:g} of them are active")
    return power_law(active, exponent)


@lru_cache(maxsize=256)
def power_law(active: float, exponent: float) -> Activity:
    """Return frequencies min(1, c / rank^exponent) whose mean is ``active``.

    A Zipf law cut off where a neuron is always needed; few neurons account for most activations (Song et al. 2023,
    arXiv:2312.12456, *PowerInfer*, figure 5).
    """
    edges = np.concatenate([[0.0], np.geomspace(FINEST, 1.0, NODES)])
    weight = np.diff(edges)
    middle = edges[:-1] + weight / 2.0
    low, high = -120.0, 0.0  # of ln c
    for _ in range(100):
        log = (low + high) / 2.0
        mean = weight @ _frequency(middle, log, exponent)
        low, high = (log, high) if mean < active else (low, log)
    return Activity(edges[:-1], weight, _frequency(middle, high, exponent))


def _frequency(rank: Array, log: float, exponent: float) -> Array:
    frequency: Array = np.exp(np.minimum(0.0, log - exponent * np.log(rank)))
    return frequency


def _exponent(value: object, wanted: float) -> float | None:
    """Return where a rising function of the exponent takes a value; None if it does not."""
    assert callable(value)
    low, high = 0.0, STEEPEST
    if not value(low) <= wanted <= value(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if value(middle) < wanted else (low, middle)
    return (low + high) / 2.0
