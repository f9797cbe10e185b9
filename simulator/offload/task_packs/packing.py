"""Layers into packs: balanced by time or by memory, or as full as they get; under a limit of bytes (Li et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.offload.columns import BOTTLENECKS, Rows
from simulator.offload.task_packs.layers import Integers, PassTable
from simulator.specs.task_packs_scenario import PackMethod

ROUNDING = 1e-9
"""Part of the whole by which running sums may be off."""
Pack = tuple[int, int]
"""First layer, and the one behind the last."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Harmony's four: micro-batch and packs of the forward pass, micro-batch and packs of the backward pass.

    The forward packs cover the layers before the last backward pack, whose forward pass is fused with its backward pass.
    """

    forward_micro_batch: int
    forward_packs: tuple[Pack, ...]
    backward_micro_batch: int
    backward_packs: tuple[Pack, ...]
    packing: str = ""
    """How the packs came about: forward, backward."""


def pack(
    method: PackMethod, table: PassTable, which: str, layers: int, limit: float, count: int | None = None
) -> tuple[Pack, ...] | None:
    """Return the packs of the first ``layers`` layers; None where they do not fit.

    Parameters
    ----------
    method : str
        ``balanced-time`` and ``balanced-memory`` cut where the running sum passes equal shares, in the fewest packs that
        fit; ``greedy`` fills packs from the last layer on.
    table : PassTable
        Of the micro-batch size.
    which : {"forward", "backward"}
        Whose seconds and bytes count; a backward pass with the forward pass that it begins with.
    layers : int
        How many, from the first.
    limit : float
        Bytes that a pack may take.
    count : int, optional
        Packs; the fewest that fit if absent.

    Raises
    ------
    ValueError
        If ``greedy`` is given a count, which it has no use for.
    """
    if layers == 0:
        return () if count in (None, 0) else None
    if method == "greedy":
        if count is not None:
            raise ValueError("greedy packing finds the count of packs itself")
        return _greedy(table, which, layers, limit)
    if method == "balanced-time":
        rows = table.forward + (table.backward if which == "backward" else 0.0)
        weight = rows[:layers, : len(BOTTLENECKS)].sum(axis=1)
    else:
        weight = table.kept[which][:layers]
    fewest = max(1, math.ceil(float(table.kept[which][:layers].sum()) / limit))
    for packs in range(fewest, layers + 1) if count is None else (count,):
        bounds = balanced(weight, packs)
        if bounds is not None and fits(table, which, bounds, limit):
            return _pairs(bounds)
    return None


def balanced(weight: Rows, packs: int) -> Integers | None:
    """Return the layer numbers between which ``packs`` packs of about equal weight lie; None if one were empty."""
    if packs > len(weight):
        return None
    running = np.cumsum(weight)
    # layers that end on a share, but for rounding, belong before the cut
    shares = running[-1] / packs * np.arange(1, packs) + ROUNDING * running[-1]
    cuts = np.searchsorted(running, shares, side="right")
    bounds = np.array([0, *cuts, len(weight)])
    return bounds if (np.diff(bounds) > 0).all() else None


def fits(table: PassTable, which: str, bounds: Integers, limit: float) -> bool:
    """Return whether every pack between layer numbers stays within ``limit`` bytes."""
    return bool((table.pack_memory(which, bounds) <= limit).all())


def reused(packs: tuple[Pack, ...], table: PassTable, which: str, limit: float) -> tuple[Pack, ...] | None:
    """Return packs as they are where they fit another pass too."""
    if not packs:
        return packs
    bounds = np.array([0, *(end for _, end in packs)])
    return packs if fits(table, which, bounds, limit) else None


def _greedy(table: PassTable, which: str, layers: int, limit: float) -> tuple[Pack, ...] | None:
    kept, working, inputs = table.kept[which], table.working[which], table.inputs
    bounds = [layers]
    total = most = 0.0
    for layer in range(layers - 1, -1, -1):
        total, most = total + kept[layer], max(most, working[layer])
        if total + most + inputs[layer] <= limit:
            continue
        if bounds[-1] == layer + 1:
            return None
        bounds.append(layer + 1)
        total, most = kept[layer], working[layer]
        if total + most + inputs[layer] > limit:
            return None
    return _pairs(np.array([0, *reversed(bounds)]))


def _pairs(bounds: Integers) -> tuple[Pack, ...]:
    return tuple(pairwise(int(bound) for bound in bounds))
