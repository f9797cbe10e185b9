"""Linear layers on the array: a search of the tiles that move the fewest bytes."""

from __future__ import annotations

import math

from simulator.offload.waterfall.attention import Phase, Work
from simulator.offload.waterfall.units import Layer, Units, largest_divisor


def linear(layer: Layer, units: Units) -> tuple[Phase, ...]:
    """Return the layer's products, each bound by the array or by memory; none where it is attention alone."""
    if not layer.feed_forward:
        return ()
    tokens, hidden = layer.batch * layer.sequence, layer.hidden
    wide, inner = layer.heads * layer.head_dim, layer.feed_forward
    products = [("Q", hidden, wide), ("K", hidden, wide), ("V", hidden, wide), ("Z", wide, hidden)]
    products += [("gate", hidden, inner)] * layer.gated + [("FFN1", hidden, inner), ("FFN2", inner, hidden)]
    return tuple(_product(name, tokens, depth, width, units) for name, depth, width in products)


def product_traffic(tokens: int, depth: int, width: int, units: Units) -> float:
    """Return the bytes that a product of ``tokens`` rows moves with the best tiles [B].

    Tiles of rows come outermost, as the FuseMax artifact orders its loops: activations are read once; weights stay in the
    buffer where they fit beside a tile of rows, else they are read for every tile, and the largest tile of rows that fits
    beside one tile of weights moves the fewest bytes.
    """
    row, weights = depth * units.element, depth * width * units.element
    once = (tokens * depth + tokens * width) * units.element
    if weights + min(tokens, units.columns) * row <= units.buffer:
        return once + weights
    room = units.buffer - min(width, units.rows) * row
    tiles = math.ceil(tokens / units.columns)
    return once + weights * tiles / largest_divisor(tiles, room / (units.columns * row))


def _product(name: str, tokens: int, depth: int, width: int, units: Units) -> Phase:
    cycles = math.ceil(tokens / units.columns) * math.ceil(width / units.rows) * depth
    work = Work(name, "array", cycles / units.clock)
    return Phase(name, ((work,),), product_traffic(tokens, depth, width, units))
