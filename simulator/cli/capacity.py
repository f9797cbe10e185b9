"""``memroof capacity``: the largest load that holds a serving scenario's objective and limits."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.lazy import EXIT_OK, EXIT_UNFIT
from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import print_json, print_lines


@click.command(
    "capacity",
    epilog="For example: memroof capacity serving/qwen2.5-32b-2xh100-slo --set slo.share=0.99",
)
@scenario_argument
@click.option(
    "--requests", type=click.IntRange(min=1), metavar="N",
    help="Length of the runs; else the scenario's, and enough for a steady state.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(min=1e-4, max=0.5), default=0.01, show_default=True,
    help="Relative: a load larger by this misses.",
)  # fmt: skip
@click.option(
    "--draws", type=click.IntRange(min=0), default=4, show_default=True,
    help="Further seeds that the error of sampling is found from.",
)  # fmt: skip
@set_option
@path_option
@json_option
def command(
    scenario: str,
    requests: int | None,
    tolerance: float,
    draws: int,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Find the largest load that holds a serving scenario's objective (slo) and limits.

    The load is the request rate of random arrivals, the number of clients of a closed loop, or the speed of a recorded
    trace. Without objective and limits it is what the queue stands. Exit code 3 says that no load holds.
    """
    from simulator.analysis.capacity import largest_rate
    from simulator.report.serving import capacity_document, capacity_lines

    found = largest_rate(
        scenario,
        requests=requests,
        tolerance=tolerance,
        draws=draws,
        paths=paths,
        overrides=assigned(assignments),
    )
    if as_json:
        print_json(capacity_document(found))
    else:
        print_lines(capacity_lines(found))
    return EXIT_OK if found.value else EXIT_UNFIT
