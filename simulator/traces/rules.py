"""Which group a kernel belongs to, by its name: the table is data (``kernels.yaml``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from simulator.specs.base import Spec, validate
from simulator.specs.calibration import OperatorClass
from simulator.specs.source import read_document

UNMATCHED = "unmatched"
"""Group of the kernels that no pattern finds."""


class Rule(Spec):
    """A regular expression and the group of the names that it is found in."""

    pattern: str
    group: str


class Rules(Spec):
    """The table: groups with their operator classes, patterns for kernels and for memroof's own operators."""

    kind: Literal["kernel-rules"]
    groups: dict[str, OperatorClass]
    kernels: tuple[Rule, ...]
    operators: tuple[Rule, ...]


@lru_cache(maxsize=1)
def rules() -> Rules:
    """Return the shipped table."""
    return validate(read_document(Path(__file__).parent / "kernels.yaml"), Rules)


def group_classes() -> Mapping[str, OperatorClass]:
    """Return the operator class of each group."""
    return rules().groups


@lru_cache(maxsize=65536)
def kernel_group(name: str, category: str = "") -> str:
    """Return the group of a kernel by its name, else by what its file calls it; :data:`UNMATCHED` where neither is known.

    Examples
    --------
    >>> kernel_group("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)")
    'all-reduce'
    >>> kernel_group("void ", "elementwise"), kernel_group("my_secret_kernel")
    ('elementwise', 'unmatched')
    """
    return _first("kernels", name) or _first("kernels", category) or UNMATCHED


@lru_cache(maxsize=4096)
def operator_group(name: str) -> str:
    """Return the group of an element-wise operator of memroof's graph by its name."""
    return _first("operators", name) or "elementwise"


def _first(table: Literal["kernels", "operators"], name: str) -> str:
    if not name:
        return ""
    return next((group for pattern, group in _compiled(table) if pattern.search(name)), "")


@lru_cache(maxsize=2)
def _compiled(table: Literal["kernels", "operators"]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(rule.pattern, re.IGNORECASE), rule.group) for rule in getattr(rules(), table))
