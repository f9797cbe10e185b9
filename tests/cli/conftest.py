"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from user_catalog import UserCatalog


@pytest.fixture
def user(tmp_path: Path) -> UserCatalog:
    return UserCatalog(tmp_path)
