"""PyTorch profiler traces (Kineto): Chrome trace JSON, read event by event so that memory stays bounded.

An event of category ``kernel``, ``gpu_memcpy`` or ``gpu_memset`` is what ran on a device, in microseconds; the CPU
operator that launched it has the same ``External id`` and, where shapes were recorded, ``Input Dims``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.traces.trace import Kernel, Trace, fault, number, opened

CHUNK = 1 << 22
LONGEST_EVENT = 1 << 26
"""Characters of one event beyond which a file counts as broken rather than as large."""
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset"})
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "_scaled_mm", "_int_mm")
"""Operators of ``aten`` whose input dimensions are read as products."""
STEP = "ProfilerStep#"
_MICRO = 1e-6
_BETWEEN = " \t\r\n,"


def matches(head: str) -> bool:
    """Whether the text is a Chrome trace: an object with traceEvents, or a list of events with phases."""
    start = head.lstrip()[:1]
    if start == "{":
        return '"traceEvents"' in head or '"deviceProperties"' in head or '"schemaVersion"' in head
    return start == "[" and '"ph"' in head


def read(file: Path) -> Trace:
    """Read the kernels of the lowest device of a trace, with the operators that launched them."""
    rows: list[tuple[int, int | None, Kernel]] = []
    launched: dict[int, tuple[str, tuple[int, ...]]] = {}
    steps: set[str] = set()
    for line, event in events(file):
        category = str(event.get("cat", "")).lower()
        if category in ON_DEVICE and event.get("ph") == "X":
            rows.append(_kernel(event, category, file, line))
        elif category == "cpu_op":
            _remember(event, launched)
        elif str(event.get("name", "")).startswith(STEP):
            steps.add(str(event["name"]))
    if not rows:
        raise fault(file, "holds no GPU kernels; record with ProfilerActivity.CUDA")
    device = min(row[0] for row in rows)
    kernels = [_with_operator(kernel, launched.get(key or -1)) for at, key, kernel in rows if at == device]
    devices = len({row[0] for row in rows})
    notes = (f"of {devices} devices, device {device} was read",) if devices > 1 else ()
    return Trace(str(file), "pytorch", tuple(kernels), steps=len(steps) or None, notes=notes)


def events(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, event) of a Chrome trace without holding all of it.

    Raises
    ------
    MemroofError
        With the line at which the JSON is broken, or if there is no list of events.
    """
    decoder = json.JSONDecoder()
    with opened(file) as stream:
        text = _Window(stream, file)
        text.find_events()
        while True:
            if not text.skip(_BETWEEN):
                if text.bare_list:  # the closing bracket of a bare list is optional
                    return
                raise fault(file, "ends inside traceEvents", text.line)
            if text.current == "]":
                return
            event = text.decode(decoder)
            if isinstance(event, dict):
                yield text.line, event


class _Window:
    """A piece of the text that moves forward, and the line at which it stands."""

    def __init__(self, stream: Any, file: Path) -> None:
        self._stream, self._file = stream, file
        self._text, self._at, self.line, self._done = "", 0, 1, False
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.bare_list = False

    @property
    def current(self) -> str:
        """The character at which it stands."""
        return self._text[self._at]

    def find_events(self) -> None:
        """Move behind the bracket that opens the list of events."""
        self._more()
        self.skip(" \t\r\n\ufeff")
        if self._text[self._at : self._at + 1] == "[":
            self.bare_list = True
            self._move(self._at + 1)
            return
        found = self._search('"traceEvents"')
        self._move(found + len('"traceEvents"'))
        if not self.skip(" \t\r\n:") or self.current != "[":
            raise fault(self._file, "traceEvents is no list", self.line)
        self._move(self._at + 1)

    def skip(self, characters: str) -> bool:
        """Move past any of some characters; False at the end of the file."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in characters:
                at += 1
            self._move(at)
            if at < len(self._text):
                return True
            if not self._more():
                return False

    def decode(self, decoder: json.JSONDecoder) -> Any:
        """Read the JSON value that begins here and move behind it."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                line = self.line + self._text.count("\n", self._at, error.pos)
                # the value may only be cut off at the end of the window
                if len(self._text) - self._at < LONGEST_EVENT and self._more():
                    continue
                raise fault(self._file, f"not valid JSON: {error.msg}", line) from None
            except RecursionError:
                raise fault(self._file, "not valid JSON: nested too deeply", self.line) from None
            self._move(end)
            return value

    def _search(self, wanted: str) -> int:
        start = self._at
        while True:
            found = self._text.find(wanted, start)
            if found >= 0:
                return found
            start = max(self._at, len(self._text) - len(wanted))
            if not self._more():
                raise fault(self._file, f"has no {wanted}; it is no Chrome trace")

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        if self._done:
            return False
        content = self._stream.read(CHUNK)
        self._done = not content
        try:
            added = self._decode(content, self._done)
        except UnicodeDecodeError:
            raise fault(self._file, "not UTF-8 text", self.line) from None
        self._text, self._at = self._text[self._at :] + added, 0
        return not self._done


def _kernel(event: dict[str, Any], category: str, file: Path, line: int) -> tuple[int, int | None, Kernel]:
    arguments = event.get("args")
    arguments = arguments if isinstance(arguments, dict) else {}
    start = number(event.get("ts"), file, "ts of a kernel", line, least=-1e18) * _MICRO
    duration = number(event.get("dur"), file, "dur of a kernel", line) * _MICRO
    device, stream = arguments.get("device", event.get("pid")), arguments.get("stream", event.get("tid", ""))
    kernel = Kernel(
        str(event.get("name", "")), duration, start, str(stream), category if "mem" in category else "",
        correlation=_integer(arguments.get("correlation")),
    )  # fmt: skip
    return _integer(device) or 0, _integer(arguments.get("External id", arguments.get("external id"))), kernel


def _remember(event: dict[str, Any], launched: dict[int, tuple[str, tuple[int, ...]]]) -> None:
    arguments = event.get("args")
    if isinstance(arguments, dict):
        key = _integer(arguments.get("External id", arguments.get("external id")))
        if key is not None:
            name = str(event.get("name", ""))
            launched[key] = name, product_shape(name, arguments.get("Input Dims"))


def _with_operator(kernel: Kernel, operator: tuple[str, tuple[int, ...]] | None) -> Kernel:
    if operator is None:
        return kernel
    return Kernel(
        kernel.name, kernel.duration, kernel.start, kernel.stream, kernel.category, operator[0], operator[1],
        correlation=kernel.correlation,
    )  # fmt: skip


def product_shape(operator: str, dimensions: Any) -> tuple[int, ...]:
    """Return (m, n, k) of a product from the dimensions of an operator's inputs; empty where they are not a product's.

    Examples
    --------
    >>> product_shape("aten::addmm", [[64], [8, 32], [32, 64]])
    (8, 64, 32)
    >>> product_shape("aten::linear", [[2, 8, 32], [64, 32], []])
    (16, 64, 32)
    """
    name = operator.rpartition("::")[2]
    if name not in PRODUCTS or not isinstance(dimensions, list):
        return ()
    pair = dimensions[1:3] if name in ("addmm", "baddbmm") else dimensions[:2]
    if len(pair) < 2 or not all(
        isinstance(d, list) and len(d) >= 2 and all(type(x) is int for x in d) for d in pair
    ):
        return ()
    left, right = pair
    batched = name in ("bmm", "baddbmm")
    rows = left[-2]
    for size in () if batched else left[:-2]:
        rows *= size
    return rows, right[-2] if name == "linear" else right[-1], left[-1]


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
