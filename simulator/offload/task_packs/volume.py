"""Closed forms of what an iteration swaps (Li et al. 2021, HotOS: Doing more with less; Li et al. 2022, Harmony)."""

from __future__ import annotations

from typing import Literal

Mode = Literal["data-parallel", "pipeline", "virtualised"]


def weight_swap(
    mode: Mode,
    weights: float,
    *,
    gpus: int = 1,
    micro_batches: int = 1,
    fused: float = 0.0,
    turns: float = 0.0,
) -> float:
    """Return the bytes of weights (and, of packs, of their gradients) that all GPUs swap in an iteration.

    virtualised: (4·m + 2)·N·W: in and out for the forward and for the backward pass of every micro-batch, and for the
    update. data-parallel: 3·N·W: weights in for each pass, gradients out. pipeline: 3·W.

    Parameters
    ----------
    mode : str
        How GPUs share the work.
    weights : float
        Bytes of the model's weights, W; gradients are as wide.
    gpus : int
        N.
    micro_batches : int
        Micro-batches of one GPU, m; without effect on packs, which all micro-batches go through at once.
    fused : float
        Bytes of the pack whose forward and backward passes are one task: its weights come in once. The papers neglect it.
    turns : float
        Bytes of weights that stay where a virtualised pass turns round: of the last layer, between the forward and the
        backward pass, and of the first, between micro-batches and before the update. The papers neglect them.

    Returns
    -------
    float
        Bytes [B].
    """
    if mode == "virtualised":
        return gpus * ((4 * micro_batches + 2) * weights - 2 * micro_batches * turns)
    return (gpus if mode == "data-parallel" else 1) * (3.0 * weights - fused)


def reduction(gpus: int, micro_batches: int) -> float:
    """Return how many times less Harmony's pipeline swaps than virtualised data parallelism: (4·m + 2)·N / 3."""
    return weight_swap("virtualised", 1.0, gpus=gpus, micro_batches=micro_batches) / weight_swap(
        "pipeline", 1.0
    )
