"""Options that commands share, and how they become a catalog and overrides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from simulator.specs import Catalog

Command = TypeVar("Command", bound=Callable[..., Any])


def path_option(command: Command) -> Command:
    """Add ``--path``: folders that are searched before the shipped catalog."""
    return click.option(
        "--path",
        "paths",
        multiple=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="Search this folder for devices, models and scenarios first (repeatable).",
    )(command)


def set_option(command: Command) -> Command:
    """Add ``--set key=value``: overrides of the scenario or of what it names."""
    return click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key: strategy.tensor_parallel=4, device.a100-80gb-sxm.power.limit='300 W' (repeatable).",
    )(command)


def json_option(command: Command) -> Command:
    """Add ``--json``: one JSON document with SI numbers on stdout."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document with SI numbers instead of text."
    )(command)


def scenario_argument(command: Command) -> Command:
    """Add the argument SCENARIO: a name of the catalog or a path."""
    return click.argument("scenario", metavar="SCENARIO", shell_complete=complete("scenario"))(command)


def complete(*kinds: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a shell completion over the names of catalog kinds (and files)."""

    def names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name)
            for kind in kinds
            for name in open_catalog(ctx.params.get("paths") or ()).names(kind)
            if name.startswith(incomplete)
        ]
        return found or [CompletionItem(incomplete, type="file")]

    return names


def assigned(assignments: Iterable[str], option: str = "--set") -> dict[str, str]:
    """Read ``key=value`` texts as a mapping; a text without ``=`` or a key twice is a usage error."""
    table: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise click.UsageError(f"{option} {text!r}: write it like {option} strategy.tensor_parallel=4")
        if key in table:
            raise click.UsageError(f"{option} {key} is given twice")
        table[key] = value.strip()
    return table


def open_catalog(paths: Iterable[Path] = (), overrides: dict[str, str] | None = None) -> Catalog:
    """Return the catalog over the user's folders, ``MEMROOF_PATH`` and the shipped data."""
    from simulator.specs import Catalog

    return Catalog(paths, overrides)
