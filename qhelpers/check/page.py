"""A report of one page to keep: the same content as HTML, which needs no other file, and as JSON."""

import html
import json
from pathlib import Path
from typing import Any

from qhelpers import atomic

STYLE = """:root{color-scheme:light dark}body{font:14px/1.4 system-ui,sans-serif;max-width:66rem;margin:1.5rem auto;
padding:0 1rem}@page{size:A4;margin:10mm}@media print{body{font-size:8.5px;margin:0;max-width:none}}"""
# also for the report on a page of the book: small headings, two columns where there is room
REPORT_STYLE = """.qb-report h2{font-size:1.5em;margin:.6em 0 .3em}.qb-report h3{font-size:1.1em;margin:0 0 .2em}
.qb-report .qb-sections{columns:2 26em;column-gap:2.5em}.qb-report section{break-inside:avoid;padding-bottom:.9em}
.qb-report table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.2em 0;display:block;overflow-x:auto}
.qb-report :is(th,td){border-bottom:1px solid #8888;padding:.12em .8em .12em 0;text-align:left;vertical-align:top}
.qb-report td:first-child{min-width:8em}.qb-report p{margin:.2em 0 .4em;overflow-wrap:anywhere}"""


def report_html(report: dict[str, Any]) -> str:
    """A report's title, headline and sections (words, then a table) as HTML without a page around them.

    >>> "<h2>R</h2>" in report_html({"title": "R", "headline": "h", "sections": {"s": {"words": [], "table": []}}})
    True
    """
    parts = []
    for title, section in report["sections"].items():
        words = "".join(f"<p>{_with_code(line)}</p>" for line in section["words"])
        table = ""
        if rows := section["table"]:
            lines = ["".join(f"<th>{html.escape(column)}</th>" for column in rows[0])]
            lines += ["".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) for row in rows]
            table = f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
        parts.append(f"<section><h3>{html.escape(title)}</h3>{words}{table}</section>")
    title, headline = html.escape(report["title"]), html.escape(report["headline"])
    return (
        f'<div class="qb-report"><style>{REPORT_STYLE}</style><h2>{title}</h2><p><b>{headline}</b></p>'
        f'<div class="qb-sections">{"".join(parts)}</div></div>'
    )


def write_report(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``worksheet-report.html`` (one page, no other file needed) and ``worksheet-report.json``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     report = {"title": "R", "headline": "h", "sections": {}}
    ...     [path.name for path in write_report(report, Path(name))]
    ['worksheet-report.html', 'worksheet-report.json']
    """
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(report['title'])}</title><style>{STYLE}</style>"
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{report_html(report)}</body></html>\n'
    paths = folder / "worksheet-report.html", folder / "worksheet-report.json"
    for path, text in zip(
        paths, (page, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)), strict=True
    ):
        atomic.write_text(path, text)
    return paths


def _with_code(words: str) -> str:
    """Escaped words in which backticks become code."""
    parts = html.escape(words).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
