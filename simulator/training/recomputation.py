"""Which operators of a block are computed again before their backward pass: by strategy and by name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from simulator.graph import Block
from simulator.specs import MemroofError, TrainingStrategy


def recomputed(block: Block, strategy: TrainingStrategy) -> frozenset[str]:
    """Return the names of the operators of a block that a strategy computes again.

    ``selective``: the attention core (Korthikanti et al. 2022, section 5); ``full``: all, so that the block keeps its input; and
    ``recompute_operators`` beside them, where the block has them. ``optimal`` is a choice for the whole stage
    (:func:`simulator.training.optimal.choose`): here it names what ``recompute_operators`` does.
    """
    if not block.trains:
        return frozenset()
    wanted = set(strategy.recompute_operators)
    named = {op.name for op in block.operators if op.name in wanted and not op.detached}
    return frozenset({op.name for op in block.recomputed(strategy.recompute)} | named)


def check_operators(blocks: Iterable[Block], names: Iterable[str]) -> None:
    """Refuse names of operators that no block has.

    Raises
    ------
    MemroofError
        With the closest names that there are.
    """
    known = sorted({op.name for block in blocks for op in block.operators})
    faults = []
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            faults.append(f"strategy.recompute_operators: no layer has an operator {name}; {hint}")
    if faults:
        raise MemroofError("\n".join(faults))
