"""`hybrid report`: one HTML page that shows a model directory, without scripts and without the network.

Pictures lie in it as SVG; the same ones are written as PNG files on request. Nothing that files of the directory say is
trusted as markup: the template escapes every text, and so does the writer of SVG.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
from markupsafe import Markup

from hybrid.extras import install_command
from hybrid.stages.report_data import collect
from hybrid.stages.report_parts import Missing, Section, plain
from profiler.artifacts import UserError, explain_os_errors, write_atomic

TEMPLATE = "report.html.j2"
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportResult:
    """What was written. missing: what the page could not show, and the command that makes it."""

    path: Path
    bytes: int
    sections: int
    pictures: int
    png: tuple[Path, ...]
    missing: tuple[Missing, ...]


def report(
    path: Path,
    output: Path,
    png: Path | None = None,
    profile: str = "default",
    plan: str = "default",
    progress: Tell | None = None,
) -> ReportResult:
    """Write the report of a model directory to `output`, and its pictures into the folder `png` if one is given.

    Files that exist are replaced, each atomically. `progress` is told `(stage, done, total)`.

    Raises:
        UserError: matplotlib is missing, it is no model directory, or the files cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"a report is drawn by matplotlib, which is missing: {install_command('report')}")
    from hybrid.stages import report_quality, report_sections  # draw with matplotlib, which is optional
    from hybrid.stages.report_drawing import as_png, as_svg

    data = collect(path, profile, plan)
    parts = (
        report_quality.model,
        report_sections.hotness,
        report_sections.activity,
        report_sections.predictors,
        report_sections.placement,
        report_quality.quality,
        report_quality.thresholds,
    )
    sections = [part(data) for part in parts]
    pictures = [picture for section in sections for picture in section.pictures]
    drawn: dict[str, str] = {}
    files: dict[Path, bytes] = {}
    for done, picture in enumerate(pictures):
        drawn[picture.name] = as_svg(picture)
        if png is not None:
            files[png / f"{picture.name}.png"] = as_png(picture)
        if progress:
            progress("drawing", done + 1, len(pictures))
    page = render(path, sections, drawn, f"hybrid report {shlex.quote(str(path))} -o {shlex.quote(str(output))}")
    if png is not None:
        with explain_os_errors("write pictures", png):
            png.mkdir(parents=True, exist_ok=True)
    for file, content in {**files, output: page}.items():
        write_atomic(file, content)
    missing = tuple(missing for section in sections for missing in section.missing)
    return ReportResult(output, len(page), len(sections), len(pictures), tuple(files), missing)


def render(path: Path, sections: list[Section], drawn: dict[str, str], command: str) -> bytes:
    """The page as UTF-8. drawn: the `<svg>` element of each picture by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    svg = {name: Markup(element) for name, element in drawn.items()}  # noqa: S704 - matplotlib's, its texts escaped
    page = environment.get_template(TEMPLATE).render(
        title=f"Report of {plain(path.resolve().name)}",
        path=plain(path, 200),
        command=plain(command, 300),
        version=version("hybrid-inference"),
        sections=sections,
        svg=svg,
    )
    return page.encode("utf-8", "replace")
