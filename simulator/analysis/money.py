"""Dollars and joules of an answer, from rent, purchase price and power."""

from __future__ import annotations

from simulator.analysis.result import Result
from simulator.specs import Hardware, Machine
from simulator.specs.network import Part

AMORTISATION = 4 * 365 * 86400.0
"""Seconds over which a purchase price is spread where no rent is known: four years."""

TOKENS = ("output_throughput", "generation_throughput", "tokens_per_second")
"""Metrics that count tokens a second: those put out, where an answer has them, else those trained on."""


def rent(result: Result) -> tuple[float, str]:
    """Return dollars per second of the hardware in use and how they came about; ``(0.0, "")`` where no price is known."""
    hardware, devices = result.setup.hardware, result.outcome.devices
    parts = [_rent(part.machine, count) for part, count in _in_use(hardware, devices)]
    if any(not dollars for dollars, _ in parts):
        return 0.0, ""
    return sum(dollars for dollars, _ in parts), " and ".join(dict.fromkeys(how for _, how in parts))


def _in_use(hardware: Hardware, devices: int) -> list[tuple[Part, float]]:
    """Accelerators in use of each part: all of them, or the first ones."""
    left, found = devices, []
    for part in hardware.parts:
        count = min(left, len(part.machine.ranks) * part.nodes)
        left -= count
        if count:
            found.append((part, float(count)))
    return found


def _rent(machine: Machine, devices: float) -> tuple[float, str]:
    price, own = machine.price, machine.ranks[0].device
    nodes = devices / len(machine.ranks)
    if price.rent:
        return price.rent * nodes, f"on-demand rent of {machine.name}"
    if price.purchase:
        return price.purchase * nodes / AMORTISATION, f"purchase price of {machine.name} over four years"
    if own.price.rent:
        return own.price.rent * devices, f"rent of {own.name}"
    if own.price.purchase:
        known = sum(count * price for _, count, price in machine.parts if price is not None)
        unknown = [name for name, _, price in machine.parts if price is None]
        how = f"purchase prices of {machine.name}'s parts over four years"
        if unknown:
            how += f", {', '.join(unknown)} left out"
        if not machine.parts:
            known, how = own.price.purchase, f"purchase price of {own.name} over four years"
            nodes = devices
        return known * nodes / AMORTISATION, how
    return 0.0, ""


def money(result: Result) -> dict[str, float]:
    """Return dollars per second, per step and run (training), and per million tokens trained on or put out.

    Empty without a price.
    """
    per_second, _ = rent(result)
    if not per_second:
        return {}
    found = {"dollars_per_second": per_second}
    values = result.values
    if "step_time" in values:
        found["dollars_per_step"] = per_second * values["step_time"].value
    if "run_time" in values:
        found["dollars_per_run"] = per_second * values["run_time"].value
    for key in TOKENS:
        if key in values and values[key].value > 0:
            found["dollars_per_million_tokens"] = per_second / values[key].value * 1e6
            break
    return found


def energy(result: Result) -> dict[str, float]:
    """Return watts of the accelerators in use, and joules per token.

    An accelerator draws its limit while it computes and its idle power (a quarter of the limit where unpublished)
    while it waits. Hosts and network are left out.
    """
    watts = power(result, result.outcome.busy_fraction)
    found = {"watts": watts}
    for key in TOKENS:
        if key in result.values and result.values[key].value > 0:
            found["joules_per_token"] = watts / result.values[key].value
            break
    return found


def power(result: Result, busy: float) -> float:
    """Return watts of the accelerators in use that compute for a share ``busy`` of the time and idle for the rest."""
    watts = 0.0
    for part, count in _in_use(result.setup.hardware, result.outcome.devices):
        limits = part.machine.ranks[0].device.power
        idle = limits.idle if limits.idle is not None else 0.25 * limits.limit
        watts += count * (busy * limits.limit + (1.0 - busy) * idle)
    return watts
