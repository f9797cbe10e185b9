"""Prefix cache: blocks of texts that requests share, computed once, found again, evicted least recently used first.

Blocks are the whole ones of a path from the root of a tree of texts, as engines hash them: a block is known by all that is
before it (Kwon et al. 2023, section 4.4; Zheng et al. 2024, section 3). A node keeps its blocks from the front: the first
ones in accelerator memory, the next in each lower tier. What is released last is evicted last, and of a path the end goes
first, so that what is kept is always reached from the root.

Blocks that requests refer to are *active*; others are *idle* and give way to whoever needs the room. What accelerator memory
evicts moves to the first lower tier, what this evicts to the next, and what is found in a lower tier moves back up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.serving.prefixes import Prefixes


@dataclass(frozen=True, slots=True)
class Hit:
    """Blocks of a request that are found: in all, of them idle ones in accelerator memory, and in each lower tier."""

    blocks: int
    idle: int
    lower: tuple[int, ...]

    @property
    def room(self) -> int:
        """Blocks of accelerator memory that become active."""
        return self.idle + sum(self.lower)


class PrefixCache:
    """Blocks of shared texts in accelerator memory and lower tiers.

    Parameters
    ----------
    texts : Prefixes
        What requests have in common.
    block_size : int
        Tokens of a block.
    lower : sequence of int
        Blocks that each lower tier holds, the nearest first.

    Attributes
    ----------
    active, idle : int
        Blocks in accelerator memory that requests refer to, and others.
    lower : list of int
        Blocks in each lower tier.
    """

    def __init__(self, texts: Prefixes, block_size: int, lower: Sequence[int] = ()) -> None:
        self._parent: list[int] = texts.parent.tolist()
        self._first: list[int] = (texts.start // block_size).tolist()
        self._end: list[int] = (texts.end // block_size).tolist()
        self._leaf: list[int] = texts.leaf.tolist()
        self.block_size = block_size
        count = len(self._parent)
        # blocks of a node that are in accelerator memory, in it or the first lower tier, and so on
        self._bound = [[0] * count for _ in range(len(lower) + 1)]
        self._references = [0] * count
        self._room = list(lower)
        self._order: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(len(lower) + 1)]
        self._paths: dict[int, list[int]] = {}
        self._held: dict[int, tuple[int, int]] = {}
        self.active = self.idle = 0
        self.lower = [0] * len(lower)

    def match(self, request: int, tokens: int) -> Hit:
        """Find how many whole blocks of a request's first ``tokens`` are there."""
        limit = tokens // self.block_size
        idle, lower, blocks = 0, [0] * len(self.lower), 0
        here = self._bound[0]
        for node in self._path(request):
            own = self._end[node] - self._first[node]
            found = min(self._bound[-1][node], limit - self._first[node])
            if own and found <= 0:
                break
            if not self._references[node]:
                idle += here[node]
            for tier in range(len(lower)):
                low, high = self._bound[tier][node], self._bound[tier + 1][node]
                lower[tier] += max(0, min(found, high) - low)
            blocks += max(0, found)
            if found < own:
                break
        return Hit(blocks, idle, tuple(lower))

    def lock(self, request: int, tokens: int) -> Hit:
        """Refer to what is there of a request's first ``tokens``, which moves up from lower tiers; as :meth:`match`."""
        hit = self.match(request, tokens)
        limit = tokens // self.block_size
        path, count = self._path(request), 0
        self._paths[request] = path
        for node in path:
            own = self._end[node] - self._first[node]
            found = min(self._bound[-1][node], limit - self._first[node])
            if own and found <= 0:
                break
            self._refer(node)
            self._fill(node, found)
            count += 1
            if found < own:
                break
        self._held[request] = (count, hit.blocks)
        return hit

    def publish(self, request: int, tokens: int) -> tuple[int, int, int]:
        """Let others find the whole blocks of a request's first ``tokens``, which it has computed.

        Returns
        -------
        (int, int, int)
            Its own blocks that are now shared, of them those that others have shared already, and blocks that were idle.
        """
        covered = tokens // self.block_size
        path = self._paths[request]
        count, depth = self._held[request]
        moved = double = woken = 0
        if covered <= depth:
            return 0, 0, 0
        for index in range(max(0, count - 1), len(path)):
            node = path[index]
            first = self._first[node]
            own = self._end[node] - first
            until = min(own, covered - first)
            done = max(0, depth - first)
            if own and until <= 0:
                break
            if index == count:
                if not self._references[node]:
                    woken += self._bound[0][node]
                self._refer(node)
                count += 1
            there = self._bound[0][node]
            double += max(0, min(there, until) - done)
            moved += max(0, until - done)
            self._fill(node, until)
            depth = max(depth, first + max(0, until))
            if until < own:
                break
        self._held[request] = (count, depth)
        return moved, double, woken

    def release(self, request: int) -> int:
        """Refer to a request's blocks no more; returns how many become idle."""
        count, _ = self._held.pop(request)
        path = self._paths.pop(request)
        freed = 0
        for node in reversed(path[:count]):
            self._references[node] -= 1
            here = self._bound[0][node]
            if not self._references[node] and here:
                freed += here
                self._order[0][node] = None
        self.active -= freed
        self.idle += freed
        return freed

    def held(self, request: int) -> int:
        """Blocks from the root that a request refers to."""
        return self._held[request][1]

    def shrink(self, blocks: int) -> int:
        """Evict idle blocks of accelerator memory until no more than some are left; returns how many go."""
        gone = max(0, self.idle - max(0, blocks))
        left = gone
        order, bound = self._order[0], self._bound[0]
        while left:
            node = next(iter(order))
            cut = min(left, bound[node])
            bound[node] -= cut
            left -= cut
            if not bound[node]:
                del order[node]
            if self.lower:
                self._arrive(0, node, cut)
        self.idle -= gone
        return gone

    def _arrive(self, tier: int, node: int, blocks: int) -> None:
        """Blocks of a node come down into a lower tier, which evicts what it has no room for."""
        order, bound = self._order[tier + 1], self._bound[tier + 1]
        order[node] = None
        order.move_to_end(node)
        self.lower[tier] += blocks
        while self.lower[tier] > self._room[tier]:
            victim = next(iter(order))
            upper = self._bound[tier][victim]
            cut = min(self.lower[tier] - self._room[tier], bound[victim] - upper)
            bound[victim] -= cut
            self.lower[tier] -= cut
            if bound[victim] == upper:
                del order[victim]
            if tier + 1 < len(self.lower):
                self._arrive(tier + 1, victim, cut)

    def _refer(self, node: int) -> None:
        here = self._bound[0][node]
        if not self._references[node] and here:
            self.idle -= here
            self.active += here
            del self._order[0][node]
        self._references[node] += 1

    def _fill(self, node: int, until: int) -> None:
        """Have the first ``until`` blocks of a referred node in accelerator memory, and no copy of them lower down."""
        here = self._bound[0][node]
        if until <= here:
            return
        self.active += until - here
        self._bound[0][node] = until
        low = here
        for tier, bound in enumerate(self._bound[1:]):
            high = bound[node]
            if high > low:
                self.lower[tier] -= min(high, until) - low
                low = min(high, until)
            bound[node] = max(high, until)
            if bound[node] == self._bound[tier][node]:
                self._order[tier + 1].pop(node, None)

    def _path(self, request: int) -> list[int]:
        if request in self._paths:
            return self._paths[request]
        path = []
        node = self._leaf[request]
        while node >= 0:
            path.append(node)
            node = self._parent[node]
        path.reverse()
        return path
