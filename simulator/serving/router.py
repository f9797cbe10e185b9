"""Who gets a request: the policies of routers in front of equal or unequal replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from simulator.serving.member import Member

RouterPolicy = Literal["round-robin", "random", "least-requests", "least-tokens", "prefix-aware"]


class Router:
    """Chooses a member for each request.

    Parameters
    ----------
    policy : str
        ``round-robin`` in the order of the members; ``random``; ``least-requests``: the fewest that are not complete;
        ``least-tokens``: the fewest prompt tokens of those; ``prefix-aware``: the longest part of the prompt in the prefix
        cache, unless that member has ``imbalance`` requests more than the least busy one (SGLang's cache-aware router).
        Among equals the first.
    imbalance : int
        See above.
    seed : int
        Of ``random``.
    """

    def __init__(self, policy: RouterPolicy, imbalance: int = 32, seed: int = 0) -> None:
        self.policy, self.imbalance = policy, imbalance
        self._turn = 0
        self._random = np.random.default_rng([seed, 0x52])

    def choose(self, members: Sequence[Member], request: int) -> Member:
        """Return who gets a request; ``members`` are those who take any, one at least."""
        if self.policy == "round-robin":
            self._turn += 1
            return members[(self._turn - 1) % len(members)]
        if self.policy == "random":
            return members[int(self._random.integers(len(members)))]
        if self.policy == "least-tokens":
            return min(members, key=lambda member: (member.outstanding_tokens, member.outstanding))
        least = min(members, key=lambda member: member.outstanding)
        if self.policy == "least-requests":
            return least
        near = [m for m in members if m.outstanding - least.outstanding <= self.imbalance]
        return max(near, key=lambda member: (_found(member, request), -member.outstanding))


def _found(member: Member, request: int) -> int:
    """Blocks of a prompt in a member's prefix cache."""
    if member.prefixes is None:
        return 0
    return member.prefixes.match(request, int(member.requests.prompt[request])).blocks
