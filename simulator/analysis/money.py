"""Dollars and joules of an answer, from rent, purchase price and power."""

from __future__ import annotations

from simulator.analysis.result import Result

AMORTISATION = 4 * 365 * 86400.0
"""Seconds over which a purchase price is spread where no rent is known: four years."""


def rent(result: Result) -> tuple[float, str]:
    """Return dollars per second of the hardware in use and how they came about; ``(0.0, "")`` where no price is known."""
    hardware, devices = result.setup.hardware, result.outcome.devices
    price = hardware.machine.price
    nodes = devices / hardware.ranks_per_node
    if price.rent:
        return price.rent * nodes, f"on-demand rent of {hardware.machine.name}"
    if price.purchase:
        return (
            price.purchase * nodes / AMORTISATION,
            f"purchase price of {hardware.machine.name} over four years",
        )
    own = hardware.device.price
    if own.rent:
        return own.rent * devices, f"rent of {hardware.device.name}"
    if own.purchase:
        return (
            own.purchase * devices / AMORTISATION,
            f"purchase price of {hardware.device.name} alone over four years",
        )
    return 0.0, ""


def money(result: Result) -> dict[str, float]:
    """Return dollars per second, and per step and run (training) or per million output tokens; empty without a price."""
    per_second, _ = rent(result)
    if not per_second:
        return {}
    found = {"dollars_per_second": per_second}
    values = result.values
    if "step_time" in values:
        found["dollars_per_step"] = per_second * values["step_time"].value
    if "run_time" in values:
        found["dollars_per_run"] = per_second * values["run_time"].value
    for key in ("output_throughput", "generation_throughput"):
        if key in values and values[key].value > 0:
            found["dollars_per_million_tokens"] = per_second / values[key].value * 1e6
    return found


def energy(result: Result) -> dict[str, float]:
    """Return watts of the accelerators in use, and joules per token.

    An accelerator draws its limit while it computes and its idle power (a quarter of the limit where unpublished)
    while it waits. Hosts and network are left out.
    """
    power, busy = result.setup.hardware.device.power, result.outcome.busy_fraction
    idle = power.idle if power.idle is not None else 0.25 * power.limit
    watts = result.outcome.devices * (busy * power.limit + (1.0 - busy) * idle)
    found = {"watts": watts}
    for key in ("tokens_per_second", "output_throughput", "generation_throughput"):
        if key in result.values and result.values[key].value > 0:
            found["joules_per_token"] = watts / result.values[key].value
            break
    return found
