"""``memroof import``: a Hugging Face configuration becomes a model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from simulator.cli.options import json_option
from simulator.cli.output import note, print_json, print_lines, write_text


@click.command("import")
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.json")
@click.option(
    "--name", metavar="NAME", help="Name of the model; the output file's or the folder's name if absent."
)
@click.option("--source", default="", metavar="TEXT", help="Where the configuration comes from.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write the model file here (its stem is the model's name) instead of printing it.",
)  # fmt: skip
@json_option
def command(config: Path, name: str | None, source: str, output: Path | None, as_json: bool) -> None:
    """Turn a Hugging Face config.json into a model file."""
    from simulator.graph.importer import import_config, to_yaml

    chosen = name or (output.stem if output else _stem(config))
    fields = import_config(_read(config), chosen, file=str(config), source=source)
    text = to_yaml(fields)
    if output is not None:
        write_text(output, text)
        note(f"wrote {output}")
    if as_json:
        print_json(fields)
    elif output is None:
        print_lines(text.splitlines())


def _stem(config: Path) -> str:
    return config.stem if config.stem != "config" else config.resolve().parent.name or "model"


def _read(config: Path) -> Any:
    from simulator.specs.errors import MemroofError

    try:
        return json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise MemroofError(f"{config}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MemroofError(f"{config}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise MemroofError(f"{config}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise MemroofError(f"{config}: not valid JSON: {type(error).__name__}") from None
