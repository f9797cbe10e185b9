"""What is published of schedules in closed form: idle time and activations in flight.

Stages are equal and transfers free; the tables say what happens where they aren't. Every argument but the name may be an
array; arrays broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from simulator.graph import Numeric
from simulator.specs import MemroofError
from simulator.specs.errors import unknown


def bubble_fraction(
    name: str,
    stages: Numeric,
    micro_batches: Numeric,
    chunks: Numeric = 1,
    *,
    forward: Numeric = 1.0,
    input_gradient: Numeric = 1.0,
    weight_gradient: Numeric = 1.0,
    synchronous: bool = False,
) -> Numeric:
    """Return the idle time of a stage over the time of its passes, m (F + B + W); see `bubble_time`.

    Examples
    --------
    >>> float(bubble_fraction("1f1b", 8, 32))
    0.21875
    """
    work = micro_batches * (forward + input_gradient + weight_gradient)
    idle = bubble_time(
        name, stages, micro_batches, chunks, forward=forward, input_gradient=input_gradient,
        weight_gradient=weight_gradient, synchronous=synchronous,
    )  # fmt: skip
    return idle / work


def bubble_time(
    name: str,
    stages: Numeric,
    micro_batches: Numeric,
    chunks: Numeric = 1,
    *,
    forward: Numeric = 1.0,
    input_gradient: Numeric = 1.0,
    weight_gradient: Numeric = 1.0,
    paired: Numeric | None = None,
    synchronous: bool = False,
) -> Numeric:
    """Return the seconds of a step in which the stage that idles longest idles.

    With p stages, m micro-batches, v chunks a stage, and F, B, W for a forward pass and the two parts of the backward pass:

    - naive: (p - 1) m (F + B + W); GPipe and 1F1B: (p - 1) (F + B + W); interleaved 1F1B: that over v (Narayanan et al. 2021,
      arXiv:2104.04473, section 2.2). Wrap-around has the last one too if m >= p (Lamy-Poirier 2022, arXiv:2211.05953); with
      fewer micro-batches every chunk but one waits for p - m passes more, each way.
    - ZB-H1: (p - 1) (F + B - W) (Qi et al. 2023, arXiv:2401.10241, section 2.3), and 2BP the same, (p - 1) of a step of
      3m + p - 1 for equal parts (figure 1 of Rae et al. 2024, arXiv:2405.18047: m = p is 1F1B-1, m = 2p 1F1B-2). Where W
      exceeds F or B, filling up or the later start of the last stage bounds it: (p - 1) max(F + B - W, B, F). With m < p
      fewer W fill the gaps; that is exact for 2BP and near for ZB-H1.
    - ZB-H2: (p - 1) (F + B - 2W) (the same section), no less than 0 and (p - 1) (B - F); from m = 2p - 1 on.
    - ZB-V: none where F = B = W (section 6); else (p - 1) max(B - W, (B - F)/2) by the longest path through its table,
      exact where B is no less than F and W, from m = 2p - 1 on.
    - DualPipe: (p/2 - 1) (F&B + (B + W) - 3W) (DeepSeek-AI 2024, arXiv:2412.19437, table 2), exact where F = B >= W; the
      middle stages have it, others idle less if pairs take less than their passes one by one.

    Parameters
    ----------
    name : str
        A key of `SCHEDULES`.
    stages, micro_batches, chunks : int or array
        Their numbers; `chunks` counts where the schedule leaves a choice.
    forward, input_gradient, weight_gradient : float or array
        Times of a micro-batch on one stage, all of its chunks together; in DualPipe, of one of its two chunks [s].
    paired : float or array, optional
        Time of a forward and a backward pass that run together, in DualPipe [s]. Their sum if absent.
    synchronous : bool
        Whether a step starts when the last stage has ended the one before, as if the optimizer needs the gradient norm of
        all stages. The published forms of ZB-H2 and ZB-V count from a stage's first pass to its last, since stages start and
        end one after another and the next step can follow likewise.

    Raises
    ------
    MemroofError
        If there is no such schedule.
    """
    if name not in _BUBBLES:
        raise MemroofError(unknown("schedule", name, _BUBBLES))
    whole = forward + input_gradient + weight_gradient
    step = _Step(
        stages, micro_batches, chunks, forward, input_gradient, weight_gradient,
        whole if paired is None else paired, synchronous,
    )  # fmt: skip
    return _BUBBLES[name](step)


def peak_in_flight(
    name: str, stages: Numeric, micro_batches: Numeric, chunks: Numeric = 1, stage: Numeric = 0
) -> Numeric:
    """Return the largest amount of activations that a stage holds, in those of one micro-batch on one stage.

    - naive: 1; GPipe, 2BP and wrap-around: m (Huang et al. 2019, arXiv:1811.06965; Rae et al. 2024, arXiv:2405.18047:
      what gradients of weights still need is kept).
    - 1F1B: p - stage (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1).
    - interleaved 1F1B: p (1 + (p - 1)/(p v)) on the first stage, 2/v less on each that follows (Korthikanti et al. 2022,
      arXiv:2205.05198, section 4.2.3); m where m = p, since Megatron-LM then runs all forwards first.
    - ZB-H1 p, ZB-H2 2p - 1 and ZB-V p (Qi et al. 2023, arXiv:2401.10241, sections 2.3 and 6), on all stages; ZB-V has it
      from m = 2p - 1 on, an upper bound below.
    - DualPipe: p + 1, of chunks that each are a p-th of the model (DeepSeek-AI 2024, arXiv:2412.19437, table 2).

    Parameters
    ----------
    name : str
        A key of `SCHEDULES`.
    stages, micro_batches, chunks : int or array
        Their numbers; `chunks` counts where the schedule leaves a choice.
    stage : int or array
        Which stage, from 0.

    Raises
    ------
    MemroofError
        If there is no such schedule.
    """
    if name not in _IN_FLIGHT:
        raise MemroofError(unknown("schedule", name, _IN_FLIGHT))
    return _IN_FLIGHT[name](stages, micro_batches, chunks, stage)


@dataclass(frozen=True, slots=True)
class _Step:
    p: Numeric
    m: Numeric
    v: Numeric
    forward: Numeric
    input: Numeric
    weight: Numeric
    paired: Numeric
    synchronous: bool

    @property
    def whole(self) -> Numeric:
        return self.forward + self.input + self.weight


def _naive(step: _Step) -> Numeric:
    return (step.p - 1) * step.m * step.whole


def _one_forward_one_backward(step: _Step) -> Numeric:
    return (step.p - 1) * step.whole


def _interleaved(step: _Step) -> Numeric:
    return (step.p - 1) * step.whole / step.v


def _wrap_around(step: _Step) -> Numeric:
    waits = step.p - 1 + (step.v - 1) * np.maximum(step.p - step.m, 0)
    return waits * step.whole / step.v


def _zero_bubble_h1(step: _Step) -> Numeric:
    filled = np.minimum(step.m, step.p)
    draining = (step.p - 1) * (step.forward + step.input) - (filled - 1) * step.weight
    filling = (step.p - 1) * step.input + (step.p - filled) * step.forward
    return np.maximum(np.maximum(draining, filling), (step.p - 1) * step.forward)


def _zero_bubble_h2(step: _Step) -> Numeric:
    filled = np.minimum(step.m, 2 * step.p - 1)
    shorter = np.minimum(step.forward, step.weight)
    idle = np.maximum((step.p - 1) * (step.forward + step.input) - (filled - 1) * shorter, 0.0)
    return np.maximum(idle, (step.p - 1) * step.forward) if step.synchronous else idle


def _zero_bubble_v(step: _Step) -> Numeric:
    late = step.input / 2.0 if step.synchronous else (step.input - step.forward) / 2.0
    return (step.p - 1) * np.maximum(np.maximum(step.input - step.weight, late), 0.0)


def _dualpipe(step: _Step) -> Numeric:
    return (step.p / 2 - 1) * (step.paired + step.input - 2.0 * step.weight)


_BUBBLES: Mapping[str, Callable[[_Step], Numeric]] = MappingProxyType({
    "naive": _naive,
    "gpipe": _one_forward_one_backward,
    "1f1b": _one_forward_one_backward,
    "1f1b-interleaved": _interleaved,
    "2bp": _zero_bubble_h1,
    "zb-h1": _zero_bubble_h1,
    "zb-h2": _zero_bubble_h2,
    "zb-v": _zero_bubble_v,
    "dualpipe": _dualpipe,
    "wrap-around": _wrap_around,
})  # fmt: skip


def _one(p: Numeric, m: Numeric, v: Numeric, stage: Numeric) -> Numeric:
    return np.minimum(m, 1)


def _all(p: Numeric, m: Numeric, v: Numeric, stage: Numeric) -> Numeric:
    return m


def _interleaved_in_flight(p: Numeric, m: Numeric, v: Numeric, stage: Numeric) -> Numeric:
    warm_up = 2 * (p - stage - 1) + (v - 1) * p
    return np.where(np.equal(m, p), m, np.minimum(m, (warm_up + 1) / v))


_IN_FLIGHT: Mapping[str, Callable[[Numeric, Numeric, Numeric, Numeric], Numeric]] = MappingProxyType({
    "naive": _one,
    "gpipe": _all,
    "1f1b": lambda p, m, v, stage: np.minimum(m, p - stage),
    "1f1b-interleaved": _interleaved_in_flight,
    "2bp": _all,
    "zb-h1": lambda p, m, v, stage: np.minimum(m, p),
    "zb-h2": lambda p, m, v, stage: np.minimum(m, 2 * p - 1),
    "zb-v": lambda p, m, v, stage: np.minimum(m, p),
    "dualpipe": lambda p, m, v, stage: p + 1,
    "wrap-around": _all,
})  # fmt: skip
