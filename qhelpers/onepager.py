"""A report of one page to keep: the same content as HTML, which needs no other file, and as JSON."""

import html
import json
from pathlib import Path
from typing import Any

from qhelpers import reports

STYLE = """:root{color-scheme:light dark}body{font:16px/1.45 system-ui,sans-serif;max-width:46rem;margin:2rem auto;
padding:0 1rem}@media print{body{font-size:11px;margin:0}}"""
TABLES = """.qb-report table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.4rem 0;display:block;
overflow-x:auto}.qb-report :is(th,td){border-bottom:1px solid #8888;padding:.15rem .7rem .15rem 0;text-align:left;
vertical-align:top}.qb-report h2,.qb-report h3{margin:1.1rem 0 .3rem}.qb-report p{margin:.3rem 0}"""


def report_html(report: dict[str, Any]) -> str:
    """A report's title, headline and sections (words, then a table) as HTML without a page around them.

    >>> "<h2>R</h2>" in report_html({"title": "R", "headline": "h", "sections": {"s": {"words": [], "table": []}}})
    True
    """
    parts = [f"<style>{TABLES}</style><h2>{html.escape(report['title'])}</h2><p><b>{html.escape(report['headline'])}"]
    parts.append("</b></p>")
    for title, section in report["sections"].items():
        parts.append(f"<h3>{html.escape(title)}</h3>")
        parts += [f"<p>{reports.as_html(words)}</p>" for words in section["words"]]
        if rows := section["table"]:
            lines = ["".join(f"<th>{html.escape(column)}</th>" for column in rows[0])]
            lines += ["".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) for row in rows]
            parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
    return f'<div class="qb-report">{"".join(parts)}</div>'


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
    for path, text in zip(paths, (page, json.dumps(report, indent=1, ensure_ascii=False)), strict=True):
        reports.write_whole(path, text)
    return paths
