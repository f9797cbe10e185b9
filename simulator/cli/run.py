"""``memroof run``: answer a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from simulator.specs import Catalog, Scenario


@click.command("run")
@scenario_argument
@set_option
@path_option
@json_option
def command(scenario: str, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool) -> int:
    """Answer a scenario: does it fit, how fast is it, what binds it, what does it cost, how sure are we.

    SCENARIO is a name of `memroof list scenarios` or a YAML file. Exit code 3 says that it does not fit or misses a
    limit.
    """
    return answer(scenario, open_catalog(paths, assigned(assignments)), as_json)


def answer(scenario: str | Scenario, catalog: Catalog, as_json: bool) -> int:
    """Run a scenario, print its answer and return the exit code."""
    from simulator.analysis import run
    from simulator.report.text import run_lines

    result = run(scenario, catalog=catalog)
    if as_json:
        print_json(result.to_dict())
    else:
        print_lines(run_lines(result))
    return EXIT_OK if result.ok else EXIT_UNFIT
