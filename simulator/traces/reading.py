"""Which format a file is in, and reading it: one table, one module a format."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from simulator.specs.errors import MemroofError, unknown
from simulator.traces.trace import Trace, opened

HEAD = 1 << 16
"""Bytes at the beginning that tell the format."""


class Reader(Protocol):
    """What the module of a format offers."""

    def matches(self, head: str) -> bool:
        """Whether a file that begins so is in this format; a binary file's bytes come as Latin-1."""
        ...

    def read(self, file: Path) -> Trace:
        """Read a file; raises :class:`MemroofError` with file and line."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what it is, and the module that reads it."""

    description: str
    module: str

    @property
    def reader(self) -> Reader:
        """The module, imported now."""
        return cast(Reader, importlib.import_module(self.module))


FORMATS: Mapping[str, Format] = {
    "pytorch": Format("PyTorch profiler (Kineto), Chrome JSON", "simulator.traces.pytorch_profiler"),
    "nsight-sqlite": Format("Nsight Systems SQLite export", "simulator.traces.nsight_sqlite"),
    "nsight-csv": Format("Nsight Systems CSV: cuda_gpu_trace, cuda_gpu_kern_sum", "simulator.traces.nsight_csv"),
    "nccl-tests": Format("nccl-tests output", "simulator.traces.nccl_tests"),
    "sglang": Format("SGLang bench_serving JSON lines", "simulator.traces.sglang"),
    "vllm": Format("vLLM benchmark JSON: serve, throughput, latency", "simulator.traces.vllm"),
    "llama-bench": Format("llama-bench Markdown, CSV or JSON", "simulator.traces.llama_bench"),
    "kernel-table": Format("CSV of kernels or of sums by category", "simulator.traces.kernel_table"),
    "operators": Format("CSV: operator, shape, device, time", "simulator.traces.operator_table"),
}  # fmt: skip
"""Formats by name, in the order in which they are tried on a file."""


def read_trace(file: Path, format: str | None = None) -> Trace:
    """Read a measured file.

    Parameters
    ----------
    file : Path
        Plain or gzip.
    format : str, optional
        A key of :data:`FORMATS`; found out from the content if absent.

    Raises
    ------
    MemroofError
        One line: an unknown format, a file that cannot be read, or what is wrong with its content and where.
    """
    if format is not None and format not in FORMATS:
        raise MemroofError(unknown("format", format, FORMATS))
    return FORMATS[format or detect(file)].reader.read(file)


def detect(file: Path) -> str:
    """Return the name of the format that a file's content is in.

    Raises
    ------
    MemroofError
        If none fits.
    """
    with opened(file) as stream:
        content = stream.read(HEAD)
    if not content.strip():
        raise MemroofError(f"{file}: holds nothing")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    binary = b"\0" in content[:16] and encoding == "utf-8"
    head = content.decode("latin-1" if binary else encoding, errors="replace").lstrip("\ufeff")
    for name, format in FORMATS.items():
        if format.reader.matches(head):
            return name
    known = "; ".join(f"{name} ({format.description})" for name, format in FORMATS.items())
    raise MemroofError(f"{file}: in none of the formats that are read: {known}")
