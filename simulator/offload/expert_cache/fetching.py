"""Copies of experts to the accelerator: two priorities, chunk by chunk, dropped or hurried while they wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Key = tuple[int, int]
"""MoE layer and expert."""
REQUIRED, PREDICTED = 0, 1


@dataclass(slots=True)
class Request:
    """An expert on its way: chunks that are still to be sent, and what happens when all have come."""

    priority: int
    number: int
    left: int
    arrived: Callable[[Key], None]
    dropped: bool = False


class Fetcher:
    """Sends chunks one after another, those of required experts first, in the order of their requests.

    A chunk under way is never interrupted, so that a wrong prediction holds a required expert up by one chunk at most
    (Song et al. 2024, *ProMoE*, section 5).

    Parameters
    ----------
    chunks : int
        Of each expert.
    send : function
        Submits one chunk of an expert; calls its second argument when it has come.
    may_start : function
        Whether there is room for an expert whose first chunk would be sent now.
    """

    def __init__(
        self, chunks: int, send: Callable[[Key, Callable[[], None]], None], may_start: Callable[[Key], bool]
    ) -> None:
        self._chunks, self._send, self._may_start = chunks, send, may_start
        self._requests: dict[Key, Request] = {}
        self._busy = False
        self._number = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._requests

    def started(self, key: Key) -> bool:
        """Whether a chunk of it is under way or has come."""
        return key in self._requests and self._requests[key].left < self._chunks

    def of_layer(self, layer: int) -> list[Key]:
        """Experts of a layer that are on their way or queued."""
        return [key for key in self._requests if key[0] == layer]

    def request(self, key: Key, priority: int, arrived: Callable[[Key], None]) -> None:
        """Queue an expert."""
        self._requests[key] = Request(priority, self._number, self._chunks, arrived)
        self._number += 1

    def require(self, key: Key, arrived: Callable[[Key], None]) -> None:
        """Hurry an expert that was predicted."""
        request = self._requests[key]
        request.priority, request.arrived = REQUIRED, arrived

    def drop(self, key: Key) -> None:
        """Give an expert up; the chunk that is under way comes to nothing."""
        self._requests.pop(key).dropped = True

    def go(self) -> None:
        """Send the next chunk, if none is under way."""
        if self._busy or not self._requests:
            return
        order = sorted(self._requests.items(), key=lambda item: (item[1].priority, item[1].number))
        for key, request in order:
            if request.left < self._chunks or self._may_start(key):
                self._busy = True
                request.left -= 1
                self._send(key, lambda: self._come(key, request))
                return

    def _come(self, key: Key, request: Request) -> None:
        self._busy = False
        if not request.left and not request.dropped:
            del self._requests[key]
            request.arrived(key)
        self.go()
