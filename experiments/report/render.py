"""A report as one HTML page that loads nothing: no network, no other file, no script."""

import base64
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2

from experiments.common.markdown import cell, table
from experiments.report.findings import findings
from experiments.report.origin import together
from experiments.report.report import HOW, PAPER, Decided, Report, in_brief, spell_number, spell_paper

MOST = 60  # rows of a table; longer ones are in the page


def page_of(report: Report) -> str:
    """The page; all text in it is escaped."""
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    values = {"report": report, "how": HOW, "paper": PAPER, "in_brief": in_brief, "together": together}
    values |= {
        "findings": findings(report),
        "spell_number": spell_number,
        "spell_paper": spell_paper,
        "indented": _indented,
    }
    return environment.get_template("page.html").render(**values, base64=_base64)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def values_of(report: Report) -> dict[str, Any]:
    """JSON values, with nan and inf still in them."""
    return {
        "paper": PAPER,
        "model": report.model,
        "counts": report.counts(),
        "missing": list(report.missing),
        "warnings": list(report.warnings),
        "claims": [_claim(one) for one in report.decided],
        "tables": {
            section.name: [{"title": grid.title, "rows": [dict(row) for row in grid.rows]} for grid in section.grids]
            for section in report.sections
        },
        "origins": [
            {
                **{"name": one.name, "found": one.found, "planned": one.planned, "seconds": one.seconds},
                **{"facts": dict(one.facts), "settings": one.settings, "documents": one.documents},
                "sha256": together(one.documents),
            }
            for one in report.origins
        ],
    }


def _claim(one: Decided) -> dict[str, Any]:
    claim, verdict = one
    about = {"section": claim.source, "text": claim.text, "is_papers": claim.is_papers}
    decided = {"verdict": verdict.outcome, "note": verdict.note, "unit": verdict.unit}
    return {**about, **decided, "parts": [part._asdict() for part in verdict.parts]}


def markdown_of(report: Report) -> str:
    """The text; pictures are links to the files beside it."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {cell(report.model)} and the multi-state paper", "", report.summary, "")
    for warning in report.warnings:
        yield from (f"**{warning}**", "")
    yield from ("## Findings", "")
    for finding in findings(report):
        yield from (f"### {cell(finding.title)}", "", finding.about, "")
        yield from (f"* {cell(one)}" for one in finding.leading)
        if finding.others:
            count = len(finding.others)
            yield f"* {count} more {'is' if count == 1 else 'are'} in the table of claims."
        yield ""
    yield from ("## How claims are decided", "", HOW, "")
    for one in report.missing:
        yield f"* missing: {cell(one)}"
    yield from ("", "## Claims", "")
    for is_papers, title in ((True, "Of the paper:"), (False, "Questions of ours beside them:")):
        yield from (title, "")
        rows = [
            [one.claim.source, one.claim.text, f"**{one.verdict.outcome}**", in_brief(one.verdict)]
            for one in report.decided
            if one.claim.is_papers == is_papers
        ]
        yield from table(["section", "claim", "verdict", "decided from"], rows)
        yield ""
    for section in report.sections:
        yield from (f"## {section.title}", "", section.about, "")
        for picture in section.pictures:
            yield from (f"![{cell(picture.alt)}]({picture.name}.png)", "", picture.caption, "")
        for grid in section.grids:
            if len(grid.rows) <= MOST:
                yield from (f"{grid.title}:", "")
                yield from table([column.title for column in grid.columns], grid.cells())
                yield ""
