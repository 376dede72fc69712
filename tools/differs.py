"""Does my machine differ? Hold a run of your own against a published one, and print what lies outside its intervals.

    python -m tools.differs FILE_OR_ADDRESS

It is a ``results.json`` or ``verdicts.json``, or the folder or address of a site, which has both; if nothing is named,
the site that belongs to ``repository.url`` in ``_config.yml``. What differs is news and no error: it ends with 0 when
the two runs could be compared.
"""

import argparse
import http.client
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from qhelpers import benchmark
from tools import common, results
from tools.remeasure import Held, Ratios, held
from tools.run_notebooks import RESULTS

TIMEOUT_S = 30
WITHOUT_INTERVAL = {"size_mb": ("size", "{:.2f} MB"), "sqnr_db": ("SQNR", "{:.1f} dB")}  # as they are printed
Document = dict[str, Any]


def load(where: str) -> Document:
    """Read a published file and check it against the schema that it names.

    Raises:
        SystemExit: if it cannot be read, is no JSON, or of a schema that this checkout does not know.
    """
    try:
        content = _bytes(where)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last: of what is no address
        raise SystemExit(f"{where} cannot be read: {error}") from error
    try:
        document = json.loads(content, parse_constant=_not_in_json)
    except ValueError as error:
        raise SystemExit(f"{where} is no JSON file ({error}).") from error
    named = document.get("schema") if isinstance(document, dict) else None
    kinds = {results.name_of(kind): kind for kind in results.KINDS}
    if not isinstance(named, str) or named not in kinds:
        raise SystemExit(
            f"{where} is of another schema: it names {named!r}, and this checkout compares {' and '.join(kinds)}. "
            "Compare with the checkout that the site was built from."
        )
    if words := results.fault(document, kinds[named]):
        raise SystemExit(f"{where} names the schema {named!r}, but breaks it at {words}")
    return dict(document)


def _not_in_json(name: str) -> None:
    raise ValueError(f"it has {name} where a number belongs")


def _bytes(where: str) -> bytes:
    if not where.startswith(("http://", "https://")):
        return Path(where).read_bytes()
    with urllib.request.urlopen(where, timeout=TIMEOUT_S) as answer:
        return bytes(answer.read())


def published(where: str) -> list[Document]:
    """The published files that a name means: one that ends with ``.json``, or both of a site."""
    if where.endswith(".json"):
        return [load(where)]
    return [load(f"{where.rstrip('/')}/{kind}.json") for kind in results.KINDS]


def compare_results(there: Document, here: Document) -> list[str]:
    """Lines that say on what machines both runs were measured, and what lies outside the published intervals.

    Args:
        there: the published run, in the form of ``results.json``.
        here: one's own.

    Raises:
        SystemExit: if both have no chapter in common.
    """
    names = [name for name in there["chapters"] if name in here["chapters"]]
    if not names:
        raise SystemExit(
            f"No chapter was run both there ({_list(there['chapters'])}) and here ({_list(here['chapters'])})."
        )
    both = [(name, there["chapters"][name], here["chapters"][name]) for name in names]
    lines = [*_machines(there, here, names), *filter(None, (_weights(*one) for one in both))]
    pairs: list[Held] = []
    single: list[str] = []
    qualities: list[Held] = []
    others: list[str] = []
    for name, first, second in both:
        found, alone = held(name, _by_key(first), _by_key(second))
        pairs, single = pairs + found, single + alone
        rows, own = ({row["model"]: row for row in one["rows"]} for one in (first, second))
        single += [f"{name}: {model}" for model in [*rows, *own] if not (model in rows and model in own)]
        for model in (model for model in rows if model in own):
            qualities += _qualities(f"{name}, {model}", rows[model], own[model])
            others += _others(f"{name}, {model}", rows[model], own[model])
            others += _best_floats(name, rows[model], own[model])
    few = min((ratio["processes"] for _, first, _ in both for ratio in first["speeds"]), default=None)
    lines += _section("speeds outside the published intervals", pairs, _of_speeds(few))
    lines += _section("accuracies, or differences to float, outside the published intervals", qualities)
    lines += _list_of("differs, without an interval", [*dict.fromkeys(others)])
    lines += _list_of("in one of both runs only", single)
    if missing := [name for name in there["chapters"] if name not in here["chapters"]]:
        lines.append(f"not run here: {', '.join(missing)}")
    return lines


def _machines(there: Document, here: Document, names: list[str]) -> list[str]:
    """The machine of each run; several where its chapters were run on several."""
    first, second = (
        [*dict.fromkeys(_words(run["chapters"][name]["machine"]) for name in names)] for run in (there, here)
    )
    if first == second:
        return [f"published and here: {one}" for one in first]
    return [*(f"published: {one}" for one in first), *(f"here:      {one}" for one in second)]


