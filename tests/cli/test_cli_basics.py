"""The command line as a whole: help, hints, exit codes, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from user_catalog import UserCatalog

HEAVY = ("pandas", "matplotlib", "scipy", "networkx", "rich", "jinja2", "joblib")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def loaded(code: str) -> set[str]:
    """Modules, and the packages that they are of."""
    done = python("-c", f"{code}\nimport sys\nprint('\\n' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.splitlines()[-1].split())
    return modules | {name.partition(".")[0] for name in modules}


def test_help_lists_every_command_without_importing_any(user: UserCatalog) -> None:
    result = user.plain("--help")
    assert result.exit_code == 0
    for name in [
        "run",
        "fit",
        "train",
        "serve",
        "offload",
        "whatif",
        "explain",
        "list",
        "show",
        "import",
        "trace",
        "report",
    ]:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "fit",
        "train",
        "serve",
        "offload",
        "whatif",
        "explain",
        "list",
        "show",
        "import",
        "trace",
        "report",
    ],
)
def test_every_command_has_help(user: UserCatalog, name: str) -> None:
    result = user.plain(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert result.stderr == ""


def test_no_command_shows_the_help(user: UserCatalog) -> None:
    result = user.plain()
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_version(user: UserCatalog) -> None:
    assert user.plain("--version").stdout.startswith("memroof, version ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("rum",), "error: unknown command 'rum'; did you mean 'run'?"),
        (("run", "x", "--jsn"), "error: no such option"),
        (("run",), "error: missing argument 'SCENARIO'"),
        (("--no-such",), "error: no such option"),
        (("list", "planets"), "error: invalid value"),
    ],
)
def test_usage_errors_are_one_line_and_a_way_on(
    user: UserCatalog, arguments: tuple[str, ...], line: str
) -> None:
    result = user.plain(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, hint = result.stderr.splitlines()
    assert first.lower().startswith(line.lower())
    assert hint.startswith("try 'memroof")


def test_a_bug_is_told_without_a_traceback(user: UserCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    import simulator.analysis

    def broken(*_: object, **__: object) -> None:
        raise KeyError("a column")

    monkeypatch.setattr(simulator.analysis, "run", broken)
    monkeypatch.delenv("MEMROOF_DEBUG", raising=False)
    result = user.memroof("run", "tiny-training")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "please report it" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("MEMROOF_DEBUG", "1")
    assert "Traceback" in user.memroof("run", "tiny-training").stderr


def test_an_interrupt_is_no_bug(user: UserCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    import simulator.analysis

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulator.analysis, "run", interrupted)
    result = user.memroof("run", "tiny-training")
    assert result.exit_code == 130
    assert result.stderr.split() == ["interrupted"]


def test_errors_propagate_to_a_caller_in_python(user: UserCatalog) -> None:
    from simulator.cli import main
    from simulator.specs import MemroofError

    with pytest.raises(MemroofError, match="no-such"):
        main(["run", "no-such"], standalone_mode=False)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    names = loaded("import simulator.cli")
    assert not names & {*HEAVY, "numpy", "pydantic", "yaml"}


def test_a_run_loads_nothing_heavy(user: UserCatalog) -> None:
    arguments = ["run", "tiny-training", "--path", str(user.root)]
    names = loaded(f"from simulator.cli import main\nmain({arguments!r}, standalone_mode=False)")
    assert not names & set(HEAVY)
    # schemas of other kinds and methods cost a fifth of the answer
    schemas = {name for name in names if name.startswith("simulator.specs.") and name.endswith("_scenario")}
    assert schemas == {"simulator.specs.offload_scenario", "simulator.specs.training_scenario"}


def test_the_installed_command_answers_and_keeps_data_apart(user: UserCatalog) -> None:
    code = "from simulator.cli import main; main(prog_name='memroof')"
    good = python("-c", code, "run", "tiny-training", "--json", MEMROOF_PATH=str(user.root))
    assert good.returncode == 0
    assert good.stderr == ""
    assert json.loads(good.stdout)["scenario"] == "tiny-training"
    bad = python("-c", code, "run", "no-such-scenario", "--json")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.startswith("error: unknown scenario 'no-such-scenario'")


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from simulator.cli import main; main(prog_name='memroof')"
    listing = subprocess.Popen(
        [sys.executable, "-c", code, "list", "links"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None and listing.stderr is not None
    listing.stdout.close()
    with listing.stderr as stderr:
        assert stderr.read() == b""
    assert listing.wait() == 0


def test_shell_completion_knows_commands_and_names(user: UserCatalog) -> None:
    from click.shell_completion import ShellComplete

    from simulator.cli import main

    def completions(arguments: list[str], start: str) -> list[str]:
        shell = ShellComplete(main, {}, "memroof", "_MEMROOF_COMPLETE")
        return [item.value for item in shell.get_completions(arguments, start)]

    assert completions([], "wh") == ["whatif"]
    assert completions(["run", "--path", str(user.root)], "tiny-t") == ["tiny-training"]
    assert completions(["fit", "--path", str(user.root)], "tin") == ["tiny"]
    assert completions(["fit", "--path", str(user.root), "tiny"], "toy") == ["toy-gpu"]
    assert completions(["run"], "./no-such") == ["./no-such"]
