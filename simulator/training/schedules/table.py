"""What a schedule is: a table of orders for each stage, and the route of each micro-batch through the model chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Part = Literal["forward", "backward", "input-gradient", "weight-gradient"]
Route = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Order:
    """One pass of one micro-batch through one model chunk of a stage."""

    micro_batch: int
    chunk: int
    part: Part
    """``backward`` is the gradient of the input and of the weights in one."""
    paired: bool = False
    """Whether it runs together with the row that follows."""


Schedule = tuple[Order, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The tables of all stages and the ways of the micro-batches through them."""

    name: str
    orders: tuple[Schedule, ...]
    """By stage."""
    routes: tuple[Route, ...]
    """For each route, the (stage, chunk) that a micro-batch passes in its forward pass, in order."""
    route_of: tuple[int, ...]
    """By micro-batch, the index of its route: 0 everywhere but in schedules with two directions."""
    _place: dict[tuple[int, int], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = {key: place for route in self.routes for place, key in enumerate(route)}
        object.__setattr__(self, "_place", found)

    @property
    def chunks(self) -> int:
        """Model chunks that a stage holds."""
        return len(self._place) // len(self.orders)

    @property
    def places(self) -> int:
        """Model chunks that a micro-batch passes: what the model is cut into."""
        return len(self.routes[0])

    def place(self, stage: int, chunk: int) -> int:
        """Return the position of a stage's chunk in the route through it."""
        return self._place[stage, chunk]


def in_flight(schedule: Schedule, chunk: int | None = None) -> int:
    """Return the largest count of passes whose activations a stage holds at once (of one chunk, or of all).

    Activations live from the forward pass to the end of the backward pass; where it is split, to the gradient of the
    weights, which still reads the inputs of the products (Qi et al. 2023, arXiv:2401.10241, section 2).

    Examples
    --------
    >>> from simulator.training.schedules import pipeline
    >>> in_flight(pipeline("1f1b", 4, 8).orders[1])
    3
    """
    held = peak = 0
    for order in schedule:
        if chunk is None or order.chunk == chunk:
            if order.part == "forward":
                held += 1
                peak = max(peak, held)
            elif order.part != "input-gradient":
                held -= 1
    return peak


def passes(part: Part, chunk: int, micro_batches: int, *, paired: bool = False) -> list[Order]:
    """Return a row for each micro-batch, to be shared by the tables of all stages."""
    return [Order(index, chunk, part, paired) for index in range(micro_batches)]


def around(stages: int, chunks: int = 1) -> Route:
    """Return the route over all stages, then over all again with the next chunk."""
    return tuple((stage, chunk) for chunk in range(chunks) for stage in range(stages))


def one_way(name: str, orders: tuple[Schedule, ...], route: Route, micro_batches: int) -> Pipeline:
    """Return a pipeline whose micro-batches all take the same route."""
    return Pipeline(name, orders, (route,), (0,) * micro_batches)
