"""``memroof fit``: does a model fit some hardware for inference, and how much of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from simulator.cli.lazy import EXIT_OK, EXIT_UNFIT
from simulator.cli.options import assigned, complete, json_option, open_catalog, path_option, set_option
from simulator.cli.output import print_json, print_lines

_POSITIVE = click.IntRange(min=1)


@click.command("fit")
@click.argument("model", metavar="MODEL", shell_complete=complete("model"))
@click.argument("hardware", metavar="HARDWARE", shell_complete=complete("device", "node", "cluster"))
@click.option(
    "--precision",
    default="bf16",
    show_default=True,
    metavar="FORMAT",
    help="Format that weights are stored in.",
)
@click.option("--kv", metavar="FORMAT", help="Format that keys and values are stored in; 16 bit if absent.")
@click.option("--context", type=_POSITIVE, metavar="TOKENS", help="Tokens of a sequence, prompt and output.")
@click.option(
    "--tp", type=_POSITIVE, metavar="DEGREE", help="Devices that share the model; all of a node if absent."
)
@click.option("--nodes", type=_POSITIVE, help="Nodes, where HARDWARE is a node or cluster.")
@click.option("--count", type=_POSITIVE, help="Devices, where HARDWARE is a bare device.")
@set_option
@path_option
@json_option
def command(
    model: str,
    hardware: str,
    precision: str,
    kv: str | None,
    context: int | None,
    tp: int | None,
    nodes: int | None,
    count: int | None,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Say whether a model fits some hardware for inference: largest batch and context, what would make it fit."""
    from simulator.analysis import fit
    from simulator.report.text import fit_lines
    from simulator.specs import NumberFormat
    from simulator.specs.errors import MemroofError, unknown
    from simulator.specs.scenario_base import HardwareChoice

    for flag, value in (("--precision", precision), ("--kv", kv)):
        if value is not None and value not in get_args(NumberFormat):
            raise MemroofError(f"{flag}: {unknown('number format', value, get_args(NumberFormat))}")
    catalog = open_catalog(paths, assigned(assignments))
    device = hardware in catalog.names("device")
    if count and not device:
        raise click.UsageError("--count belongs to a bare device; use --nodes for a node or cluster")
    if nodes and device:
        raise click.UsageError("--nodes belongs to a node or cluster; use --count for a bare device")
    choice = (
        HardwareChoice(device=hardware, count=count) if device else HardwareChoice(node=hardware, nodes=nodes)
    )
    report = fit(
        model,
        choice,
        catalog=catalog,
        precision=precision,
        kv_precision=kv,
        context=context,
        tensor_parallel=tp,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(fit_lines(report))
    return EXIT_OK if report.fits else EXIT_UNFIT
