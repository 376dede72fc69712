"""What a check found: a summary to print, a page to keep beside the file, and JSON to compare the next run with."""

import contextlib
import json
import math
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qhelpers import atomic
from qhelpers.check import reports
from qhelpers.check.reports import Report


@dataclass(frozen=True, repr=False)
class Result:
    """What :func:`qhelpers.check.run` found. It prints as a summary and shows as a page in a notebook.

    Args:
        report: all that was found, as it is written to ``report.json``.
        folder: where the file and the report lie.

    Raises:
        ReportError: if the report contradicts itself.
    """

    report: Report
    folder: Path

    def __post_init__(self) -> None:
        reports.check_report(self.report)

    @property
    def status(self) -> str:
        """``"kept"`` the budget, ``"over"`` it, or ``"refused"``."""
        return str(self.report["status"])

    @property
    def file(self) -> Path | None:
        """The file to ship, if there is one."""
        return self.folder / self.report["file"]["name"] if self.report["file"] else None

    def __str__(self) -> str:
        lines = [_title(self.report), *_labelled("To do", self.report["do"])]
        for warning in self.report["first"]:
            lines += _labelled("Warning", warning)
        for figure in figures(self.report):
            lines += _labelled(figure["name"].split(" against")[0], f"{figure['value']}; {figure['note']}")
        if self.report["census"]:
            lines += _labelled("Layers", self.report["census"]["summary"])
        return "\n".join([*lines, *_labelled("Report", str(self.folder / "report.html"))])

    __repr__ = __str__  # what an interpreter shows of a last expression

    def _repr_html_(self) -> str:
        return _template("body", self.report)

    def write(self, beside: Mapping[str, Path] = MappingProxyType({})) -> tuple[Path, Path]:
        """Write ``report.html``, a page that needs no other file, and ``report.json``; return their paths.

        All is written in full before any older file goes. Then the older report goes first and the new one comes last:
        whenever this is cut short, no report is left beside a file of another run.

        Args:
            beside: finished files that the report is about, by their names in the folder.

        Raises:
            WriteError: if the folder takes no files, or the disk is full; what was there is still there then.
        """
        page, data = self.folder / "report.html", self.folder / "report.json"
        text = json.dumps(self.report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        contents: dict[Path, str | Path] = {data: text, page: _template("page", self.report)}
        contents |= {self.folder / name: path for name, path in beside.items()}
        with contextlib.ExitStack() as first_in_last_out:
            for path, content in contents.items():
                _fill(first_in_last_out.enter_context(atomic.replacing(path)), content)
            for path in (data, page):
                path.resolve().unlink(missing_ok=True)
        return page, data


def _fill(part: Path, content: str | Path) -> None:
    try:
        if isinstance(content, Path):
            shutil.copyfile(content, part)
        else:
            part.write_text(content, encoding="utf-8")
    except OSError as error:
        folder = part.parent.parent
        raise atomic.WriteError(f"{part.name} cannot be written into {folder}: {error.strerror}.") from error


def figures(report: Report) -> list[dict[str, Any]]:
    """The four figures of the first screen that were measured: name, value, note, tone, and a strip to draw.

    A strip has positions in percent: of the dot, of the ends of its band, and of the tick that marks the limit.
    """
    found, file, speed = [], report["file"], report["speed"]
    if report["quality"]:
        found.append(_quality(report["quality"]))
    if file:
        part = file["mb"] / file["float_mb"]
        note = f"{100 * part:.0f} % of float's {reports.megabytes(file['float_mb'])}"
        size = _figure("Size", reports.megabytes(file["mb"]), note, _tone(part < 1, part >= 1))
        found.append(size | _strip(part, part, part, 1, 0, max(1.2, 1.1 * part)))
    for key, against in (("own", "float in the same runtime"), ("best", "the best float path")):
        if ratio := speed and speed[key]:
            low, high = ratio["low"], ratio["high"]
            against += f", {ratio['name']}" if ratio.get("name") else ""
            words = f"no difference from {against} can be told"
            if not low <= 1 <= high:
                words = f"{'faster' if low > 1 else 'slower'} than {against}"
            name = "Speed against float there" if key == "own" else "Speed against the best float"
            note = f"{words}; interval {reports.span(ratio)}"
            one = _figure(name, f"{ratio['ratio']:.2f} ×", note, _tone(low > 1, high < 1))
            edge = max(2.0, 1.1 * high, 1.1 / low)
            logs = [math.log(value) for value in (low, ratio["ratio"], high, 1, 1 / edge, edge)]
            found.append(one | _strip(*logs))
    return found


def _quality(quality: Report) -> Report:
    used, unit, budget = reports.judged(quality), quality["unit"], quality["budget"]
    which = "test" if quality["test"] else "validation"
    samples, good = f"{used['n']:,} {which} samples", reports.within_budget(quality)
    if quality["kind"] == "SQNR":
        found = used["worst_db"]
        limit = "" if budget is None else f"; the budget asks for {budget:g} dB"
        note = f"SQNR of the worst output channel, {samples}{limit}"
        one = _figure("Quality", reports.decibels(found), note, _tone(good, not good))
        shown = min(found, 60)
        return one | _strip(shown, shown, shown, budget or 0, 0, max(60, budget or 0))
    digits = 2 if unit == "points" else 4
    lost, interval = round(used["lost"], digits), used["interval"]
    value = f"{abs(lost):.{digits}f} {unit} {'lost' if lost >= 0 else 'gained'}"
    parts = [f"{quality['kind']}, {samples}"]
    if used["float"] is not None and used["int8"] is not None:
        parts[0] = f"{quality['kind']} {used['float']:.{digits}f} → {used['int8']:.{digits}f}, {samples}"
    if interval:
        parts.append(f"interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}")
    if budget is not None:
        parts.append(f"budget {budget:g}")
    low, high = interval or (lost, lost)
    one = _figure("Quality", value, "; ".join(parts), _tone(good, not good))
    return one | _strip(low, lost, high, budget or 0, min(0, low), 1.15 * max(high, budget or 0, 1e-9))


def _figure(name: str, value: str, note: str, tone: str) -> Report:
    return {"name": name, "value": value, "note": note, "tone": tone}


def _tone(good: bool, bad: bool) -> str:
    return "good" if good else "bad" if bad else "open"


def _strip(low: float, value: float, high: float, limit: float, start: float, end: float) -> Report:
    low, value, high, limit = (
        round(100 * min(1.0, max(0.0, (one - start) / (end - start))), 1) for one in (low, value, high, limit)
    )
    return {"low": low, "dot": value, "high": high, "limit": limit}


def _title(report: Report) -> str:
    return f"{report['model']} for {report['target']}: {reports.VERDICTS[report['status']]}"


def _labelled(label: str, words: str) -> list[str]:
    return textwrap.wrap(words, 88, initial_indent=f"  {label:9}", subsequent_indent=" " * 11)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _with_code(words: str) -> Markup:
    """Words in which backticks become code."""
    parts = [escape(part) for part in str(words).split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _template(name: str, report: Report) -> str:
    """The page, or what a notebook shows of it."""
    pages = Environment(
        loader=PackageLoader("qhelpers.check", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"db": reports.decibels, "mb": reports.megabytes, "number": _number, "code": _with_code}
    given = {
        "r": report,
        "figures": figures(report),
        "title": _title(report),
        "verdicts": reports.VERDICTS,
        "shapes": reports.shapes,
    }
    return pages.get_template("report.html.j2").render(given, alone=name == "page")
