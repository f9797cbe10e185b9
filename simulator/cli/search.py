"""``memroof search``: the best training strategies for a scenario's model, hardware and batch."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import print_json, print_lines


@click.command("search", epilog="For example: memroof search training/gpt3-175b-64xa100 --top 3")
@scenario_argument
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Strategies that the event engine runs.",
)
@click.option(
    "--objective", type=click.Choice(["step_time", "cost"]), default="step_time", show_default=True,
    help="What shall be least: seconds of a step, or GPU-seconds.",
)  # fmt: skip
@click.option(
    "--vary", "varied", multiple=True, metavar="FIELD=A,B,C",
    help="Values of a strategy's field instead of the usual ones (repeatable).",
)  # fmt: skip
@set_option
@path_option
@json_option
def command(
    scenario: str,
    top: int,
    objective: str,
    varied: tuple[str, ...],
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Price every legal training strategy in closed form and run the best in the event engine."""
    from simulator.analysis.search import search
    from simulator.cli.whatif import split_values
    from simulator.report.search import search_document, search_lines

    vary = {key: split_values(key, text) for key, text in assigned(varied, "--vary").items()}
    found = search(
        scenario, top=top, objective="cost" if objective == "cost" else "step_time", vary=vary, paths=paths,
        overrides=assigned(assignments),
    )  # fmt: skip
    if as_json:
        print_json(search_document(found))
    else:
        print_lines(search_lines(found))
    if not found.fits:
        raise click.exceptions.Exit(3)
