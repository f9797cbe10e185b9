"""Long runs: failures and checkpoints, slow ranks, data loading; goodput, days and dollars.

References
----------
Young 1974, *A first order approximation to the optimum checkpoint interval*; Daly 2006, *A higher order estimate of the
optimum checkpoint interval for restart dumps* (FGCS 22, 303-312); Kokolis et al. 2024, *Revisiting Reliability in
Large-Scale Machine Learning Research Clusters* (arXiv:2410.21680).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost.numeric import larger
from simulator.graph import Numeric
from simulator.specs import MemroofError
from simulator.specs.operations import Checkpoints, Loading, Operations
from simulator.strategy import Metric


@dataclass(frozen=True, slots=True)
class Recovery:
    """What failures and checkpoints cost a job, all in seconds."""

    mtbf: float
    """Mean time between failures of the whole job; infinite without failures."""
    blocked: float
    """That training waits for a checkpoint."""
    write: float
    """From the start of a checkpoint until it can be restarted from."""
    restart: float
    """From a failure until training goes on, given nodes: detection, start, reading the checkpoint."""
    planned: float
    """Of a planned stop: checkpoint, start, reading it."""
    interval: float
    """Training time between checkpoints."""
    staffed: float
    """Share of time in which there are nodes enough, spares among them."""


def reliability(
    step_time: float,
    ranks: int,
    checkpoint_bytes: float,
    operations: Operations,
    *,
    ranks_per_node: int = 8,
    samples: int = 1,
    tokens_per_step: float = 0.0,
    tokens: float | None = None,
    dollars_per_second: float = 0.0,
    error: float = 0.0,
) -> dict[str, Metric]:
    """Return what becomes of a step in a long run.

    Parameters
    ----------
    step_time : float
        Of an undisturbed step [s].
    ranks, ranks_per_node : int
        GPUs in use, and those of a node.
    checkpoint_bytes : float
        Weights and optimizer states of all ranks, one copy [B].
    operations : Operations
        What the run meets.
    samples, tokens_per_step : number
        Sequences and tokens of a step.
    tokens : float, optional
        Of the whole run.
    dollars_per_second : float
        For the GPUs in use; spare nodes cost as much as others.
    error : float
        Relative standard error of ``step_time``.

    Returns
    -------
    dict of Metric
        ``sustained_step_time`` with slow ranks and loading; ``effective_training_time`` (goodput, ETTR: share of time that
        moves the run on); with failures their mean time and ``checkpoint_interval``; with ``tokens`` the failures, time
        and dollars of the run.

    Raises
    ------
    MemroofError
        Where failures or planned stops come faster than the job recovers, or a given interval is shorter than a write.
    """
    slowed = step_time * (1.0 + operations.straggler_spread * float(expected_maximum(ranks)))
    load = loading_time(operations.loading, samples)
    step = loaded_step(slowed, load, hidden=operations.loading is None or operations.loading.hidden)
    recovery = plan_recovery(operations, ranks, ranks_per_node, checkpoint_bytes, step)
    goodput = _goodput(operations, recovery)
    metrics = {
        "sustained_step_time": Metric(
            "step time with slow ranks and loading", step, "seconds", error, "lower"
        ),
        "effective_training_time": Metric(
            "effective training time (goodput)", goodput, "fraction", 0.0, "higher"
        ),
    }
    if operations.checkpoints is not None and math.isfinite(recovery.interval):
        metrics["checkpoint_interval"] = Metric("training between checkpoints", recovery.interval, "seconds")
        metrics["checkpoint_time"] = Metric("wait for a checkpoint", recovery.blocked, "seconds")
    if math.isfinite(recovery.mtbf):
        metrics["mean_time_between_failures"] = Metric(
            "mean time between failures", recovery.mtbf, "seconds", 0.0, "higher"
        )
    if tokens and tokens_per_step:
        metrics |= _run(tokens / tokens_per_step * step / goodput, recovery, error)
        if dollars_per_second:
            spare = (operations.spare_nodes or 0) * ranks_per_node / ranks
            dollars = metrics["run_time"].value * dollars_per_second * (1.0 + spare)
            metrics["dollars_per_run"] = Metric(
                "cost of the whole run, spares included", dollars, "dollars", error, "lower"
            )
    return metrics


def _run(seconds: float, recovery: Recovery, error: float) -> dict[str, Metric]:
    found = {
        "run_time": Metric(
            "time of the whole run, interruptions included", seconds, "seconds", error, "lower"
        )
    }
    if math.isfinite(recovery.mtbf):
        failures = seconds * recovery.staffed / recovery.mtbf
        found["failures"] = Metric("failures in the whole run", failures, "count", error, "lower")
    return found


def _goodput(operations: Operations, recovery: Recovery) -> float:
    """Share of time that moves the run on, beside failures, planned stops and evaluation."""
    share = float(
        effective_time(recovery.interval, recovery.blocked, recovery.mtbf, recovery.restart, recovery.write)
    )
    stopped = (operations.planned_stops or 0.0) * recovery.planned
    if stopped >= 1.0:
        raise MemroofError(
            f"operations.planned_stops: one takes {recovery.planned:.0f} s and comes every "
            f"{1.0 / (operations.planned_stops or 1.0):.0f} s"
        )
    if share <= 0.0:
        raise MemroofError(
            f"operations: a failure every {recovery.mtbf:.0f} s and {recovery.restart:.0f} s until training goes on leave no "
            f"time to train; shorten restart_time or checkpoints, or use fewer GPUs"
        )
    return share * recovery.staffed * (1.0 - stopped) * (1.0 - operations.evaluation_share)


def plan_recovery(
    operations: Operations, ranks: int, ranks_per_node: int, checkpoint_bytes: float, step: float
) -> Recovery:
    """Return the times of failures and checkpoints of a job, with the interval that is given or else optimal.

    Checkpoints stand between steps: no interval is shorter than one ``step``, nor than a write beside training.
    """
    mtbf = job_mtbf(ranks, -(-ranks // ranks_per_node), operations.mtbf_per_gpu, operations.mtbf_per_node)
    checkpoints = operations.checkpoints
    if checkpoints is None:
        return Recovery(mtbf, 0.0, 0.0, 0.0, 0.0, math.inf, 1.0)
    write, read = _checkpoint_times(checkpoints, checkpoint_bytes)
    blocked = checkpoints.snapshot_time if checkpoints.asynchronous else write
    start = operations.restart_time + read
    staffed = 1.0
    if operations.spare_nodes is not None and operations.repair_time is not None:
        staffed = float(staffed_share(operations.spare_nodes, operations.repair_time, mtbf))
    shortest = max(step, write) if checkpoints.asynchronous else step
    interval = checkpoints.interval
    if interval is None:
        interval = max(float(daly_interval(blocked, mtbf)), shortest) if math.isfinite(mtbf) else math.inf
    elif interval < shortest:
        raise MemroofError(
            f"operations.checkpoints.interval: {interval:g} s is shorter than a "
            f"{'step' if interval < step else 'write'} of {shortest:g} s; raise it"
        )
    restart = operations.detection_time + start
    return Recovery(mtbf, blocked, write, restart, write + start, interval, staffed)


def _checkpoint_times(checkpoints: Checkpoints, size: float) -> tuple[float, float]:
    """Seconds to write a checkpoint and to read it back; reading is part of the restart where a time alone is known."""
    if checkpoints.write_time is not None:
        return checkpoints.write_time, 0.0
    seconds = (checkpoints.size or size) / (checkpoints.storage_bandwidth or math.inf)
    return seconds, seconds


def job_mtbf(
    ranks: Numeric, nodes: Numeric, per_gpu: float | None = None, per_node: float | None = None
) -> Any:
    """Return the mean time between failures of a job whose parts fail independently [s]; infinite if nothing fails.

    Rates of exponential failures add: M = 1 / (ranks / M_gpu + nodes / M_node) (Kokolis et al. 2024).
    """
    rate: Numeric = (ranks / per_gpu if per_gpu else 0.0 * ranks) + (nodes / per_node if per_node else 0.0)
    if isinstance(rate, (int, float)):
        return 1.0 / rate if rate else math.inf
    with np.errstate(divide="ignore"):
        return 1.0 / rate


def young_interval(write: Numeric, mtbf: Numeric) -> Any:
    """Return the first-order optimum of training time between checkpoints, sqrt(2 δ M) (Young 1974) [s]."""
    return np.sqrt(2.0 * write * mtbf)


def daly_interval(write: Numeric, mtbf: Numeric) -> Any:
    """Return the higher-order optimum of training time between checkpoints [s].

    sqrt(2δM) [1 + sqrt(δ/2M)/3 + (δ/2M)/9] - δ for δ < 2M, else M (Daly 2006, eq. 37).
    """
    ratio: Numeric = write / (2.0 * mtbf)
    series = np.sqrt(2.0 * write * mtbf) * (1.0 + np.sqrt(ratio) / 3.0 + ratio / 9.0) - write
    return np.where(ratio < 1.0, series, mtbf)[()]


def effective_time(
    interval: Numeric, blocked: Numeric, mtbf: Numeric, restart: Numeric, write: Numeric | None = None
) -> Any:
    """Return the share of time that moves a run on (goodput, effective training time ratio).

    Daly's complete model (2006, eq. 20): a run of T_s takes M e^(R/M) (e^((τ+δ)/M) - 1) T_s / τ, for failures that may
    strike while a checkpoint is written and while the job restarts.

    Parameters
    ----------
    interval : number or array
        Training time τ between checkpoints [s]; infinite where none are written.
    blocked : number or array
        That training waits for each, δ [s].
    mtbf, restart : number or array
        M, and R from a failure until training goes on [s].
    write : number or array, optional
        Of a checkpoint that is written beside training: until it is complete, a failure goes back to the one before, on
        average ``write - blocked`` of work more [s].

    Returns
    -------
    number or array
        0 to 1; without failures τ / (τ + δ).
    """
    tau, delta, mean = (np.asarray(x, dtype=float) for x in (interval, blocked, mtbf))
    late = 0.0 if write is None else np.maximum(np.asarray(write, dtype=float) - delta, 0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        segment = np.expm1((tau + delta) / mean)
        share = tau / (mean * np.exp((np.asarray(restart, dtype=float) + late) / mean) * segment)
        calm = np.where(np.isinf(tau), 1.0, tau / (tau + delta))
    return np.where(np.isinf(mean), calm, np.where(np.isinf(tau), 0.0, share))[()]


def staffed_share(spares: int, repair_time: Numeric, mtbf: Numeric) -> Any:
    """Return the share of time in which a job has nodes enough.

    It fails every ``mtbf`` while it runs and stops while more than ``spares`` nodes are away, each for ``repair_time``: the
    loss system of Erlang (1917) with ``spares + 1`` servers, 1 - B(spares + 1, repair_time / mtbf), whatever the
    distribution of repairs.
    """
    load = np.maximum(np.asarray(repair_time, dtype=float) / mtbf, 1e-300)
    inverse: Any = np.ones_like(load)
    with np.errstate(over="ignore"):
        for servers in range(1, spares + 2):
            inverse = 1.0 + inverse * servers / load
    return (1.0 - 1.0 / inverse)[()]


def expected_maximum(ranks: Numeric) -> Any:
    """Return the mean of the largest of N independent standard normal values.

    The integral of 1 - Φ(x)^N over the positive and -Φ(x)^N over the negative axis (David & Nagaraja 2003, *Order
    Statistics*, section 3.1); about sqrt(2 ln N) for many.
    """
    from scipy.special import log_ndtr

    x, step = np.linspace(-12.0, 12.0, 4801, retstep=True)
    below = np.exp(np.expand_dims(np.asarray(ranks, dtype=float), -1) * log_ndtr(x))
    integral = np.sum(np.heaviside(x, 0.5) - below, axis=-1) * step
    return np.maximum(integral, 0.0)[()]


def loading_time(loading: Loading | None, samples: Numeric) -> Any:
    """Return the seconds to load a step's batch of ``samples`` sequences."""
    if loading is None:
        return 0.0
    if loading.time is not None:
        return loading.time
    return samples * (loading.sample_size or 0.0) / (loading.bandwidth or math.inf)


def loaded_step(step: Numeric, load: Numeric, *, hidden: bool) -> Any:
    """Return a step with its data loading: the longer of the two where they run side by side, else both [s]."""
    return larger(step, load) if hidden else step + load
