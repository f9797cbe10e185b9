"""The errors that a user can cause; each is one clear line, and none is shown as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class MemroofError(Exception):
    """Base of every error that a user's input can cause; the command line prints it and exits with 2."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of an input: where it stands, the key path, and what was found and expected."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        # an assignment is called by its key
        told = not self.key or (not self.line and self.file.endswith(self.key))
        return f"{place}: {self.message}" if told else f"{place}: {self.key}: {self.message}"


class SpecError(MemroofError):
    """All the problems of one file (or of one set of overrides), in the order in which they stand."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column, p.key, p.message)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnknownNameError(MemroofError):
    """A name that no file of the catalog bears."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        super().__init__(unknown(kind, name, known))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest names that exist."""
    return f"unknown {kind} {name!r}{did_you_mean(name, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known names, or an empty text."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    # names that are much further off than the nearest one only distract
    likeness = [difflib.SequenceMatcher(None, match, name.lower()).ratio() for match in near]
    near = [match for match, ratio in zip(near, likeness, strict=True) if ratio >= likeness[0] - 0.1]
    if not near:
        return f"; known: {', '.join(sorted(by_lower.values()))}" if 0 < len(by_lower) <= 12 else ""
    return "; did you mean " + " or ".join(repr(by_lower[match]) for match in near) + "?"
