"""``memroof explain``: what an answer is made of and what it rests on."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.lazy import EXIT_OK, EXIT_UNFIT
from simulator.cli.options import (
    assigned,
    json_option,
    open_catalog,
    path_option,
    scenario_argument,
    set_option,
)
from simulator.cli.output import print_json, print_lines


@click.command("explain")
@scenario_argument
@set_option
@path_option
@json_option
def command(scenario: str, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool) -> int:
    """Show what an answer is made of: ledger, time, sensitivity, doubt, formulas and sources, assumptions."""
    from simulator.analysis import run
    from simulator.report.text import explain_lines

    result = run(scenario, catalog=open_catalog(paths, assigned(assignments)))
    if as_json:
        effects = {row.figure: {"change": row.change, "effect": row.effect} for row in result.sensitivity()}
        print_json({**result.to_dict(), "sensitivity": effects})
    else:
        print_lines(explain_lines(result))
    return EXIT_OK if result.ok else EXIT_UNFIT
