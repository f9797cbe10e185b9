"""A click group that imports a command when it is used, and shows every failure as a clear line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

EXIT_OK, EXIT_BUG, EXIT_INPUT, EXIT_UNFIT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class LazyGroup(click.Group):
    """Commands by name, each in its own module under the name ``command``.

    Parameters
    ----------
    commands_table : mapping of str to (str, str)
        Command name to module path and one line of help, so that the help of the group imports nothing.
    """

    def __init__(
        self, *args: Any, commands_table: Mapping[str, tuple[str, str]] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.commands_table = dict(commands_table or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.commands_table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return its command; None for an unknown name."""
        if cmd_name not in self.commands_table:
            return None
        command = importlib.import_module(self.commands_table[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.commands_table[cmd_name][0]}.command is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest names."""
        name = args[0]
        if name not in self.commands_table and not name.startswith("-") and not ctx.resilient_parsing:
            from simulator.specs.errors import unknown

            raise click.UsageError(unknown("command", name, self.commands_table), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in self.commands_table.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; in standalone mode exit with its code and never show a traceback."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as error:
            _fail(error)
        sys.exit(code if isinstance(code, int) else EXIT_OK)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        sys.exit(EXIT_INPUT)
    if isinstance(error, click.ClickException):
        sys.exit(_show_usage(error))
    if isinstance(error, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    from simulator.specs.errors import MemroofError

    if isinstance(error, MemroofError):
        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"error: {line}", err=True)
        sys.exit(EXIT_INPUT)
    _show_bug(error)
    sys.exit(EXIT_BUG)


def _show_usage(error: click.ClickException) -> int:
    message = error.format_message()
    click.echo(f"error: {message[:1].lower() + message[1:] if message[1:2].islower() else message}", err=True)
    context = getattr(error, "ctx", None)
    if context is not None:
        click.echo(f"try '{context.command_path} --help'", err=True)
    return EXIT_INPUT


def _show_bug(error: Exception) -> None:
    detail = str(error).splitlines()[0] if str(error) else ""
    click.echo(f"internal error: {type(error).__name__}{': ' if detail else ''}{detail}", err=True)
    click.echo(
        "this is a bug in memroof, not in your input: please report it with the command and the files it read"
        " (MEMROOF_DEBUG=1 shows where it happened)",
        err=True,
    )
    if os.environ.get("MEMROOF_DEBUG"):
        click.echo("".join(traceback.format_exception(error)), err=True)
