"""What a run says: when passes ended, what each of their seconds is bound by, what crossed each link."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.engine import Timeline
from simulator.offload.columns import COLUMNS
from simulator.offload.tiers import Channel
from simulator.offload.zigzag.lower import Lowered
from simulator.offload.zigzag.plan import PREFILL

Array = npt.NDArray[np.float64]
SAMPLES = 6
"""Decode steps of a sample that are evenly spaced, the first and the last ones apart."""
EXTRA_SAMPLES = 6
"""More of them, where computation is not linear in the context."""
NEGLIGIBLE = 1e-3
"""Share of computation that interpolation may miss before more samples are taken."""


def sample_steps(computation: Array, affordable: int | None) -> tuple[tuple[int, ...], Array]:
    """Return the passes to simulate, and how many passes each stands for.

    Parameters
    ----------
    computation : array, shape (decode steps,)
        Seconds of computation in each decode step: where it bends or jumps (tiles, splits, windows), samples are due.
    affordable : int, optional
        Passes up to which all are simulated; all in any case if absent, or if a sample would save little.

    Returns
    -------
    steps : tuple of int
        :data:`~simulator.offload.zigzag.plan.PREFILL`, then numbers of decode steps, increasing.
    weights : array, shape (passes,)
        They sum to the number of all passes. A step's time is taken as linear in its number between two samples. The
        step before each sample is simulated too, with weight 0, since passes overlap; the first and the last stand for
        themselves.
    """
    count = len(computation)
    everything = (PREFILL, *range(count))
    if affordable is None or count + 1 <= max(affordable, 2 * (SAMPLES + EXTRA_SAMPLES) + 4):
        return everything, np.ones(count + 1)
    inner = np.arange(1, count - 1)
    samples = _samples(inner, computation[1:-1])
    steps = sorted({PREFILL, 0, *(samples - 1).tolist(), *samples.tolist(), count - 1})
    weights = dict.fromkeys(steps, 0.0) | {PREFILL: 1.0, 0: 1.0, count - 1: 1.0}
    for index, step in enumerate(samples.tolist()):
        weights[step] += float(np.interp(inner, samples, np.eye(len(samples))[index]).sum())
    return tuple(steps), np.array([weights[step] for step in steps])


def _samples(steps: npt.NDArray[np.int64], computation: Array) -> npt.NDArray[np.int64]:
    """Choose evenly spaced steps, then again and again the one whose computation is interpolated worst."""
    chosen = np.unique(np.linspace(0, len(steps) - 1, SAMPLES).round().astype(np.int64))
    for _ in range(EXTRA_SAMPLES):
        missed = np.abs(computation - np.interp(steps, steps[chosen], computation[chosen]))
        if missed.sum() <= NEGLIGIBLE * computation.sum():
            break
        chosen = np.unique(np.append(chosen, missed.argmax()))
    return steps[chosen]


@dataclass(frozen=True)
class Account:
    """A run by pass, and by what the passes stand for.

    Attributes
    ----------
    lowered, timeline : Lowered, Timeline
        What ran.
    weights : array, shape (passes,)
        How many passes each simulated one stands for.
    count : int
        Decode steps in all.
    """

    lowered: Lowered
    timeline: Timeline
    weights: Array
    count: int

    @cached_property
    def ends(self) -> Array:
        """End of each simulated pass [s]."""
        ends: Array = self.timeline.end[np.array(self.lowered.ends)]
        return ends

    @cached_property
    def times(self) -> Array:
        """Seconds of each simulated pass."""
        return np.diff(self.ends, prepend=0.0)

    @cached_property
    def step_times(self) -> Array:
        """Seconds of every decode step, those left out interpolated; shape (count,)."""
        known = np.array(self.lowered.steps) >= 0
        known &= self.weights > 0
        if not known.any():
            return np.zeros(0)
        return np.interp(np.arange(self.count), np.array(self.lowered.steps)[known], self.times[known])

    @cached_property
    def rows(self) -> Array:
        """Seconds of each simulated pass along the critical path by columns; shape (passes, columns)."""
        path = self.timeline.critical_path().tasks
        start, end = self.timeline.start[path], self.timeline.end[path]
        shares = np.array([self.lowered.shares[task] for task in path.tolist()])
        rows = np.zeros((len(self.ends), len(COLUMNS)))
        for index, high in enumerate(self.ends.tolist()):
            low = float(self.ends[index - 1]) if index else 0.0
            first, last = np.searchsorted(end, low, "right"), np.searchsorted(start, high, "left")
            seconds = np.minimum(end[first:last], high) - np.maximum(start[first:last], low)
            rows[index] = seconds @ shares[first:last]
        return rows

    def real(self, time: float) -> float:
        """Return when a moment of the simulation would be if no step were left out [s]."""
        index = min(int(np.searchsorted(self.ends, time)), len(self.ends) - 1)
        step = self.lowered.steps[index]
        end = float(self.ends[0]) + float(self.step_times[: step + 1].sum())
        return end - (float(self.ends[index]) - time)

    def computing(self) -> float:
        """Return the seconds in which the accelerator computes, in all passes."""
        duration = self.timeline.duration * (self.timeline.stream == self.lowered.gpu)
        return float(duration @ self.weights[np.array(self.lowered.pass_of)])

    def links(self, channels: Iterable[Channel]) -> dict[tuple[str, float], float]:
        """Return the bytes over each link of some channels in all passes, by its name and bandwidth [B/s]."""
        totals: dict[tuple[str, float], float] = {}
        for channel in channels:
            by_pass = self.lowered.carried.get(channel.name, {})
            size = sum(float(self.weights[number]) * carried for number, carried in sorted(by_pass.items()))
            for link in channel.links:
                totals[link] = totals.get(link, 0.0) + size
        return totals
