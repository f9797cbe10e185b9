"""Bytes by tier and by link that do not depend on what becomes of activations: closed forms, before anything is run."""

from __future__ import annotations

from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiers import DRAM, GPU, NVME


def others(plan: Plan) -> dict[str, float]:
    """Return the most bytes of each tier that parameters, gradients, states and buffers take [B]; of one GPU for its own."""
    place, widths, strategy = plan.place, plan.widths, plan.strategy
    own = plan.elements / plan.tensor
    largest = max(unit.needed for unit in plan.units) / strategy.parameter_tiles
    widest = largest * strategy.parameter_tiles
    used = dict.fromkeys(plan.tiers.pools, 0.0)
    for tier, share in place.parameters.items():
        used[tier] += share * widths.parameter * (own if tier == GPU else plan.elements)
    for tier, share in place.states.items():
        used[tier] += share * widths.state * (own / plan.cuts if tier == GPU else plan.elements)
    for tier, share in place.gradients.items():
        held = own if tier == GPU else plan.elements * (strategy.update != "layer")
        used[tier] += share * widths.gradient * held
    window = (strategy.prefetch * plan.layer_units + 1) * largest * widths.parameter
    away = 1.0 - place.parameters.get(GPU, 0.0)
    used[GPU] += window * away
    if GPU not in place.gradients:
        used[GPU] += 2.0 * largest * widths.gradient
    body = [unit for unit in plan.units if unit.sublayer]
    ends = [unit for unit in plan.units if not unit.sublayer]
    # tensors inside a unit and their gradients, those on their way out or back, hidden states and their gradients
    used[GPU] += max(unit.workspace + unit.whole for unit in (*body, *ends)) + activation_buffers(plan)
    used[GPU] += 2.0 * sweep_batches(plan) * plan.hidden_bytes
    if NVME in place.states and DRAM in used:
        used[DRAM] += (
            strategy.state_buffers
            * plan.layer_units
            * plan.tensor
            * widest
            * (widths.state + widths.parameter)
        )
    if NVME in place.parameters and DRAM in used:
        used[DRAM] += window * len(plan.ranks) * place.parameters[NVME]
    return used


def activation_buffers(plan: Plan) -> float:
    """Return the bytes of a GPU that hold activations on their way out, and later those fetched ahead."""
    largest = max(unit.whole for unit in plan.units if unit.sublayer)
    return (1.0 + plan.strategy.prefetch * plan.layer_units) * largest


def sweep_batches(plan: Plan) -> int:
    """Micro-batches that wait for their backward pass at once."""
    return plan.micro_batches if plan.strategy.accumulation == "layer" else 1


def traffic(plan: Plan) -> dict[tuple[str, str], float]:
    """Return the seconds that bytes other than activations take on each link in each pass of a sweep.

    Links are the GPU's own, ``h2d`` and ``d2h``, and flash's, ``read`` and ``write``. Parameters come in both passes; gradients
    leave in the backward pass, and states come and go there if layers are updated in it.
    """
    place, widths, tiers = plan.place, plan.widths, plan.tiers
    own, inside = plan.elements / plan.tensor, plan.strategy.update == "layer"
    found = {
        (link, part): 0.0 for link in ("h2d", "d2h", "read", "write") for part in ("forward", "backward")
    }
    fetched = own * widths.parameter / plan.cuts
    host = DRAM if DRAM in tiers.pools else NVME
    away = sum(share for tier, share in place.parameters.items() if tier != GPU)
    for part in ("forward", "backward"):
        if away:
            found["h2d", part] = away * fetched / tiers.channels[host, GPU].rate
        if NVME in place.parameters:
            count = len(plan.ranks) if plan.cuts == plan.data else 1
            read = place.parameters[NVME] * fetched * count
            found["read", part] = read / tiers.channels[NVME, host if host != NVME else GPU].rate
    if GPU not in place.gradients:
        found["d2h", "backward"] = own * widths.gradient / plan.cuts / tiers.channels[GPU, host].rate
    if inside and NVME in tiers.pools and host == DRAM:
        states = place.states.get(NVME, 0.0) * plan.elements * widths.state
        copies = place.parameters.get(NVME, 0.0) * plan.elements * widths.parameter
        found["read", "backward"] += states / tiers.channels[NVME, DRAM].rate
        found["write", "backward"] += (states + copies) / tiers.channels[DRAM, NVME].rate
    return found
