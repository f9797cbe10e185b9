"""Names of devices in measured tables, as the catalog knows them."""

from __future__ import annotations

from collections.abc import Mapping

AICONFIGURATOR: Mapping[str, str] = {
    "a100_sxm": "a100-80gb-sxm",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "l40s": "l40s",
    "b200_sxm": "b200",
    "gb200": "gb200",
}
