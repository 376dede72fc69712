"""What a check found, as one dictionary: checked for contradictions, and compared with that of an earlier run.

Losses are float minus int8, in points of a percentage or in the unit of the score; a ratio of times is float's by
int8's, so that above 1 int8 is faster; intervals are of 95 %; the budget of an SQNR is the least that is enough. An
SQNR of two outputs that are equal is infinite, which JSON does not have: the report says ``EXACT_DB``.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qhelpers.check.errors import CheckError

Report = dict[str, Any]
FORMAT, EXACT_DB = 1, 999.0
KEPT, OVER, REFUSED = "kept", "over", "refused"
VERDICTS = {KEPT: "within the budget", OVER: "over the budget", REFUSED: "not converted"}
PARTS = ["format", "model", "target", "status", "do", "first", "mode", "left_in_float", "file", "quality", "census"]
PARTS += ["speed", "tries", "diagnosis", "operators", "notes", "seconds", "environment"]
POINTS, SIZE_PERCENT, DB = 0.1, 1.0, 1.0  # what may get worse between two runs
SLACK = 1e-9  # 64.4 - 63.9 is a little more than 0.5 in floating point


class ReportError(CheckError):
    """A report contradicts itself, cannot be read, or is about something other than the one beside it."""


def read_report(path: Path) -> Report:
    """The report in a ``report.json`` of an earlier run.

    Raises:
        ReportError: if the file is not there or holds something else.

    >>> read_report(Path("nowhere.json"))
    Traceback (most recent call last):
        ...
    qhelpers.check.reports.ReportError: nowhere.json cannot be read: No such file or directory.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: give the report.json of an earlier run.") from error
    if not isinstance(report, dict) or (missing := [part for part in PARTS if part not in report]):
        lacks = f"it lacks {', '.join(missing[:3])}" if isinstance(report, dict) else "it is a list or a value"
        raise ReportError(f"{path} is not a report of this checker: {lacks}.")
    if report["format"] != FORMAT:
        raise ReportError(f"{path} has format {report['format']}, this version reads {FORMAT}: run the check anew.")
    try:
        against(report, report)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} was changed: give the report.json as an earlier run wrote it.") from error
    return report


def first_lines(report: Report) -> list[str]:
    """What is bad enough to be said first: nothing in int8, or a file no smaller or no faster than float.

    A report's ``first`` has to hold all of these lines, and may hold more.
    """
    lines, file, speed = [], report["file"], report["speed"]
    if report["census"] and not report["census"]["int8"]:
        lines.append("Nothing in the file computes in int8.")
    if file and file["mb"] >= file["float_mb"]:
        sizes = f"{megabytes(file['mb'])}, and {megabytes(file['float_mb'])} in float"
        lines.append(f"The file is no smaller than float: {sizes}.")
    if own := speed and speed["own"]:
        ratio = f"{own['ratio']:.2f} times float's speed in the same runtime ({span(own)})"
        if own["high"] < 1:
            lines.append(f"The file is slower than float: {ratio}.")
        elif own["low"] <= 1:
            lines.append(f"No difference in speed can be told: {ratio}.")
    return lines


def judged(quality: Report) -> Report:
    """What the verdict rests on: the test data if there are any, for no choice was made on them."""
    chosen: Report = quality["test"] or quality["validation"]
    return chosen


def within_budget(quality: Report) -> bool:
    """Whether what the verdict rests on is within the budget: the loss, or the SQNR of the worst channel."""
    used, budget = judged(quality), quality["budget"]
    if budget is None:
        return True
    if quality["kind"] == "SQNR":
        return bool(used["worst_db"] >= budget)
    return bool(used["lost"] <= budget + SLACK)


def decibels(value: float | None) -> str:
    """An SQNR as a page shows it.

    >>> decibels(31.24), decibels(EXACT_DB), decibels(-EXACT_DB), decibels(None)
    ('31.2 dB', 'exact', 'nothing of the signal', '–')
    """
    if value is None:
        return "–"
    if value <= -EXACT_DB:
        return "nothing of the signal"
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def megabytes(value: float) -> str:
    """The size of a file as a page shows it: of small ones more than "0.00".

    >>> megabytes(13.978), megabytes(0.00678)
    ('13.98 MB', '0.0068 MB')
    """
    return f"{value:,.2f} MB" if value >= 0.1 else f"{value:.2g} MB"


