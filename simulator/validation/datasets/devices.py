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

PLAIN: Mapping[str, str] = {
    "a100": "a100-80gb-sxm",
    "h100": "h100-sxm",
    "a40": "a40",
    "h20": "h20",
    "h800": "h800-sxm",
    "rtx4090": "rtx-4090",
    "rtxpro6000": "rtx-pro-6000-blackwell",
}
"""The same of tables that name a device by its bare name."""
