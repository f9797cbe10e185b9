"""``memroof fleet``: replicas, power and dollars that a load needs."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.lazy import EXIT_OK, EXIT_UNFIT
from simulator.cli.load import numbers
from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import print_json, print_lines


@click.command(
    "fleet",
    epilog="For example: memroof fleet serving/qwen2.5-32b-2xh100-slo --load '100 req/s' --headroom 0.3 --spares 2",
)
@scenario_argument
@click.option(
    "--load", "asked", required=True, metavar="LOAD",
    help="Requests a second ('100 req/s'), or clients of a closed loop, or speed of a trace.",
)  # fmt: skip
@click.option(
    "--headroom", type=click.FloatRange(min=0.0), default=0.2, show_default=True,
    help="By which the load may rise, relative.",
)  # fmt: skip
@click.option(
    "--spares", type=click.IntRange(min=0), default=1, show_default=True,
    help="Replicas that may be down meanwhile (N + k).",
)  # fmt: skip
@click.option("--requests", type=click.IntRange(min=1), metavar="N", help="Length of the runs.")
@set_option
@path_option
@json_option
def command(
    scenario: str,
    asked: str,
    headroom: float,
    spares: int,
    requests: int | None,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Size a fleet: how many copies of a serving scenario's replica a load needs, with headroom and spares.

    Each replica holds what `memroof capacity` finds. The fleet is then run at the load with all replicas, and at the
    load with its headroom while every spare is down.
    """
    from simulator.analysis.fleet import fleet
    from simulator.report.serving import fleet_document, fleet_lines

    values = numbers("--load", asked)
    if len(values) != 1:
        raise click.UsageError(f"--load {asked}: expected one load")
    found = fleet(
        scenario, values[0], headroom=headroom, spares=spares, requests=requests, paths=paths,
        overrides=assigned(assignments),
    )  # fmt: skip
    if as_json:
        print_json(fleet_document(found))
    else:
        print_lines(fleet_lines(found))
    return EXIT_OK if found.worst.holds else EXIT_UNFIT
