"""The requests of a workload: arrivals and lengths as arrays, drawn from the workload's seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.specs.errors import MemroofError
from simulator.specs.serving_scenario import Lengths, ServingWorkload

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival, one entry each.

    Attributes
    ----------
    arrival : array, shape (n,)
        Not decreasing [s].
    prompt, output : array of int, shape (n,)
        Tokens that come in and that are generated.
    concurrency : int
        Clients of a closed loop: so many are there at time 0, and each answer brings the next one; 0 where arrivals
        are given. What has not arrived yet arrives at infinity.
    """

    arrival: Floats
    prompt: Integers
    output: Integers
    concurrency: int = 0

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def longest(self) -> int:
        """Most tokens that one request keeps in the cache: the last one generated is never read [tokens]."""
        return int((self.prompt + self.output).max()) - 1

    @property
    def offline(self) -> bool:
        """Whether all are there from the start."""
        return bool(self.arrival[-1] == self.arrival[0])

    @property
    def closed(self) -> bool:
        """Whether answers bring the next requests."""
        return self.concurrency > 0

    def share(self, replicas: int) -> Requests:
        """Return what the first of equal replicas gets from a router that goes round: every ``replicas``-th request."""
        prompt, output = self.prompt[::replicas], self.output[::replicas]
        if self.closed:
            return closed_loop(prompt, output, -(-self.concurrency // replicas))
        return Requests(self.arrival[::replicas], prompt, output)


def closed_loop(prompt: Integers, output: Integers, concurrency: int) -> Requests:
    """Return the requests of a closed loop of ``concurrency`` clients (at most one a request)."""
    clients = min(concurrency, len(prompt))
    arrival = np.full(len(prompt), np.inf)
    arrival[:clients] = 0.0
    return Requests(arrival, prompt, output, clients)


def draw_requests(workload: ServingWorkload) -> Requests:
    """Draw the requests of a workload.

    Arrivals, prompts and outputs have random generators of their own, so that a change of one leaves the others.

    Parameters
    ----------
    workload : ServingWorkload
        Poisson arrivals (exponential gaps of mean 1 / rate), all at time 0 (offline), a closed loop, or a given list.

    Returns
    -------
    Requests
        In order of arrival; equal arrivals in the order given.

    Raises
    ------
    MemroofError
        If lengths are missing.
    """
    if workload.arrival == "list":
        rows = workload.list or ()
        arrival = np.array([row.arrival for row in rows], float)
        order = np.argsort(arrival, kind="stable")
        lengths = np.array([(row.prompt, row.output) for row in rows], np.int64)[order]
        return Requests(arrival[order], lengths[:, 0], lengths[:, 1])
    if workload.prompt is None or workload.output is None:
        raise MemroofError("the workload needs the lengths 'prompt' and 'output'")
    gaps, prompts, outputs = (np.random.default_rng([workload.seed, stream]) for stream in range(3))
    count = workload.requests
    arrival = np.zeros(count)
    if workload.arrival == "poisson" and workload.rate is not None:
        arrival = np.cumsum(gaps.exponential(1.0 / workload.rate, count))
    prompt, output = (
        draw_lengths(workload.prompt, count, prompts),
        draw_lengths(workload.output, count, outputs),
    )
    if workload.concurrency is not None:
        return closed_loop(prompt, output, workload.concurrency)
    return Requests(arrival, prompt, output)


def draw_lengths(lengths: Lengths, count: int, generator: np.random.Generator) -> Integers:
    """Draw ``count`` lengths [tokens]: fixed, uniform over whole numbers with both ends, or log-normal.

    A log-normal of mean m and logarithmic deviation s has a logarithmic mean of ln m - s^2 / 2 (Johnson, Kotz and
    Balakrishnan 1994, chapter 14). ``maximum`` cuts what exceeds it.
    """
    drawn: Any = lengths.fixed
    if lengths.uniform is not None:
        drawn = generator.integers(lengths.uniform[0], lengths.uniform[1], count, endpoint=True)
    elif lengths.mean is not None:
        center = np.log(lengths.mean) - lengths.sigma**2 / 2.0
        # a mean of 256 without spread comes back as 256.00000000000006, which is not 257 tokens
        drawn = np.ceil(generator.lognormal(center, lengths.sigma, count) * (1.0 - 1e-12))
    longest = np.inf if lengths.maximum is None else lengths.maximum
    tokens: Integers = np.minimum(np.broadcast_to(drawn, count), longest).astype(np.int64)
    return tokens
