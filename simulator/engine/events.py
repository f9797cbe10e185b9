"""Events: tuples (time, priority, sequence, code) on one heap.

Sequence numbers never repeat, so the order is total and a run repeats exactly. A code that is not negative
is the task that ends; a negative one carries a kind and the number of a task, bundle or callback.
"""

Event = tuple[float, int, int, int]

LATENCY_OVER = 0  # a transfer begins to take bandwidth
BUNDLE_DONE = 1  # the next transfers of a bundle are complete
CALLBACK = 2  # a client of the simulation wants to be called


def encode(kind: int, number: int) -> int:
    """Return the code of an event of that kind about that task, bundle or callback."""
    return ~(number << 2 | kind)


def decode(code: int) -> tuple[int, int]:
    """Return (kind, number) of a negative code."""
    return ~code & 3, ~code >> 2
