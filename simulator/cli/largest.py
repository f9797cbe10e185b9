"""``memroof largest``: the largest batch, context and model that fit."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import print_json, print_lines


@click.command("largest", epilog="For example: memroof largest offload/opt-30b-t4")
@scenario_argument
@set_option
@path_option
@json_option
def command(scenario: str, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool) -> None:
    """Find the largest batch, context and model that fit a scenario's hardware with its strategy, each on its own."""
    from simulator.analysis.largest import largest
    from simulator.report.memory import largest_lines

    found = largest(scenario, paths=paths, overrides=assigned(assignments))
    if as_json:
        print_json([{key: getattr(row, key) for key in row.__slots__} for row in found])
    else:
        print_lines(largest_lines(scenario, found))
