"""What a replica uses of a machine: a stream, memories, and streams of copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from simulator.engine import Program
from simulator.serving.tiers import Tier


class Places(NamedTuple):
    """Handles of what a replica uses: its stream, its memory, tiers by name, and streams of copies out and in."""

    stream: int
    memory: int
    tiers: Mapping[str, int]
    copies: tuple[int, int]


def declare(
    program: Program,
    prefix: str,
    memory: tuple[str, float],
    resident: Mapping[str, float],
    lower: tuple[Tier, ...],
    swap: Tier | None,
) -> Places:
    """Add a replica's stream and memories to a program; their names begin with ``prefix``."""
    stream = program.stream(f"{prefix}replica")
    handle = program.memory(prefix + memory[0], memory[1])
    for category, size in resident.items():
        program.allocate(handle, size, category, name=category)
    room: dict[str, float] = {}
    for tier in (*lower, *([swap] if swap else [])):
        room[tier.name] = room.get(tier.name, 0.0) + tier.capacity
    tiers = {name: program.memory(prefix + name, size) for name, size in room.items()}
    copies = (-1, -1)
    if tiers:
        copies = (program.stream(f"{prefix}copies out"), program.stream(f"{prefix}copies in"))
    return Places(stream, handle, tiers, copies)
