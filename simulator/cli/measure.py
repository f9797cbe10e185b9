"""``memroof measure``: time kernels, copies, collectives and steps on this machine."""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulator.cli.options import json_option, open_catalog, path_option
from simulator.cli.output import note, print_json, print_lines

if TYPE_CHECKING:
    from simulator.measure import Campaign, Facts, Row


@click.command("measure")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Measurements folder: the rows go to DIR/memroof-measure/measurements.csv.",
)
@click.option(
    "--device",
    "kind",
    type=click.Choice(["cuda", "cpu"]),
    help="What to measure; the first GPU if there is one, else the CPU.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    default=7.5,
    show_default=True,
    help="Time for the whole campaign; what it does not suffice for is left out evenly.",
)
@click.option(
    "--only",
    metavar="GROUP,...",
    help="Groups to measure: gemm, attention, elementwise, copy, collective, training, decode.",
)
@click.option("--name", metavar="NAME", help="Device in the catalog, if the driver's name does not tell.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and of the operands.")
@path_option
@json_option
def command(
    output: Path,
    kind: str | None,
    minutes: float,
    only: str | None,
    name: str | None,
    seed: int,
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Measure this machine, for `memroof calibrate --measurements DIR`.

    Products, attention, element-wise kernels, copies, collectives if there are several GPUs, one training step and one
    decode loop with their peaks of memory. Needs PyTorch: pip install 'memroof[measure]'.
    """
    from simulator.measure import GRIDS, MEASUREMENTS, plan, run_campaign, summary, write_record
    from simulator.specs import MemroofError

    catalog = open_catalog(paths)
    if name is not None:
        catalog.processor(name)
    if importlib.util.find_spec("torch") is None:
        raise MemroofError("measuring needs PyTorch: pip install 'memroof[measure]'")
    groups = [group.strip() for group in only.split(",") if group.strip()] if only else []
    from simulator.measure.backend_torch import TorchBackend, default_kind

    backend = TorchBackend(kind or default_kind(), catalog, seed)
    facts = backend.facts(name)
    cases = plan(GRIDS[facts.kind], facts.target, catalog, only=groups, seed=seed)
    if not cases:
        raise MemroofError(f"nothing to measure: {', '.join(groups)} needs more than {facts.reported} has")
    note(f"measuring {facts.reported} as {facts.device}: {len(cases)} cases, {minutes:g} min at most")
    for doubt in facts.doubts:
        note(f"doubt: {doubt}")
    campaign = run_campaign(cases, backend, facts.target.memory, 60.0 * minutes, progress=note)
    if not campaign.measured:
        raise MemroofError(f"no case could be measured: {campaign.skipped[0].reason}")
    command_line = shlex.join(["memroof", *sys.argv[1:]])
    rows = write_record(output, campaign, facts, command_line, datetime.date.today().isoformat())
    if as_json:
        print_json(
            {
                "device": facts.device, "reported": facts.reported, "seconds": campaign.seconds,
                "file": str(output / MEASUREMENTS), "summary": summary(rows), "skipped": _skipped(campaign),
            }
        )  # fmt: skip
    else:
        print_lines(_lines(facts, rows, campaign))
    note(f"wrote {output / MEASUREMENTS}")
    if facts.device not in catalog.names("device"):
        note(_how_to_add(facts, output))
    return 0


def _lines(facts: Facts, rows: list[Row], campaign: Campaign) -> list[str]:
    from simulator.measure import summary
    from simulator.report.layout import columns, quantity

    table = [
        (
            "operator",
            "format",
            "kernel",
            "cases",
            "best TFLOP/s",
            "best GB/s",
            "shortest",
            "spread",
            "peak memory",
        )
    ]
    for line in summary(rows):
        table.append(
            (
                line["operator"], line["format"], line["kernel"], str(line["cases"]),
                f"{line['flops_per_second'] / 1e12:.3g}" if line["flops_per_second"] else "-",
                f"{line['bytes_per_second'] / 1e9:.3g}" if line["bytes_per_second"] else "-",
                quantity(line["shortest"], "seconds"), f"{line['spread']:.1%}",
                quantity(line["peak_allocated"], "bytes") if line["peak_allocated"] else "-",
            )
        )  # fmt: skip
    head = f"{facts.device} ({facts.reported}): {len(rows)} cases in {campaign.seconds:.0f} s"
    left_out = [
        f"left out: {line['cases']} of {line['group']}: {line['reason']}" for line in _skipped(campaign)
    ]
    return [head, "", *columns(table, right=range(3, 9)), *([""] if left_out else []), *left_out]


def _skipped(campaign: Campaign) -> list[dict[str, object]]:
    from collections import Counter

    reasons = Counter((skip.case.group, skip.reason) for skip in campaign.skipped)
    return [{"group": group, "reason": reason, "cases": count} for (group, reason), count in reasons.items()]


def _how_to_add(facts: Facts, output: Path) -> str:
    return (
        f"{facts.reported!r} is not in the catalog, so that its rows bear the name {facts.device!r}. Give a catalogued device "
        f"with --name, or write hardware_specs/devices/{facts.device}.yaml in a folder of your own from its data sheet "
        "(`memroof show device h100-sxm` and the shipped files show the keys), then run "
        f"memroof calibrate --measurements {output} --path FOLDER -o FOLDER/hardware_specs/calibration"
    )
