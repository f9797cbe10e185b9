"""The table of known data sets: one module a source, each with a tuple ``DATASETS``."""

from __future__ import annotations

import importlib

from simulator.validation.dataset import DataSet

MODULES: tuple[str, ...] = (
    "elementwise",
    "gemm",
    "layers",
    "measured",
    "attention",
    "mla",
    "experts",
    "collectives",
    "host",
    "trace",
    "serving",
    "serving_requests",
    "serving_throughput",
    "decode",
    "offload",
    "offload_claims",
    "fusemax",
    "vtrain",
    "published",
    "activations",
    "frameworks",
    "mlperf",
    "fsdp",
    "claims",
    "scenarios",
)
"""Modules of this package, in the order in which their data sets are printed."""


def known() -> tuple[DataSet, ...]:
    """Return all known data sets."""
    found: list[DataSet] = []
    for module in MODULES:
        found.extend(importlib.import_module(f"{__name__}.{module}").DATASETS)
    return tuple(found)
