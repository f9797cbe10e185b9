"""What more hardware would give: one more SSD, twice the DRAM, the next PCIe, a CXL card, each with its price."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.analysis.money import AMORTISATION, money
from simulator.analysis.result import Result
from simulator.analysis.run import run
from simulator.specs import Catalog, Machine, MemroofError, Node

CHANGES = "hardware.changes"
CXL_CARD = "cxl-2.0-x8-256gb"
"""What is added where a node has no CXL memory."""
STORAGE = ("nvme", "ssd", "ufs")


@dataclass(frozen=True)
class Upgrade:
    """A build that differs from the scenario's in one thing, and its answer.

    Attributes
    ----------
    description : str
    overrides : mapping of str to str
        What ``--set`` would say.
    result : Result, or None
        None where the build cannot run the scenario; ``problem`` then says why.
    change : float
        Relative change of the headline; 0 where the hardware as it is does not run it.
    problem : str
    added : float
        Purchase price of what it has more, as far as it is known [$].
    unpriced : tuple of str
        What it has more whose price is not known, and which no cost contains.
    """

    description: str
    overrides: Mapping[str, str]
    result: Result | None
    change: float = 0.0
    problem: str = ""
    added: float = 0.0
    unpriced: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it runs the scenario."""
        return self.result is not None and self.result.fits

    @property
    def gain(self) -> float:
        """The change, positive where it is for the better."""
        lower = self.result is not None and self.result.headline.better == "lower"
        return 1.0 / (1.0 + self.change) - 1.0 if lower else self.change

    @property
    def dollars_per_million_tokens(self) -> float | None:
        """Of the build, with what was added spread over four years where the node's own price does not hold it."""
        if not self.fits or self.result is None:
            return None
        costs, node = money(self.result), self.result.setup.hardware.machine.price
        if "dollars_per_million_tokens" not in costs:
            return None
        apart = self.added / AMORTISATION if node.rent or node.purchase else 0.0
        return costs["dollars_per_million_tokens"] * (1.0 + apart / costs["dollars_per_second"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data in SI units."""
        found = self.result
        return {
            "description": self.description, "set": dict(self.overrides), "problem": self.problem, "fits": self.fits,
            "shortfalls": list(found.shortfalls) if found else [], "value": found.headline.value if found else None,
            "change": self.change if found else None, "gain": self.gain if found else None,
            "bottleneck": found.bottleneck[0] if found else None, "added_dollars": self.added,
            "unpriced": list(self.unpriced), "dollars_per_million_tokens": self.dollars_per_million_tokens,
        }  # fmt: skip


def upgrades(
    scenario: str | Path, *, paths: Iterable[Path] = (), overrides: Mapping[str, str] | None = None
) -> tuple[Upgrade, ...]:
    """Answer a scenario on its hardware, then on builds with more of each tier and faster links, the best gain first.

    Returns
    -------
    tuple of Upgrade
        The first is the hardware as it is.

    Raises
    ------
    MemroofError
        If the scenario cannot be answered, or its hardware is no single node whose parts could be changed.
    """
    folders, given = tuple(paths), dict(overrides or {})
    catalog = Catalog(folders, given)
    base = run(scenario, catalog=catalog)
    choice = base.setup.scenario.hardware
    if choice.node is None or choice.node not in catalog.names("node"):
        raise MemroofError(
            f"{base.name}: upgrades are of a node's parts, and {base.setup.hardware.name} is no node"
        )
    node = base.setup.hardware.machine.node or catalog.node(choice.node)
    found = []
    for description, changes in builds(node, catalog):
        try:
            result = run(scenario, catalog=Catalog(folders, {**given, **changes}))
        except MemroofError as error:
            found.append(Upgrade(description, changes, None, problem=str(error).splitlines()[0]))
            continue
        before, after = base.headline.value, result.headline.value
        change = after / before - 1.0 if before and base.fits else 0.0
        added, unpriced = _added(base.setup.hardware.machine, result.setup.hardware.machine)
        found.append(Upgrade(description, changes, result, change, "", added, unpriced))
    found.sort(key=lambda one: (not one.fits, one.result is None, -one.gain, one.description))
    return Upgrade("as it is", {}, base), *found


def _added(before: Machine, after: Machine) -> tuple[float, tuple[str, ...]]:
    """Return what the parts of a machine cost that it has more than another [$], and those of unknown price."""
    old, new = before.node, after.node
    if old is None or new is None:
        return 0.0, ()
    cost, unknown = (
        0.0,
        ["faster links"]
        if [w.link for w in new.wires][: len(old.wires)] != [w.link for w in old.wires]
        else [],
    )
    paid = {name: count * (price or 0.0) for name, count, price in before.parts}
    for name, count, price in after.parts:
        if old.components.get(name) == new.components[name]:
            continue
        if price is None:
            unknown.append(name)
        else:
            cost += count * price - paid.get(name, 0.0)
    return cost, tuple(unknown)


def builds(node: Node, catalog: Catalog) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield builds near a node's, each a description and ``--set`` assignments."""
    kinds = {name: _kind(catalog, part.device) for name, part in node.components.items()}
    for name, kind in kinds.items():
        count = node.components[name].count
        if kind in STORAGE and kind != "ufs":
            evenly = _evenly(node, name)
            for more in sorted({count + evenly, 2 * count}):
                changes = {f"{CHANGES}.components.{name}.count": str(more)}
                yield f"more {name} ({count} -> {more})", changes
    memories = [name for name, kind in kinds.items() if kind == "dram"]
    if memories:
        sizes = {name: _capacity(node, catalog, name) for name in memories}
        yield (
            "twice the DRAM",
            {f"{CHANGES}.components.{name}.capacity": f"{2 * size:.0f} B" for name, size in sizes.items()},
        )
    yield from _faster_links(node, catalog, kinds)
    yield from _cxl(node, kinds)


def _evenly(node: Node, name: str) -> int:
    """Parts that must be added at once to stay evenly spread over what they are wired to."""
    count = node.components[name].count
    ends = [end for wire in node.wires if name in wire.between for end in wire.between if end != name]
    most = max((node.components[end].count for end in ends), default=1)
    return most if count % most == 0 else 1


def _kind(catalog: Catalog, device: str | None) -> str:
    return "switch" if device is None else catalog.device(device).kind


def _capacity(node: Node, catalog: Catalog, name: str) -> float:
    part = node.components[name]
    found = catalog.device(part.device or "")
    own = getattr(found, "capacity", 0.0)
    return float(part.capacity or own)


def _faster_links(
    node: Node, catalog: Catalog, kinds: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The accelerators' host link, and the drives', a generation on."""
    known = set(catalog.names("link"))
    for label, chosen in (("accelerator", ("gpu", "tpu", "npu")), ("drive", STORAGE)):
        changes: dict[str, str] = {}
        names: dict[str, None] = {}
        for index, wire in enumerate(node.wires):
            newer = next_generation(wire.link)
            if newer in known and any(kinds[end] in chosen for end in wire.between):
                changes[f"{CHANGES}.wires.{index}.link"] = newer
                names[f"{wire.link} -> {newer}"] = None
        if changes:
            yield f"{label} on the next PCIe ({', '.join(names)})", changes


def next_generation(link: str) -> str:
    """Return the name of a PCIe link one generation on; empty for other links.

    Examples
    --------
    >>> next_generation("pcie-4.0-x16"), next_generation("nvlink-4")
    ('pcie-5.0-x16', '')
    """
    match = re.fullmatch(r"pcie-(\d)\.0-(x\d+)", link)
    return f"pcie-{int(match.group(1)) + 1}.0-{match.group(2)}" if match else ""


def _cxl(node: Node, kinds: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    cards = [name for name, kind in kinds.items() if kind == "cxl"]
    hosts = [name for name, kind in kinds.items() if kind == "cpu"]
    if cards:
        count = node.components[cards[0]].count
        yield f"one more {cards[0]} card", {f"{CHANGES}.components.{cards[0]}.count": str(count + 1)}
    elif hosts:
        wires = [wire.model_dump(exclude_unset=True) for wire in node.wires]
        wires.append({"between": ["cxl", hosts[0]], "link": "cxl-2.0-x8"})
        yield (
            f"a CXL card ({CXL_CARD})",
            {
                f"{CHANGES}.components.cxl.device": CXL_CARD,
                f"{CHANGES}.wires": json.dumps(wires),
            },
        )
