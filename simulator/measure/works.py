"""What a measured kernel asks of the hardware, in the words of the model graph: the same for the plan and for validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.graph import FORMAT_BYTES, Attention, Collective, Elementwise, Matmul, Work
from simulator.specs import MemroofError

STREAMS: Mapping[str, tuple[int, int]] = {
    "copy": (1, 1),
    "add": (2, 1),
    "silu": (1, 1),
    "layer_norm": (1, 1),
    "softmax": (1, 1),
}
"""Element-wise and norm kernels that are measured: tensors of rows x columns read and written."""
OUTPUT_BYTES: Mapping[str, float] = {"fp8": 2.0, "int8": 4.0}
"""Bytes an element of a product's output where it is wider than the operands: bf16 of fp8, int32 of int8."""
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("m", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "queries", "keys", "head_dim"),
    "decode-attention": ("batch", "heads", "kv_heads", "queries", "keys", "head_dim"),
    "elementwise": ("kernel", "rows", "columns"),
    "collective": ("kind", "ranks", "gpus", "size"),
}
"""Dimensions of each operator's shape; a prefill is causal, a decode has one query a sequence."""


def work(operator: str, format: str, shape: Mapping[str, Any]) -> Work:
    """Return the work of a kernel.

    Parameters
    ----------
    operator : str
        A key of :data:`OPERATORS`.
    format : str
        Number format.
    shape : mapping
        The dimensions that :data:`OPERATORS` lists: numbers or arrays, except ``kernel`` and ``kind``.

    Raises
    ------
    MemroofError
        If the operator, the format or the element-wise kernel is none that is measured.
    """
    if operator not in OPERATORS or format not in FORMAT_BYTES:
        raise MemroofError(f"{operator} in {format} is no kernel that memroof measures")
    width = FORMAT_BYTES[format]
    if operator == "matmul":
        product = Matmul(
            shape["m"], shape["n"], shape["k"], format=format,
            left_bytes=width, right_bytes=width, out_bytes=OUTPUT_BYTES.get(format, width),
        )  # fmt: skip
        # each repeat finds the operands where the one before left them
        return replace(product, reuse_distance=product.bytes)
    if operator in ("attention", "decode-attention"):
        return Attention(
            shape["batch"], shape["heads"], shape["kv_heads"], shape["queries"], shape["keys"],
            shape["head_dim"], shape["head_dim"], 2.0 * shape["kv_heads"] * shape["head_dim"],
            decode=operator == "decode-attention", format=format, kv_bytes=width, activation_bytes=width,
        )  # fmt: skip
    if operator == "collective":
        return Collective(shape["kind"], "tensor", shape["size"])
    if shape["kernel"] not in STREAMS:
        raise MemroofError(f"element-wise kernel {shape['kernel']!r} is none of {', '.join(STREAMS)}")
    read, written = STREAMS[shape["kernel"]]
    elements = 1.0 * shape["rows"] * shape["columns"]
    return Elementwise(elements * read * width, elements * written * width)
