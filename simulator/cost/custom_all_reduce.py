"""All-reduce kernels of serving engines: one kernel that works on its peers' memory, for messages up to some megabytes.

One-shot kernels read (or are sent) the whole tensor of each peer and add; two-shot ones add a share of it each and gather
the sums. Peers are met by a barrier before and after (vLLM, SGLang), or the data bear flags and no barrier is needed
(TensorRT-LLM's Lamport buffers, later SGLang).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from simulator.cost.numeric import Parts, smaller
from simulator.graph.work import Numeric
from simulator.specs.machine import Span

CustomKernel = Literal["pull", "push"]


class CustomConstants(NamedTuple):
    """What the formulas need; see :class:`simulator.specs.calibration.CustomCollectiveConstants`."""

    pull_efficiency: float
    push_efficiency: float
    pull_latency: float
    push_latency: float
    peer_latency: float
    pull_second: float
    push_second: float
    eager_latency: float
    limit_bytes: float


def custom_all_reduce_time(
    span: Span,
    size: Numeric,
    constants: CustomConstants,
    *,
    kernel: CustomKernel,
    staging_exponent: float = 0.0,
) -> Parts:
    """Return the time of a serving engine's own all-reduce kernel, the better of one-shot and two-shot.

    Parameters
    ----------
    span : Span
        One tier: the ranks of a machine.
    size : number or array
        Bytes of the tensor.
    constants : CustomConstants
    kernel : str
        ``pull``: reads its peers' memory between two barriers; ``push``: writes flagged data to them.
    staging_exponent : float
        Bandwidth falls with (2/ranks) to this power where peers are reached through host memory.

    Returns
    -------
    Parts
        Seconds. With p ranks, latency a + (p - 2)·peer_latency and bandwidth B·efficiency: one shot moves (p - 1)·n, two
        shots 2(p - 1)/p·n for one more latency (Thakur et al. 2005, section 4.4: recursive halving against reduce-scatter
        and all-gather, here with all peers at once).
    """
    if span.size == 1:
        return Parts(0.0 * size, 0.0, 0.0, 0.0 * size, 0.0)
    ranks = span.size
    if kernel == "pull":
        efficiency, start, second = constants.pull_efficiency, constants.pull_latency, constants.pull_second
    else:
        efficiency, start, second = constants.push_efficiency, constants.push_latency, constants.push_second
    rate = min(tier.bandwidth for tier in span.tiers) * efficiency * (2.0 / ranks) ** staging_exponent
    start += constants.peer_latency * (ranks - 2)
    one = size * ((ranks - 1) / rate)
    two = second + size * (2.0 * (ranks - 1) / ranks / rate)
    moved = smaller(one, two)
    some = size > 0
    return Parts((start + moved) * some, 0.0, 0.0, moved * some, start * some)
