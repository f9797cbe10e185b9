"""``memroof compare``: a measured trace or benchmark against a scenario."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from simulator.cli.options import assigned, complete, json_option, open_catalog, path_option, set_option
from simulator.cli.output import print_json, print_lines


def _formats(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from simulator.traces import FORMATS

    return [
        CompletionItem(name, help=format.description)
        for name, format in FORMATS.items()
        if name.startswith(incomplete)
    ]


@click.command("compare")
@click.argument(
    "trace", metavar="TRACE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)  # fmt: skip
@click.argument("scenario", metavar="SCENARIO", shell_complete=complete("scenario"))
@click.option(
    "--format", "format", metavar="NAME", shell_complete=_formats,
    help="Format of TRACE where its content does not tell: pytorch, nsight-sqlite, nsight-csv, nccl-tests, vllm, sglang, "
    "llama-bench, kernel-table, operators.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N",
    help="Steps (training) or iterations (serving) that the trace holds; what it marks itself, or 1, if absent.",
)  # fmt: skip
@click.option(
    "--stage", type=click.IntRange(min=0), default=0, metavar="N", help="Pipeline stage of the traced GPU."
)
@set_option
@path_option
@json_option
def command(
    trace: Path,
    scenario: str,
    format: str | None,
    steps: int | None,
    stage: int,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Compare what was measured with what SCENARIO predicts.

    TRACE is a trace of one GPU's kernels (PyTorch profiler, Nsight Systems), the output of nccl-tests, vLLM, SGLang or
    llama-bench, or a CSV of operators; plain or gzip. Kernels are grouped by class; what no rule knows is named with its
    time.
    """
    from simulator.analysis import load
    from simulator.report.comparison import comparison_lines
    from simulator.traces import compare, read_trace

    measured = read_trace(trace, format)
    setup = load(scenario, catalog=open_catalog(paths, assigned(assignments)))
    comparison = compare(measured, setup, steps=steps, stage=stage)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_lines(comparison_lines(comparison))
    return 0
