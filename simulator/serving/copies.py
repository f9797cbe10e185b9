"""Blocks on their way between accelerator memory and lower tiers, beside or before the iteration that needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from simulator.engine import Simulation
from simulator.serving.tiers import Channel, Tier


class Copies:
    """What the next iteration has to wait for, and what is swapped out.

    Blocks that a prefix cache moves down as it evicts them are written behind everything else and hold nobody up.

    Attributes
    ----------
    moved : mapping of str to float
        Bytes by way [B].
    stall : float
        Time that iterations have waited [s].
    """

    def __init__(self, overlap: bool, swap: Tier | None, lower: Sequence[Tier]) -> None:
        self._overlap, self._swap, self._lower = overlap, swap, lower
        self._sizes: dict[int, float] = {}
        self._pending: dict[tuple[str, Channel], float] = defaultdict(float)
        self.streams = (-1, -1)
        self.buffer: int | None = None
        self._used = self._shown = 0.0
        self.moved: dict[str, float] = defaultdict(float)
        self.stall = 0.0

    def swap_out(self, request: int, size: float) -> bool:
        """Move a request's bytes out; False if there is no room for them."""
        if self._swap is None or self._used + size > self._swap.capacity:
            return False
        self._sizes[request] = size
        self._used += size
        self._move("swapped out", self._swap.down, size)
        return True

    def swap_in(self, request: int) -> None:
        """Move a request's bytes in again."""
        size = self._sizes[request]
        self.drop(request)
        if self._swap is not None:
            self._move("swapped in", self._swap.up, size)

    def drop(self, request: int) -> None:
        """Give up the bytes of a request that is swapped out."""
        self._used -= self._sizes.pop(request)
        if not self._sizes:
            self._used = 0.0

    def load(self, blocks: Sequence[int], block: float) -> None:
        """Move blocks of a prefix up from each tier."""
        for tier, count in zip(self._lower, blocks, strict=True):
            self._move(f"from {tier.name}", tier.up, count * block)

    def _move(self, way: str, channel: Channel, size: float) -> None:
        if size > 0.0:
            self._pending[way, channel] += size
            self.moved[way] += size

    def stretch(self, seconds: float) -> float:
        """Return how long an iteration of ``seconds`` takes with the copies that it has to wait for [s]."""
        if not self._pending:
            return seconds
        out, into = self._times()
        total = max(seconds, out, into) if self._overlap else out + into + seconds
        self.stall += total - seconds
        return total

    def _times(self) -> tuple[float, float]:
        out = into = 0.0
        for (way, channel), size in self._pending.items():
            if way == "swapped out":
                out += channel.time(size)
            else:
                into += channel.time(size)
        return out, into

    def submit(self, simulation: Simulation) -> tuple[list[int], float]:
        """Start the copies; returns the tasks that the iteration waits for, and the time until they end [s]."""
        if not self._pending:
            return [], 0.0
        before = 0.0 if self._overlap else sum(self._times())
        tasks: list[int] = []
        for (way, channel), size in sorted(
            self._pending.items(), key=lambda item: item[0][0] != "swapped out"
        ):
            stream = self.streams[way != "swapped out"]
            after = tasks[-1:] if not self._overlap else []
            tasks.append(
                simulation.transfer(
                    (),
                    size,
                    after=after,
                    latency=channel.latency,
                    max_rate=channel.rate,
                    stream=stream,
                    tag=way,
                    name=way,
                )
            )
        self._pending.clear()
        return ([] if self._overlap else tasks[-1:]), before

    def hold(self, simulation: Simulation) -> None:
        """Show what is swapped out in the ledger."""
        if self.buffer is not None and self._used != self._shown:
            self._shown = self._used
            simulation.resize(self.buffer, self._used)
