"""The command line: one module a command, imported only when that command runs.

Exit codes: 0 ok, 2 bad input, 3 does not fit or misses its limit, 1 a bug of memroof.
"""

from __future__ import annotations

import click

from simulator.cli.lazy import LazyGroup

__all__ = ["main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("simulator.cli.run", "Answer a scenario: does it fit, how fast, what binds it."),
    "fit": ("simulator.cli.fit", "Does a model fit some hardware, and how much of it?"),
    "train": ("simulator.cli.train", "Answer a training question from flags, without a file."),
    "serve": ("simulator.cli.serve", "Answer a serving question from flags, without a file."),
    "offload": ("simulator.cli.offload", "Answer an offloading question from flags, without a file."),
    "whatif": ("simulator.cli.whatif", "Vary keys of a scenario and compare the answers."),
    "search": ("simulator.cli.search", "Find the best training strategies for a scenario."),
    "capacity": ("simulator.cli.capacity", "Find the largest load that holds a serving scenario's SLO."),
    "load": ("simulator.cli.load", "Latency, goodput and cost of serving against its load."),
    "fleet": ("simulator.cli.fleet", "How many replicas a load needs, with headroom and spares."),
    "pareto": ("simulator.cli.pareto", "Tokens/s of a user against tokens/s of a GPU: the Pareto front."),
    "latency": ("simulator.cli.latency", "Whole distributions of latency, request by request."),
    "tiers": (
        "simulator.cli.tiers",
        "What each memory tier held and each link carried, and what overlapped.",
    ),
    "upgrades": (
        "simulator.cli.upgrades",
        "What one more SSD, more DRAM, faster PCIe or a CXL card would give.",
    ),
    "largest": ("simulator.cli.largest", "The largest batch, context and model that fit a scenario."),
    "explain": ("simulator.cli.explain", "Show what an answer is made of and what it rests on."),
    "list": ("simulator.cli.listing", "List devices, links, nodes, clusters, models or scenarios."),
    "show": ("simulator.cli.show", "Show one entry of the catalog with sources and derived figures."),
    "import": ("simulator.cli.importing", "Turn a Hugging Face config.json into a model file."),
    "trace": ("simulator.cli.trace", "Write a scenario's timeline for ui.perfetto.dev."),
    "validate": ("simulator.cli.validate", "Compare predictions with measured data sets."),
    "measure": ("simulator.cli.measure", "Time kernels and steps on this machine, for calibrate."),
    "compare": ("simulator.cli.compare", "Compare a measured trace or benchmark with a scenario."),
    "calibrate": ("simulator.cli.calibrate", "Fit a device's constants on measured rows."),
    "report": ("simulator.cli.report", "Write a scenario's sizing report: HTML, Markdown, CSV."),
}
"""Command name to the module that holds it (as ``command``) and its line in the help."""


@click.group(
    cls=LazyGroup,
    commands_table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 2 bad input, 3 does not fit or misses its limit, 1 a bug of memroof.",
)
@click.version_option(package_name="memroof", prog_name="memroof")
def main() -> None:
    """Memory and throughput of AI systems, before you buy or book them.

    Does it fit, how fast is it, what binds it, what would change it, what does it cost, and how sure are we: for
    training, serving and offload. Start with `memroof list scenarios` and `memroof run SCENARIO`.
    """
