"""A run, or several, as a page in parts: one file that opens from disk, and what ``vidlit watch`` serves."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vidlit import __version__
from vidlit.report.videos import InPage
from vidlit.runs.directory import write_text
from vidlit.runs.record import RunRecord, damage_told

MAX_MEGABYTES = 3.0
"""Of videos inside a page, so that one can be sent by mail; further ones are linked."""
_TEMPLATES = "templates"
_SCRIPTS = ("uplot/uPlot.iife.min.js", "page.js")


@dataclass(frozen=True)
class View:
    """A page in parts, of which a live one sends those that have changed.

    Args:
        title: of the browser's tab.
        sections: HTML, by the id of its section.
        charts: as :meth:`vidlit.report.charts.Chart.as_json` gives them, by key; sections hold a place for each.
        data: what else the page's script reads.
    """

    title: str
    sections: Mapping[str, str]
    charts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, Any]:
        """All of it under names of one kind: ``title``, ``section why``, ``chart 3``, ``data samples``."""
        return {
            "title": self.title,
            **{f"section {name}": html for name, html in self.sections.items()},
            **{f"chart {name}": chart for name, chart in self.charts.items()},
            **{f"data {name}": value for name, value in self.data.items()},
        }


def write_report(paths: Sequence[Path], out: Path | None = None, megabytes: float = MAX_MEGABYTES) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
        paths: run directories, finished or not.
        out: file to write; ``None`` takes ``report.html`` of the first run, or ``comparison.html`` beside several.
        megabytes: of videos to put into the page; further ones are linked.

    Returns:
        Where it is.

    Raises:
        UserError: a folder holds no run.
    """
    runs = [RunRecord(Path(path)) for path in paths]
    if out is None:
        out = runs[0].directory.report if len(runs) == 1 else runs[0].path.resolve().parent / "comparison.html"
    write_text(out, as_html(view_of(runs, InPage(out, megabytes))))
    return out


def view_of(runs: Sequence[RunRecord], addresses: Any) -> View:
    """The page of a run, or of several side by side.

    Raises:
        UserError: one of their files is damaged.
    """
    from vidlit.report.comparison import comparison_view
    from vidlit.report.run_view import run_view

    with damage_told(runs[0].path if len(runs) == 1 else runs[0].path.parent):
        return run_view(runs[0], addresses) if len(runs) == 1 else comparison_view(runs, addresses)


def as_html(view: View, updates: str = "", version: str = "", home: str = "") -> str:
    """A whole page.

    Args:
        view: what it shows.
        updates: address that says what has changed since a version; empty for a page that stays as it is.
        version: of the view, for that.
        home: address of the page that lists all runs; empty for none.
    """
    scripts = [_text(name) for name in _SCRIPTS]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            view=view,
            data={"parts": view.parts(), "updates": updates, "version": version},
            home=home,
            scripts=scripts,
            hashes=list(hashes),
            styles=[_text("uplot/uPlot.min.css"), _text("style.css")],
            vidlit_version=__version__,
        )
    )


def section(name: str, /, **values: Any) -> str:
    """The HTML of a section: a macro of ``sections.html.jinja``, which escapes all that it is given."""
    module: Any = environment().get_template("sections.html.jinja").module
    return str(getattr(module, name)(**values))


@cache
def environment() -> Environment:
    """Of the templates."""
    return Environment(
        loader=PackageLoader("vidlit.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(name: str) -> str:
    """A file of the page's own."""
    return (resources.files("vidlit.report") / _TEMPLATES / name).read_text(encoding="utf-8").strip("\n")
