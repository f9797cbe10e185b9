"""Reports: text, HTML, Markdown, CSV and Perfetto traces made from results; nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from simulator.analysis import Result

__all__ = ["Form", "render_report"]

Form = Literal["html", "markdown", "csv"]


def render_report(result: Result, form: Form = "html") -> str:
    """Return a sizing report as one text: a self-contained HTML page, Markdown, or CSV in SI units.

    Parameters
    ----------
    result : Result
        The answer.
    form : {"html", "markdown", "csv"}
        What to write.
    """
    if form == "html":
        from simulator.report.html import html

        return html(result)
    if form == "markdown":
        from simulator.report.markdown import markdown

        return markdown(result)
    from simulator.report.markdown import csv

    return csv(result)
