"""README shows what the commands really print: blocks that follow ``<!-- $ command -->`` are run and compared.

``MEMROOF_UPDATE_README=1`` rewrites them.
"""

import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from simulator.cli import main

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(
    r"(<!-- \$ memroof (?P<arguments>.*?) -->\n```text\n)(?P<output>(?:.*?\n)??)(```)", re.DOTALL
)


def printed(arguments: str) -> str:
    return CliRunner().invoke(main, shlex.split(arguments)).stdout.rstrip()


def test_readme_shows_real_output() -> None:
    text = README.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 3
    fresh = BLOCK.sub(lambda match: match[1] + printed(match["arguments"]) + "\n" + match[4], text)
    if os.environ.get("MEMROOF_UPDATE_README"):
        README.write_text(fresh)
    assert README.read_text() == fresh, "run MEMROOF_UPDATE_README=1 pytest tests/test_readme.py"