def _words(machine: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processor']} ({machine['instructions']}); {versions}"


def _weights(name: str, first: Document, second: Document) -> str:
    if first.get("weights") == second.get("weights"):
        return ""
    return (
        f"{name}: {second.get('weights')} weights here, {first.get('weights')} ones there, so some of its figures are "
        "of other networks"
    )


def _by_key(chapter: Document) -> Ratios:
    return {(ratio["label"], ratio["name"], ratio["over"]): ratio for ratio in chapter["speeds"]}


def _qualities(where: str, first: Document, second: Document) -> list[Held]:
    """The value and the paired difference, where both runs measured them on as many inputs."""
    if any(first[key] != second[key] for key in ("metric", "n")):
        return []
    found = [
        Held(f"{where}: {first['metric']}", first["interval"][0], first["value"], first["interval"][1], second["value"])
    ]
    one, other = first["paired"], second["paired"]
    if one and other:
        words = f"{where}: difference to float in {one['unit']}"
        found.append(Held(words, one["interval"][0], one["difference"], one["interval"][1], other["difference"]))
    return found


def _others(where: str, first: Document, second: Document) -> list[str]:
    """What differs of a row's figures without an interval: where they are printed differently."""
    shown = [
        (words, *("–" if row[key] is None else form.format(row[key]) for row in (first, second)))
        for key, (words, form) in WITHOUT_INTERVAL.items()
    ]
    shown.append(("measured by", *(f"{row['metric']}, {row['n']:,} inputs" for row in (first, second))))
    shown.append(("setting", *(", ".join(row["setting"].split(", ")[-2:]) for row in (first, second))))  # no processor
    return [f"{where}: {words} {own}, published {one}" for words, one, own in shown if one != own]


def _best_floats(where: str, first: Document, second: Document) -> list[str]:
    """Another best float path: it is the rival in a column of the table, so ratios over it are about another one."""
    one, own = first["best_float"], second["best_float"]
    return [f"{where}: the best float path is {own}, published {one}"] if one != own else []


def _of_speeds(processes: int | None) -> str:
    if processes is None:
        return ""
    if processes < benchmark.ENOUGH_PROCESSES:
        one = processes == 1
        return (
            f"\n  They were published from {processes} process{'' if one else 'es'}: the intervals cover what "
            f"{'it' if one else 'they'} saw, not another occasion, so many lie outside on the same machine, too."
        )
    return "\n  On the same machine about 5 % lie outside by chance."


def _section(title: str, pairs: list[Held], note: str = "") -> list[str]:
    out = [pair for pair in pairs if not pair.inside]
    return [f"{title}: {len(out)} of {len(pairs)}{note if pairs else ''}", *(f"  {pair}" for pair in out)]


def _list_of(title: str, found: list[str]) -> list[str]:
    return [f"{title}: {len(found)}", *(f"  {one}" for one in found)]


def _list(names: Any) -> str:
    return ", ".join(names) or "none"


def compare_verdicts(there: Document, here: Document) -> list[str]:
    """Lines that name each statement with another verdict, and count those that only one of both runs has."""
    first, second = ({claim["id"]: claim for claim in one["claims"]} for one in (there, here))
    both = [name for name in first if name in second]
    changed = [name for name in both if first[name]["verdict"] != second[name]["verdict"]]
    lines = [f"verdicts that differ: {len(changed)} of {len(both)}"]
    for name in changed:
        lines.append(
            f"  {name}: {second[name]['verdict']}, published {first[name]['verdict']}: {first[name]['statement']}"
        )
    if missing := [name for name in first if name not in second]:
        lines.append(f"not checked here: {', '.join(missing)}")
    return lines


def main() -> int:
    """Compare the run in ``build/results`` with what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", metavar="FILE_OR_ADDRESS", nargs="?", default=common.site_url())
    if not (named := parser.parse_args().published):
        raise SystemExit(
            "Name what to compare with: make differs PUBLISHED=, a file or the address of a published site."
        )
    files = published(named)
    own = {"results": results.of_chapters(RESULTS), "verdicts": results.of_claims(RESULTS)}
    if not own["results"]["chapters"]:
        raise SystemExit(f"There is no run of your own in {RESULTS}: make book first, then make differs.")
    for document in files:
        kind = next(kind for kind in results.KINDS if results.name_of(kind) == document["schema"])
        if words := results.fault(own[kind], kind):
            raise SystemExit(f"Your own results are of another version ({words}): make book again.")
        compare = compare_results if kind == "results" else compare_verdicts
        print("\n".join(compare(document, own[kind])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
