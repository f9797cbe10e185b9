"""Names of devices as drivers report them, and as the catalog knows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

REPORTED: Mapping[str, str] = {
    "a10": "a10",
    "a100-pcie-40gb": "a100-40gb-pcie",
    "a100-sxm4-40gb": "a100-40gb-sxm",
    "a100 80gb pcie": "a100-80gb-pcie",
    "a100-sxm4-80gb": "a100-80gb-sxm",
    "a40": "a40",
    "b200": "b200",
    "b300": "b300",
    "b300 sxm6 ac": "b300",
    "gb200": "gb200",
    "gh200 480gb": "gh200-96gb",
    "gh200 144g hbm3e": "gh200-144gb",
    "h100 nvl": "h100-nvl",
    "h100 pcie": "h100-pcie",
    "h100 80gb hbm3": "h100-sxm",
    "h20": "h20",
    "h200": "h200-sxm",
    "h800": "h800-sxm",
    "l4": "l4",
    "l40s": "l40s",
    "geforce rtx 3090": "rtx-3090",
    "geforce rtx 4090": "rtx-4090",
    "geforce rtx 5090": "rtx-5090",
    "rtx pro 6000 blackwell server edition": "rtx-pro-6000-blackwell",
    "rtx pro 6000 blackwell workstation edition": "rtx-pro-6000-blackwell",
    "tesla t4": "t4",
    "tesla v100-pcie-16gb": "v100-16gb-pcie",
    "tesla v100-sxm2-16gb": "v100-16gb-sxm",
    "tesla v100-pcie-32gb": "v100-32gb-pcie",
    "tesla v100-sxm2-32gb": "v100-32gb-sxm",
    "tesla v100-sxm3-32gb": "v100-32gb-sxm",
    "amd instinct mi250x": "mi250x",
    "amd instinct mi300x": "mi300x",
    "amd instinct mi325x": "mi325x",
    "amd instinct mi355x": "mi355x",
    "amd epyc 7702 64-core processor": "epyc-7702",
    "amd epyc 7742 64-core processor": "epyc-7742",
    "amd epyc 9654 96-core processor": "epyc-9654",
    "amd ryzen threadripper pro 5975wx 32-cores": "threadripper-pro-5975wx",
    "intel core i9-14900k": "core-i9-14900k",
    "intel xeon gold 5320": "xeon-gold-5320",
    "intel xeon platinum 8168": "xeon-8168",
    "intel xeon platinum 8380": "xeon-8380",
    "intel xeon platinum 8480+": "xeon-8480-plus",
    "intel xeon platinum 8480c": "xeon-8480c",
    "intel xeon platinum 8480cl": "xeon-8480c",
    "intel xeon platinum 8570": "xeon-8570",
}
"""What `torch.cuda.get_device_name()` or the CPU's brand string says, in the form of :func:`plain`, to the catalog's name.

From memory of drivers' and kernels' listings; a new device is one line here and one file in the catalog.
"""


def plain(reported: str) -> str:
    """Return a reported name in lower case, without trademarks, clock and the maker's name in front of a GPU's.

    Examples
    --------
    >>> plain("NVIDIA A100-SXM4-80GB"), plain("Intel(R) Xeon(R) Gold 5320 CPU @ 2.20GHz")
    ('a100-sxm4-80gb', 'intel xeon gold 5320')
    """
    text = re.sub(r"\((r|tm)\)", "", reported.lower())
    text = re.sub(r"\s*(cpu)?\s*@.*$", "", text)
    return " ".join(text.removeprefix("nvidia ").split())


def catalog_name(reported: str, known: Iterable[str]) -> str | None:
    """Return the catalog's name of a device: from the table, or the reported name if a device is named so.

    Parameters
    ----------
    reported : str
        As the driver says it.
    known : iterable of str
        Names of devices in the catalog, a user's own included.
    """
    names = set(known)
    found = REPORTED.get(plain(reported), file_name(reported))
    return found if found in names else None


def file_name(reported: str) -> str:
    """Return a reported name as a catalog file could be named: what rows of an unknown device are recorded under.

    Examples
    --------
    >>> file_name("NVIDIA GeForce RTX 3060"), file_name("Intel(R) Xeon(R) Processor")
    ('geforce-rtx-3060', 'intel-xeon-processor')
    """
    return re.sub(r"[^a-z0-9.]+", "-", plain(reported).replace("+", "-plus")).strip("-") or "unknown"
