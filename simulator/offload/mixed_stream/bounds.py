"""What bounds throughput where all weights are streamed in every iteration: the performance model of MoE-Lens, section 5.

Everything broadcasts. A request has ``prompt`` tokens and generates ``output`` more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.graph import Numeric


def stream_time(model_bytes: Numeric, copy_rate: Numeric) -> Numeric:
    """Return the shortest iteration: all weights over the host link, delta = bytes / B_IO [s].

    Examples
    --------
    >>> round(stream_time(94e9, 19.5e9), 2)  # Mixtral 8x7B in bf16 at 19.5 GB/s
    4.82
    """
    return model_bytes / copy_rate


def parallelism(prompt: Numeric, output: Numeric) -> Numeric:
    """Return the tokens that an iteration processes for each token in the cache (PME).

    A request brings prompt + output tokens through the model and holds prompt + i of them in its i-th of ``output``
    iterations: 2(p + g) / ((2p + g)·g).

    Examples
    --------
    >>> round(parallelism(98, 32), 4)
    0.0356
    """
    return 2.0 * (prompt + output) / ((2.0 * prompt + output) * output)


def token_rate(
    prompt: Numeric, output: Numeric, cache_tokens: Numeric, iteration: Numeric, gpu_rate: Numeric
) -> Numeric:
    """Return the most tokens a second, of prompts and outputs: min(PME·M / delta, T_GPU).

    Parameters
    ----------
    prompt, output : number or array
        Of a request.
    cache_tokens : number or array
        Tokens that the cache holds (M).
    iteration : number or array
        Time in which all weights are streamed (delta) [s].
    gpu_rate : number or array
        Tokens a second that the accelerator computes (T_GPU).

    Examples
    --------
    >>> round(token_rate(98, 32, 70e9 / 262144, 94e9 / 19.5e9, 1e9))  # fp32 cache of Mixtral 8x7B
    1974
    """
    rate: Any = np.minimum(parallelism(prompt, output) * cache_tokens / iteration, gpu_rate)
    return float(rate) if np.ndim(rate) == 0 else rate


def effective_cache(capacity: Numeric, prompt: Numeric, output: Numeric) -> Numeric:
    """Return the cache that one would need were requests not at different ages: C·(p + g) / (p + g/2) [B].

    Examples
    --------
    >>> round(effective_cache(70e9, 98, 32) / 1e9, 1)
    79.8
    """
    return capacity * (prompt + output) / (prompt + output / 2.0)


def host_bandwidth(cache_bytes: Numeric, iteration: Numeric, copy_rate: Numeric) -> Numeric:
    """Return what DRAM must deliver, B_mem = B_KV + B_IO: the cache once an iteration beside the weight stream [B/s].

    Examples
    --------
    >>> round(host_bandwidth(210e9, 4.82, 19.5e9) / 1e9, 1)
    63.1
    """
    return cache_bytes / iteration + copy_rate


def exchanged_bytes(tokens: Numeric, hidden: Numeric, group: Numeric, width: Numeric = 2.0) -> Numeric:
    """Return the activations of attention on CPUs that cross the host link in a layer: n·(d + 2d/s) elements each way at most.

    Parameters
    ----------
    tokens, hidden, group, width : number or array
        Tokens n, hidden size d, query heads of a KV head s, bytes of an element.

    Examples
    --------
    >>> round(exchanged_bytes(18500, 4096, 4) / 1e6)  # the paper's bound of 200 MB
    227
    """
    return tokens * (hidden + 2.0 * hidden / group) * width
