"""Slot caches: which of many equal items (experts, neurons, KV blocks) are resident, by policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Literal

from simulator.engine.errors import ProgramError

Policy = Literal["lru", "lfu", "static-hot", "decay", "window", "predicted"]
POLICIES: tuple[Policy, ...] = ("lru", "lfu", "static-hot", "decay", "window", "predicted")

_OPTIONS: dict[str, tuple[Policy, ...]] = {
    "scores": ("static-hot",),
    "decay": ("decay",),
    "window": ("window",),
    "bypass": ("lfu", "decay"),
}


class SlotCache:
    """Slots for items that are known by number, all of one size; it holds no data and takes no time.

    All items of a step are looked up before any is admitted, and none of them makes room for another as long
    as there are slots for all. Ties go to the item used last.

    Parameters
    ----------
    slots : int, optional
        Items it holds; no limit if None, which only a window can do.
    policy : str
        What is evicted: ``lru`` the item used longest ago; ``lfu`` the one used least often since the
        beginning, resident or not (perfect LFU); ``decay`` the one of the least score, to which each use adds
        its weight and which each step multiplies by `decay` (Xiao et al. 2024, *InfLLM*, section 3.3); an
        evicted item forgets its score; ``window`` all that was not used in the last `window` steps (Alizadeh
        et al. 2024, *LLM in a flash*, section 3.1), and the item used longest ago if slots lack; ``predicted``
        the item used longest ago that is not in a set given by `predict`; ``static-hot`` nothing: the items of
        the highest `scores` are resident, and a miss is not admitted.
    scores : sequence of float, optional
        By item, for ``static-hot``.
    decay : float, optional
        In [0, 1], for ``decay``.
    window : int, optional
        Steps, for ``window``.
    bypass : bool
        For ``lfu`` and ``decay``: a missed item is not kept if all that it could replace rank at least as high.

    Attributes
    ----------
    hits, misses : int
        Accesses of either kind so far; admissions that nobody asked for (`admit`) are none.
    evicted : tuple of int
        What the last step or admission threw out, in order.

    Raises
    ------
    ProgramError
        If the policy is unknown, or an option is missing, out of range, or means nothing to the policy.

    Examples
    --------
    >>> cache = SlotCache(2, "lru")
    >>> [cache.access(item) for item in (0, 1, 0, 2, 1)]
    [False, False, True, False, False]
    >>> cache.step([1, 2, 3])
    ((1, 2), (3,))
    """

    def __init__(
        self,
        slots: int | None,
        policy: Policy,
        *,
        scores: Sequence[float] | None = None,
        decay: float | None = None,
        window: int | None = None,
        bypass: bool = False,
    ) -> None:
        given: dict[str, object] = {
            "scores": scores,
            "decay": decay,
            "window": window,
            "bypass": bypass or None,
        }
        _check(slots, policy, given)
        self.policy: Policy = policy
        self.slots = slots
        self.hits = 0
        self.misses = 0
        self.evicted: tuple[int, ...] = ()
        self._bypass = bypass
        self._decay = decay if decay is not None else 1.0
        self._window = window if window is not None else 0
        self._now = 0  # steps so far
        self._resident: dict[int, int] = {}  # step of the last use, in order of recency
        self._counts: dict[int, int] = {}  # lfu: uses since the beginning
        self._scores: dict[int, tuple[float, int]] = {}  # decay: score of residents, and the step it is of
        self._protected: dict[int, int] = {}  # predicted: last step in which it stays
        if scores is not None:
            self.refresh(scores)

    def __contains__(self, item: int) -> bool:
        return item in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def items(self) -> tuple[int, ...]:
        """The items resident, the one used longest ago first."""
        return tuple(self._resident)

    @property
    def hit_rate(self) -> float:
        """Hits over accesses so far; 0 before the first."""
        return self.hits / (self.hits + self.misses) if self.hits or self.misses else 0.0

    def access(self, item: int) -> bool:
        """Use one item, as a step of its own; True if it was resident."""
        return bool(self.step((item,))[0])

    def step(
        self, items: Iterable[int], weights: Sequence[float] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Use some items at once and admit those that miss, by policy.

        Parameters
        ----------
        items : iterable of int
            Those used, the least important first: if slots lack for all, the last ones stay. One that is
            named twice is used once.
        weights : sequence of float, optional
            For ``decay``, what each use adds to the score (attention received, say); 1 each if absent.

        Returns
        -------
        hits, misses : tuple of int
            Items that were resident before the step, and that were not, in the order given.
        """
        used = tuple(dict.fromkeys(items))
        hits = tuple(item for item in used if item in self._resident)
        misses = tuple(item for item in used if item not in self._resident)
        self.hits += len(hits)
        self.misses += len(misses)
        self._now += 1
        self.evicted = self._expired()
        self._note(used, weights)
        if self.policy != "static-hot":
            before = set(self._resident)
            for item in used:
                self._resident.pop(item, None)
                self._resident[item] = self._now
            self._shrink(used, before)
        return hits, misses

    def admit(self, item: int, keep: Collection[int] = ()) -> int | None:
        """Make an item resident though nobody used it (a prefetch that has arrived).

        It counts as used in the last step. Nothing happens if it is resident, if all slots are taken by items
        of `keep`, or if the set is fixed.

        Parameters
        ----------
        item : int
            Number of the item.
        keep : collection of int
            Items that must not make room for it (they are being computed, say).

        Returns
        -------
        int or None
            The item evicted for it; None if there was a free slot or it was not admitted.
        """
        self.evicted = ()
        if item in self._resident or self.policy == "static-hot" or self.slots == 0:
            return None
        if self.slots is not None and len(self._resident) >= self.slots:
            victims = self._victims(1, [resident for resident in self._resident if resident not in keep])
            if not victims:
                return None
            self._evict(victims)
        self._resident[item] = self._now
        if self.policy == "decay":
            self._scores.setdefault(item, (0.0, self._now))
        return self.evicted[0] if self.evicted else None

    def predict(self, items: Iterable[int], steps: int = 1) -> tuple[int, ...]:
        """Keep some items, once resident, through the next `steps` steps, for the policy ``predicted``.

        Returns
        -------
        tuple of int
            Those not resident: what to fetch, and then to `admit`.

        Raises
        ------
        ProgramError
            If the policy is another.
        """
        if self.policy != "predicted":
            raise ProgramError(f"a cache of policy {self.policy!r} takes no prediction")
        wanted = tuple(dict.fromkeys(items))
        self._protected = {item: last for item, last in self._protected.items() if last > self._now}
        for item in wanted:
            self._protected[item] = max(self._now + steps, self._protected.get(item, 0))
        return tuple(item for item in wanted if item not in self._resident)

    def refresh(self, scores: Sequence[float]) -> tuple[int, ...]:
        """Choose anew the fixed set of ``static-hot``: the items of the highest scores, on ties the first.

        Returns
        -------
        tuple of int
            The items that were not resident before: what to load.

        Raises
        ------
        ProgramError
            If the policy is another.
        """
        if self.policy != "static-hot":
            raise ProgramError(f"a cache of policy {self.policy!r} has no fixed set")
        hot = nsmallest(self.slots or 0, range(len(scores)), key=lambda item: -scores[item])
        new = tuple(sorted(item for item in hot if item not in self._resident))
        self.evicted = tuple(item for item in self._resident if item not in set(hot))
        self._resident = dict.fromkeys(sorted(hot), self._now)
        return new

    def _note(self, used: Sequence[int], weights: Sequence[float] | None) -> None:
        """Keep the books of the uses that the policy ranks by."""
        if self.policy == "lfu":
            for item in used:
                self._counts[item] = self._counts.get(item, 0) + 1
        elif self.policy == "decay":
            for item, weight in zip(used, (1.0,) * len(used) if weights is None else weights, strict=True):
                self._scores[item] = (self._score(item) + weight, self._now)

    def _expired(self) -> tuple[int, ...]:
        """Throw out what has left the window."""
        if self.policy != "window":
            return ()
        gone = []
        for item, last in self._resident.items():
            if last > self._now - self._window:
                break
            gone.append(item)
        for item in gone:
            del self._resident[item]
        return tuple(gone)

    def _shrink(self, used: Sequence[int], before: Collection[int]) -> None:
        """Evict what is too many, the items of this step last, the first of them first."""
        if self.slots is None or len(self._resident) <= self.slots:
            return
        if self._bypass:
            missed = [item for item in used if item not in before]
            candidates = [*missed, *(item for item in self._resident if item in before)]
        else:
            kept = set(used)
            candidates = [item for item in self._resident if item not in kept]
        self._evict(self._victims(len(self._resident) - self.slots, candidates), before)
        self._evict(tuple(islice(self._resident, max(len(self._resident) - self.slots, 0))), before)

    def _victims(self, count: int, candidates: Sequence[int]) -> tuple[int, ...]:
        """Return up to so many of the candidates, the lowest first, on ties those named first."""
        rank = self._rank()
        return tuple(candidates[:count] if rank is None else nsmallest(count, candidates, key=rank))

    def _rank(self) -> Callable[[int], float] | None:
        """Return by what the lowest is evicted first; None for recency alone."""
        if self.policy == "lfu":
            return lambda item: self._counts.get(item, 0)
        if self.policy == "decay":
            return self._score
        if self.policy == "predicted":
            return lambda item: self._protected.get(item, 0) >= self._now
        return None

    def _score(self, item: int) -> float:
        score, step = self._scores.get(item, (0.0, self._now))
        # 0 ** 0 is 1: what is of this step has not decayed.
        return float(score * self._decay ** (self._now - step))

    def _evict(self, victims: Sequence[int], before: Collection[int] | None = None) -> None:
        """Remove items; those that were not resident `before` this step have only passed through."""
        for item in victims:
            del self._resident[item]
            self._scores.pop(item, None)
        self.evicted += tuple(item for item in victims if before is None or item in before)


def _check(slots: int | None, policy: str, given: dict[str, object]) -> None:
    if policy not in POLICIES:
        raise ProgramError(f"no cache policy {policy!r}; there are {', '.join(POLICIES)}")
    if slots is None and policy != "window":
        raise ProgramError(f"a cache of policy {policy!r} needs a number of slots")
    if slots is not None and slots < 0:
        raise ProgramError(f"a cache cannot have {slots} slots")
    for option, value in given.items():
        if value is not None and policy not in _OPTIONS[option]:
            raise ProgramError(f"{option} means nothing to a cache of policy {policy!r}")
        if value is None and option != "bypass" and policy in _OPTIONS[option]:
            raise ProgramError(f"a cache of policy {policy!r} needs {option}")
    decay, window = given["decay"], given["window"]
    if isinstance(decay, (int, float)) and not 0.0 <= decay <= 1.0:
        raise ProgramError(f"decay must lie between 0 and 1, is {decay}")
    if isinstance(window, int) and window < 1:
        raise ProgramError(f"a window must span a step at least, not {window}")
