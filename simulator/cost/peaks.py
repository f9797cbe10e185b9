"""Peak rates of a device by number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.specs.errors import MemroofError
from simulator.specs.hardware import Processor

WIDE = ("fp32", "fp64")
HALF = ("fp16", "bf16")


def peak_flops(device: Processor, format: str, matrix: bool = True) -> float:
    """Return the dense peak of a device for a number format.

    Parameters
    ----------
    device : Processor
        A GPU, TPU, NPU or CPU.
    format : str
        Number format of the product (``bf16``, ``fp8``, ``tf32``, ...).
    matrix : bool
        True for matrix products (tensor cores, MXUs), false for vector arithmetic.

    Returns
    -------
    float
        Peak [FLOP/s], without structured sparsity.

    Raises
    ------
    MemroofError
        If the device has no unit for the format. fp16 and bf16 are never exchanged silently.

    Notes
    -----
    Two widenings are allowed, since every compiler and library does them: fp32 and fp64 products run on the
    vector units where the matrix units lack them (fp32 is rounded to tf32 only if tf32 is asked for), and
    vector arithmetic on 16-bit values is done in fp32 where the device has no 16-bit rate (values are
    converted on load).
    """
    units = device.compute
    # a format that no device has is looked up too
    vector: Mapping[Any, float] = units.vector
    table: Mapping[Any, float] = units.matrix if matrix and units.matrix else vector
    if format in table:
        return table[format]
    if format in WIDE and format in vector:
        return vector[format]
    if format in HALF and table is vector and "fp32" in vector:
        return vector["fp32"]
    kind = "matrix units" if matrix and units.matrix else "vector units"
    raise MemroofError(f"{device.name} has no {format} {kind}; it has {', '.join(table)}")
