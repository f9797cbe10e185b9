"""Scenarios from flags: the same schema as a file, with the flag as the place of an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.options import assigned, complete, json_option, open_catalog, path_option, set_option

if TYPE_CHECKING:
    from simulator.specs import Catalog, Scenario
    from simulator.specs.source import Document


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag and the key of the scenario that it sets."""

    name: str
    key: str
    help: str
    switch: str = ""
    """What the key becomes when the flag stands alone; empty for a flag that takes a value."""
    required: bool = False


HARDWARE_FLAGS = (
    Flag("--nodes", "hardware.nodes", "Nodes, where HARDWARE is a node or cluster."),
    Flag("--count", "hardware.count", "Devices, where HARDWARE is a bare device."),
)


def scenario_command(kind: str, name: str, flags: Sequence[Flag], help_text: str) -> click.Command:
    """Build the command that answers a scenario of a kind from flags.

    Parameters
    ----------
    kind : str
        training, serving or offload.
    name : str
        Of the command.
    flags : sequence of Flag
        In the order of the help.
    help_text : str
        Docstring of the command.
    """
    every = (*flags, *HARDWARE_FLAGS)

    def callback(
        model: str, hardware: str, paths: tuple[Path, ...], assignments: tuple[str, ...], **options: Any
    ) -> int:
        from simulator.cli.run import answer

        overrides = assigned(assignments)
        catalog = open_catalog(paths, overrides)
        given = [(flag, options[_variable(flag.name)]) for flag in every]
        entries = [(flag.key, flag.switch or value, flag.name) for flag, value in given if value]
        document = build_document(kind, name, model, hardware, entries, catalog)
        scenario = check_document(document, catalog, overrides)
        if options["save"] is not None:
            from simulator.cli.output import note, write_text

            write_text(options["save"], "\n".join(yaml_lines(document.data)) + "\n")
            note(f"wrote {options['save']}")
        return answer(scenario, catalog, options["as_json"])

    command: Callable[..., Any] = callback
    for decorate in (json_option, path_option, set_option):
        command = decorate(command)
    command = click.option(
        "--save",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write the scenario as YAML too.",
    )(command)
    for flag in reversed(every):
        command = click.option(
            flag.name, is_flag=bool(flag.switch), required=flag.required, help=flag.help,
            metavar=None if flag.switch else flag.key.rpartition(".")[2].upper(),
        )(command)  # fmt: skip
    command = click.argument(
        "hardware", metavar="HARDWARE", shell_complete=complete("device", "node", "cluster")
    )(command)
    command = click.argument("model", metavar="MODEL", shell_complete=complete("model"))(command)
    return click.command(name, help=help_text)(command)


def build_document(
    kind: str,
    command: str,
    model: str,
    hardware: str,
    entries: Sequence[tuple[str, str, str]],
    catalog: Catalog,
) -> Document:
    """Return the scenario's tree; each value's place is the flag that gave it.

    Parameters
    ----------
    kind : str
        Of the scenario.
    command : str
        Name of the command, the place of what no flag gave.
    model, hardware : str
        The two arguments.
    entries : sequence of (str, str, str)
        Dotted key, value as typed, flag.
    catalog : Catalog
        Tells a device from a node or cluster.
    """
    from simulator.specs.source import Document

    level = (
        "device"
        if hardware in catalog.names("device")
        else "cluster"
        if hardware in catalog.names("cluster")
        else "node"
    )
    data: dict[str, Any] = {
        "kind": kind,
        "hardware": {level: hardware},
        "model": model,
        "workload": {},
        "strategy": {},
    }
    marks: dict[tuple[str | int, ...], tuple[str, int, int]] = {
        (): (f"memroof {command}", 0, 0),
        ("model",): ("MODEL", 0, 0),
        ("hardware",): ("HARDWARE", 0, 0),
        ("hardware", level): ("HARDWARE", 0, 0),
    }
    for key, value, flag in entries:
        path = tuple(key.split("."))
        here = data
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        marks[path] = (flag, 0, 0)
    return Document(f"memroof {command}", {key: value for key, value in data.items() if value != {}}, marks)


def check_document(document: Document, catalog: Catalog, overrides: dict[str, str]) -> Scenario:
    """Apply ``--set`` to a tree built from flags and check it as a file would be.

    Raises
    ------
    SpecError
        With every problem, each at its flag.
    """
    from simulator.specs import FOLDERS
    from simulator.specs.source import override

    own = {
        key: value
        for key, value in overrides.items()
        if key.partition(".")[0] not in FOLDERS or key in ("model", "layers")
    }
    scenario = catalog.check_scenario(override(document, own) if own else document)
    choice = scenario.hardware
    name = f"{scenario.model} on {choice.device or choice.node or choice.cluster}"
    return scenario.model_copy(update={"name": name})


def yaml_lines(data: dict[str, Any], indent: str = "") -> list[str]:
    """Write a scenario's tree as YAML; values stay as typed, quoted only where YAML needs it."""
    lines: list[str] = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *yaml_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_plain(str(value))}")
    return lines


def _plain(text: str) -> str:
    if re.fullmatch(r"[\w.$/+-][\w.$/+ %-]*", text) and text == text.strip():
        return text
    return "'" + text.replace("'", "''") + "'"


def _variable(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
