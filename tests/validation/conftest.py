"""Shipped scenarios, each answered once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from simulator.analysis import run
from simulator.analysis.result import Result
from simulator.specs import Catalog


@pytest.fixture(scope="session")
def shipped() -> Catalog:
    return Catalog(environment={})


@pytest.fixture(scope="session")
def answer_of(shipped: Catalog) -> Callable[[str], Result]:
    return cache(lambda name: run(name, catalog=shipped))
