"""YAML text to a plain tree that remembers where each value stands.

Scalars stay text: the schema decides what a scalar means, so that the guesses of YAML 1.1 (``no`` is false,
``12:30:45`` is a number, ``1e9`` is a text, ``010`` is eight) never happen. Duplicate keys are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simulator.specs.errors import Problem, SpecError, did_you_mean

KeyPath = tuple[str | int, ...]
Mark = tuple[str, int, int]
_MAXIMUM_NODES = 200_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data (dicts, lists, texts, None) and the place of every key and item."""

    file: str
    data: Any
    marks: dict[KeyPath, Mark] = field(repr=False)

    def problem(self, key: KeyPath, message: str) -> Problem:
        """Return a problem at a key path; a missing key is placed at its nearest existing parent."""
        place = key
        while place and place not in self.marks:
            place = place[:-1]
        file, line, column = self.marks.get(place, (self.file, 1 if self.marks else 0, 1))
        return Problem(file, line, column, dotted(key), message)


def read_document(path: Path) -> Document:
    """Read and parse a YAML file; raises :class:`SpecError` with file and line if it is not valid YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError([Problem(str(path), 0, 0, "", f"not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise SpecError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    return parse_document(text, str(path))


def parse_document(text: str, file: str = "<text>") -> Document:
    """Parse YAML text into a :class:`Document`.

    Raises
    ------
    SpecError
        For text that is not YAML, duplicate or non-text keys, explicit tags, and alias cycles or bombs.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpecError([Problem(file, line, column, "", f"not valid YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise SpecError([Problem(file, 1, 1, "", f"not valid YAML: {reason}")]) from None
    except (RecursionError, ValueError) as error:
        raise SpecError([Problem(file, 1, 1, "", f"not valid YAML: {type(error).__name__}")]) from None
    if root is None:
        raise SpecError([Problem(file, 1, 1, "", "the file is empty")])
    builder = _Builder(file)
    data = builder.build(root, ())
    if builder.problems:
        raise SpecError(builder.problems)
    return Document(file, data, builder.marks)


def dotted(key: KeyPath) -> str:
    """Print a key path: ``groups[0].node``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, key: KeyPath) -> Any:
        self._count += 1
        self.marks.setdefault(key, self._mark(node))
        if self._count > _MAXIMUM_NODES:
            if self._count == _MAXIMUM_NODES + 1:
                self._fault(node, key, f"more than {_MAXIMUM_NODES:,} values")
            return None
        if id(node) in self._open:
            self._fault(node, key, "an alias refers to itself")
            return None
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            self._fault(node, key, f"explicit tag {node.tag!r} is not understood; write plain values")
            return None
        if isinstance(node, yaml.ScalarNode):
            plain_null = not node.style and node.value in ("", "~", "null", "Null", "NULL")
            return None if plain_null else node.value
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
            return dict(self._items(node, key))
        finally:
            self._open.discard(id(node))

    def _items(self, node: yaml.Node, key: KeyPath) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(key_node, key, "a key must be a plain text")
                continue
            name = key_node.value
            if name in seen:
                self._fault(key_node, (*key, name), f"duplicate key; it stands already at line {seen[name]}")
                continue
            seen[name] = key_node.start_mark.line + 1
            self.marks[(*key, name)] = self._mark(key_node)
            yield name, self.build(value_node, (*key, name))

    def _mark(self, node: yaml.Node) -> Mark:
        return (self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _fault(self, node: yaml.Node, key: KeyPath, message: str) -> None:
        file, line, column = self._mark(node)
        self.problems.append(Problem(file, line, column, dotted(key), message))


def override(document: Document, assignments: Mapping[str, str], called: str = "--set ") -> Document:
    """Return a copy of a document with dotted keys set, as by ``--set strategy.tensor_parallel=4``.

    Missing mappings on the way are created; the schema later refuses keys that do not exist. Raises
    :class:`SpecError` if a key passes through a value that is not a mapping or a list. ``called`` stands before a key where
    a problem names it.
    """
    data, marks = _copy(document.data), dict(document.marks)
    for name, text in assignments.items():
        label = f"{called}{name}"
        value = parse_document(text, label).data if text.strip() else None
        parts: list[str] = name.split(".")
        here: Any = data
        path: KeyPath = ()
        for position, part in enumerate(parts):
            step = _step(here, part, label)
            last = position == len(parts) - 1
            path = (*path, step)
            marks[path] = (label, 0, 0) if last else marks.get(path, (label, 0, 0))
            if last:
                here[step] = value
                marks = {k: m for k, m in marks.items() if len(k) <= len(path) or k[: len(path)] != path}
            else:
                if isinstance(here, dict) and here.get(step) is None:
                    here[step] = {}
                here = here[step]
    return Document(document.file, data, marks)


def _step(here: Any, part: str, label: str) -> str | int:
    if isinstance(here, dict):
        return part
    if isinstance(here, list):
        if part.isdecimal() and int(part) < len(here):
            return int(part)
        raise SpecError([Problem(label, 0, 0, "", f"{part!r} is not an index into a list of {len(here)}")])
    hint = did_you_mean(str(here), ()) or ""
    raise SpecError([Problem(label, 0, 0, "", f"{part!r} cannot be set inside the value {here!r}{hint}")])


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(item) for item in data] if isinstance(data, list) else data
