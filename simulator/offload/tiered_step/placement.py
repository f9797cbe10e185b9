"""Which tier holds what share of each tensor class, allocation over DRAM and CXL memory included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.offload.tiers import CXL, DRAM, GPU, NVME, Tiers
from simulator.specs import MemroofError
from simulator.specs.tiered_step_scenario import TieredStepStrategy, TierShares

Shares = Mapping[str, float]
"""By tier, summing to 1; tiers without a share are left out."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of the whole node by tensor class, if none of them lay on GPUs."""

    states: float
    gradients: float
    parameters: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Shares of each tensor class."""

    parameters: Shares
    gradients: Shares
    states: Shares
    activations: Shares
    """Of what leaves the GPU, by tier; empty where nothing does or a linear program decides."""


def place(
    strategy: TieredStepStrategy, tiers: Tiers, footprint: Footprint, wide_gradients: bool
) -> Placement:
    """Return the shares that a strategy asks for.

    Parameters
    ----------
    strategy : TieredStepStrategy
        Where each class shall lie, and what ``dram`` means where there is CXL memory.
    tiers : Tiers
        Of the machine.
    footprint : Footprint
        To see what fits into DRAM.
    wide_gradients : bool
        Whether gradients are fp32, which CPUs touch as they do states.

    Raises
    ------
    MemroofError
        If the machine lacks a tier that is named.
    """
    parameters, states = _shares(strategy.parameters), _shares(strategy.states)
    gradients: Shares = {strategy.gradients: 1.0}
    away = strategy.activations
    activations: Shares = {} if away in (GPU, "balanced") else {away: 1.0}
    asked = {"parameters": parameters, "gradients": gradients, "states": states, "activations": activations}
    for key, shares in asked.items():
        for tier in shares:
            if tier not in tiers.pools:
                raise MemroofError(
                    f"strategy.{key}: the machine has no {tier}; it has {', '.join(tiers.pools)}"
                )
    if strategy.host_allocation != "local":
        if CXL not in tiers.pools or DRAM not in tiers.pools:
            raise MemroofError(
                f"strategy.host_allocation: {strategy.host_allocation!r} needs DRAM and CXL memory; "
                f"the machine has {', '.join(tiers.pools)}"
            )
        spread = _interleaved if strategy.host_allocation == "interleaved" else _latency_first
        return spread(Placement(parameters, gradients, states, activations), tiers, footprint, wide_gradients)
    return Placement(parameters, gradients, states, activations)


def _shares(shares: TierShares) -> Shares:
    found = {GPU: 1.0 - shares.away, DRAM: shares.dram, CXL: shares.cxl, NVME: shares.nvme}
    return {tier: share for tier, share in found.items() if share > 1e-9}


def _moved(shares: Shares, part: float) -> Shares:
    """Move a part of what is in DRAM to CXL memory."""
    found = dict(shares)
    share = found.pop(DRAM, 0.0)
    found[DRAM] = share * (1.0 - part)
    found[CXL] = found.get(CXL, 0.0) + share * part
    return {tier: value for tier, value in found.items() if value > 1e-9}


def _interleaved(placement: Placement, tiers: Tiers, footprint: Footprint, wide: bool) -> Placement:
    """Pages in turn on every memory node (``numactl --interleave``): each class in proportion to the count of nodes."""
    nodes = {tier: len(tiers.pools[tier].stores) for tier in (DRAM, CXL)}
    part = nodes[CXL] / (nodes[DRAM] + nodes[CXL])
    return Placement(
        _moved(placement.parameters, part), _moved(placement.gradients, part), _moved(placement.states, part),
        _moved(placement.activations, part),
    )  # fmt: skip


def _latency_first(placement: Placement, tiers: Tiers, footprint: Footprint, wide: bool) -> Placement:
    """States, and gradients where they are fp32, in DRAM as far as they fit; all else striped over the CXL cards.

    Liaw & Chen 2025, arXiv:2507.03305: what CPUs touch is bound by latency, what GPUs copy by bandwidth.
    """
    room = tiers.pools[DRAM].capacity
    states = footprint.states * placement.states.get(DRAM, 0.0)
    gradients = footprint.gradients * placement.gradients.get(DRAM, 0.0)
    over = max(0.0, states - room) / states if states else 0.0
    left = max(0.0, room - states)
    spilled = (max(0.0, gradients - left) / gradients if gradients else 0.0) if wide else 1.0
    return Placement(
        _moved(placement.parameters, 1.0), _moved(placement.gradients, spilled), _moved(placement.states, over),
        _moved(placement.activations, 1.0),
    )  # fmt: skip