def span(ratio: Report) -> str:
    """The interval of a ratio, in words."""
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def shapes(file: Report) -> str:
    """What a file takes, in words."""
    return ", ".join(f"{one['dtype']} of shape ({', '.join(map(str, one['shape']))})" for one in file["inputs"])


# --- a report against itself -------------------------------------------------------------------------


def check_report(report: Report) -> None:
    """Check that a report does not contradict itself.

    Raises:
        ReportError: with everything that contradicts something else in it.
    """
    if missing := [part for part in PARTS if part not in report]:
        raise ReportError(f"The report lacks {', '.join(missing)}.")
    try:
        json.dumps(report, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReportError(f"The report cannot be written as JSON: {error}.") from error
    if found := [*_contradictions(report)]:
        raise ReportError("The report contradicts itself: " + "; ".join(found) + ".")


def _contradictions(report: Report) -> Iterator[str]:
    status, file, census, speed = (report[key] for key in ("status", "file", "census", "speed"))
    said = [report["do"], *report["first"]]
    if status not in VERDICTS:
        yield f"there is no status {status!r}"
    for line in first_lines(report):
        if line not in report["first"]:
            yield f"its first lines do not say “{line}”"
    if status == REFUSED and file:
        yield f"it is refused, and there is {file['name']}"
    if status == KEPT and not file:
        yield "it is kept, and there is no file"
    if file and file["mb"] >= file["float_mb"]:
        for claim in [*_claims(said, r"smaller"), *_claims(said, r"keep (it|this|int8|the (int8|file))")]:
            if not re.search(r"speed|faster", claim):  # those are held against the speed
                yield f"it says “{claim}” of a file of {file['mb']:g} MB that has {file['float_mb']:g} MB in float"
    for claim in _claims(said, r"faster|for its speed|times the speed"):
        key = "best" if "best" in claim else "own"
        ratio = speed[key] if speed else None
        if not ratio:
            yield f"it says “{claim}”, and that was not measured"
        elif ratio["low"] <= 1:
            yield f"it says “{claim}” at a ratio of {ratio['ratio']:.2f} ({span(ratio)})"
    if (quality := report["quality"]) and quality["lost"] != (used := judged(quality))["lost"]:
        yield f"it says {quality['lost']} {quality['unit']} lost, and its table {used['lost']}"
    if report["quality"]:
        yield from _wrong_verdict(status, report["quality"], census)
    for one in report["tries"]:
        for sentence in _claims(said, re.escape(one["what"].lower()), r"[.;]"):
            if not one["kept"] and re.search(r"\b(try|use|take|choose|switch)\b", sentence):
                yield f"it suggests “{one['what']}”, which was tried: {one['why'] or 'it was no better'}"
    if census:
        yield from _miscounted(census)
        if status == KEPT and not census["int8"]:
            yield "it is kept, and nothing computes in int8"


def _claims(said: list[str], words: str, ends: str = r"[.;:,](?!\d)") -> list[str]:
    """Clauses of what is said that hold these words and neither deny them nor say them of float."""
    denied = r"\b(not|no|nor|neither|cannot|whether|if|than (int8|it|the file)|keep (the )?float|float[\w ]* is)\b"
    lines = [re.sub(r", [^,.;:]+,(?= is\b)", "", line.lower()) for line in said]  # without what stands in between
    clauses = [clause.strip() for line in lines for clause in re.split(ends, line)]
    return [one for one in clauses if re.search(rf"(?<!\w)({words})(?!\w)", one) and not re.search(denied, one)]


def _wrong_verdict(status: str, quality: Report, census: Report | None) -> Iterator[str]:
    used, within = judged(quality), within_budget(quality)
    if status == KEPT and quality["dead"]:
        yield "it is kept, and an output channel holds nothing but noise"
    if status == KEPT and not within:
        if quality["kind"] == "SQNR":
            yield f"it is kept, and {used['worst_db']:g} dB are under the budget of {quality['budget']:g} dB"
        else:
            lost = f"{quality['lost']:g} {quality['unit']}"
            yield f"it is kept, and {lost} lost are over the budget of {quality['budget']:g}"
    if status == OVER and within and not quality["dead"] and (not census or census["int8"]):
        yield "it is over the budget, and no figure is"


def _miscounted(census: Report) -> Iterator[str]:
    counts = [len(census[key]) for key in ("int8", "float", "absent")]
    if found := re.search(r"(\d+) of (\d+) layers in int8", census["summary"]):
        if (int(found[1]), int(found[2])) != (counts[0], sum(counts)):
            yield f"its summary says “{found[0]}”, its lists {counts[0]} of {sum(counts)}"
    else:
        yield "its summary does not say how many layers compute in int8"
    conversions = re.search(r"(\d+) conversions?", census["summary"])
    if conversions and int(conversions[1]) != census["conversions"]:
        yield f"its summary says “{conversions[0]}”, its count {census['conversions']}"


# --- a report against an earlier one -----------------------------------------------------------------


def against(report: Report, earlier: Report) -> list[str]:
    """What got worse since an earlier report of the same model, target and amount of data, in words.

    Worse is a loss larger by more than 0.1 points (of a score: by a fifth of the budget), an SQNR lower by more than
    1 dB, of all outputs or of the worst channel, a file larger by more than 1 %, a layer that was int8 and is not, and
    one conversion more. Speed does not count: it is another machine's.

    Raises:
        ReportError: if the two cannot be compared.
    """
    require_same(report, earlier)
    fell = earlier["status"] == KEPT != report["status"]
    verdict = [f"the file is {VERDICTS[report['status']]}, earlier {VERDICTS[KEPT]}"] if fell else []
    return [*verdict, *_worse_quality(report, earlier), *_worse_file(report, earlier)]


def _worse_quality(report: Report, earlier: Report) -> Iterator[str]:
    new, old = report["quality"], earlier["quality"]
    if not new or not old:
        return
    allowed = POINTS if new["unit"] == "points" else (new["budget"] or 0) / 5
    for which in ("validation", "test"):
        now, then = new[which], old[which]
        if not now or not then:
            continue
        if now["lost"] is not None and now["lost"] > then["lost"] + allowed + 1e-9:
            yield f"{now['lost']:.3g} {new['unit']} lost on the {which} data, earlier {then['lost']:.3g}"
        yield from _lower(f"SQNR on the {which} data", now["sqnr_db"], then["sqnr_db"])
    worst = [next((one["worst_db"] for one in one["tries"] if one["kept"]), None) for one in (report, earlier)]
    yield from _lower("SQNR of the worst channel", *worst)


def _lower(what: str, now: float | None, then: float | None) -> Iterator[str]:
    if now is not None and then is not None and now < then - DB:
        yield f"{what} {decibels(now)}, earlier {decibels(then)}"


def _worse_file(report: Report, earlier: Report) -> Iterator[str]:
    file, old = report["file"], earlier["file"]
    if file and old and file["mb"] > old["mb"] * (1 + SIZE_PERCENT / 100):
        yield f"the file has {file['mb']:,.2f} MB, earlier {old['mb']:,.2f}"
    census, before = report["census"], earlier["census"]
    if not census or not before:
        return
    if gone := [name for name in before["int8"] if name not in census["int8"]]:
        shown = ", ".join(gone[:5]) + (" …" if len(gone) > 5 else "")
        yield f"no longer in int8: {shown}"
    if census["conversions"] > before["conversions"]:
        yield f"{census['conversions']} conversions, earlier {before['conversions']}"


def require_same(report: Report, earlier: Report) -> None:
    """Refuse a report that cannot be compared with an earlier one; of a run to come, model and target are enough.

    Raises:
        ReportError: with all in which they differ.
    """
    quality, old = report.get("quality"), earlier["quality"]
    pairs = {key: (report[key], earlier[key]) for key in ("model", "target")}
    if quality and old:
        pairs["quality"] = quality["kind"], old["kind"]
        for which in ("validation", "test"):
            if quality[which] and old[which]:
                pairs[f"{which} data"] = f"{quality[which]['n']:,} samples", f"{old[which]['n']:,} samples"
    if report.get("file") and earlier["file"]:
        pairs["inputs"] = shapes(report["file"]), shapes(earlier["file"])
    if other := [f"{key}: {now}, earlier {then}" for key, (now, then) in pairs.items() if now != then]:
        raise ReportError(f"The two reports cannot be compared. {'; '.join(other)}.")
