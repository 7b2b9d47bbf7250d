"""The sections of `report.html` below the answer: what was measured, what papers print, what is missing."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from incrs import results
from incrs.answer import Answer, is_better, is_worse
from incrs.markup import NONE, Cell, folded, number, numeric, table, text
from incrs.published import NOTES, WORDS, cells_of_published, published, same_logs
from incrs.results import POOLED
from incrs.runs import Runs
from incrs.significance import Comparison
from incrs.summary import Line


def summary(
    lines: Sequence[Line], found: Sequence[Answer], metrics: tuple[str, str], up: bool, role: str
) -> str:
    """Return the section with every number of the summary."""
    main, second = map(results.title, metrics)
    order = "descending" if up else "ascending"
    bases = sorted({line.baseline for line in lines if line.baseline})
    heads: list[str | tuple[str, str]] = ["updater"]
    words = [k for k in ("model", "data") if len({getattr(line, k) for line in lines}) > 1]
    heads += ["log" if k == "data" else k for k in words]
    heads += [(main, order)]
    if bases:
        than = bases[0] if len(bases) == 1 else "baseline"
        heads += [(f"minus {than} (95%)", order), ("interval", order)]
        heads += [("effect size", order), ("p (Holm)", "ascending")]
    heads += [("s/period", "ascending"), (second, "ascending" if up else "descending")]
    scenarios = list(dict.fromkeys(name for line in lines for name in line.by_scenario))
    heads += [(f"{main} {name}", order) for name in scenarios] + [("seeds", "descending")]
    gaps = [line.gap for line in lines if line.gap]
    ends = [g.difference + side * wide(g) for g in gaps for side in (-1, 1)]
    scale = min([0.0, *ends]), max([0.0, *ends])
    chosen = {(one.log, one.model, one.name) for one in found}
    rows = []
    for line in lines:
        cells = [Cell(text(line.updater)), *(Cell(text(getattr(line, k))) for k in words)]
        spread = (
            "" if line.deviation is None else f" <span class=soft>± {number(line.deviation)}</span>"
        )
        cells.append(numeric(line.value, more=spread))
        if bases:
            cells += comparison(line, up, scale, in_use=line.updater in bases)
        cells += [numeric(line.seconds, ".2f"), numeric(line.second)]
        cells += [numeric(line.by_scenario.get(name)) for name in scenarios]
        cells.append(numeric(line.seeds, "d"))
        mark = " class=chosen" * ((line.data, line.model, line.updater) in chosen)
        rows.append((f'{mark} data-label="{text(line.updater)}"', cells))
    return SUMMARY.format(
        role=text(role), notes=EXPLAINED if bases else "", table=table(heads, rows)
    )


SUMMARY = """<section id=all><h2>Every updater</h2>
<p>Means over seeds and {role} periods, ± the standard deviation over seeds. A click on a head sorts.</p>
{table}{notes}</section>"""

EXPLAINED = """<details><summary>How to read it</summary><p class=note>
Differences are paired by seed and period; ± is half of their 95% t-interval,
drawn thick. Pairs of one seed or one period go together, so the thin line is the cautious interval: the
wider of those over seeds and over periods. The effect size is the mean difference over the standard
deviation of the differences, with its interval. p is the t-test's after Holm's correction for the number of
updaters; * is p below .05, (*) where the cautious interval holds zero all the same.</p></details>"""


def comparison(line: Line, up: bool, scale: tuple[float, float], in_use: bool) -> list[Cell]:
    """Return the cells that compare a line to its baseline.  in_use: whether others are compared to it."""
    gap = line.gap
    if gap is None:
        says = "<span class=soft>baseline</span>" if in_use else NONE
        return [Cell(says, ""), Cell("", ""), Cell(NONE, ""), Cell(NONE, "")]
    shown = number(gap.difference, "+.5f")
    shown += f" <span class=soft>± {number(gap.half_width, '.5f')}</span>"
    low, high = number(gap.effect_low, "+.1f"), number(gap.effect_high, "+.1f")
    p = NONE if line.p is None else "&lt; .001" if line.p < 0.001 else f"{line.p:.3f}".lstrip("0")
    return [
        Cell(shown, repr(gap.difference)),
        Cell(interval(line, up, scale), repr(gap.difference)),
        numeric(gap.effect, "+.1f", f" <span class=soft>{low} to {high}</span>"),
        Cell(f"{p} {line.star}".rstrip(), "" if line.p is None else repr(line.p)),
    ]


def wide(gap: Comparison) -> float:
    """Return half the width of the wider interval of a difference."""
    return max(gap.half_width, gap.cautious or 0.0)


def interval(line: Line, up: bool, scale: tuple[float, float]) -> str:
    """Return a picture of a difference and its intervals; scale: what its left and right edge stand for."""
    gap = line.gap
    assert gap is not None
    low, high = scale

    def at(value: float) -> str:
        return f"{4 + 142 * (value - low) / ((high - low) or 1):.1f}"

    kind = " sure" * is_better(line, up) + " worse" * is_worse(line, up)
    spans = "".join(
        f'<line class="{name}" x1="{at(gap.difference - half)}" x2="{at(gap.difference + half)}" y1=8 y2=8 />'
        for name, half in (("span thin", wide(gap)), ("span", gap.half_width))
    )
    says = f"{number(gap.difference, '+.5f')} plus or minus {number(gap.half_width, '.5f')}"
    return (
        f'<svg class="gap{kind}" viewBox="0 0 150 16" role=img aria-label="{text(says)}">'
        f'<line class=zero x1="{at(0)}" x2="{at(0)}" y1=0 y2=16 />{spans}'
        f'<circle cx="{at(gap.difference)}" cy=8 r="3.5" /></svg>'
    )


def charts_of_settings(
    sweeps: Sequence[dict[str, Any]], maps: Sequence[dict[str, Any]], role: str
) -> str:
    """Return the section on numbers that were swept, empty where none was."""
    if not sweeps:
        return ""
    several = len({one["title"] for one in [*sweeps, *maps]}) > 1
    boxes = []
    for kind, some in (("sweep", sweeps), ("map", maps)):
        for i, one in enumerate(some):
            what = one["head"] if kind == "sweep" else f"{one['across']} and {one['down']}"
            title = f"{what} · {one['title']}" if several else what
            names = [line["name"] for line in one.get("lines", ())]
            keys = "".join(
                f'<span data-place="{k}">{text(name)}</span>'
                for k, name in enumerate(names)
                if name
            )
            note = "<p class=note>means over the other settings</p>" if one.get("means") else ""
            boxes.append(
                f"<div><h3>{text(title)}</h3><div class=keys>{keys}</div>{note}"
                f'<div class="chart low" data-{kind}="{i}" role=img aria-label="{text(title)}"></div></div>'
            )
    chosen = (
        ""
        if role == "tune"
        else " Settings are chosen on the tune periods: incrs.report --role tune."
    )
    return (
        f"<section id=settings><h2>Settings</h2><p>Means over {text(role)} periods; bars are one standard "
        f"deviation over seeds.{chosen}</p><div class=half>{''.join(boxes)}</div></section>"
    )


def papers(runs: Runs, lines: Sequence[Line], metric: str) -> str:
    """Return the section that puts papers' figures beside the runs, empty where there are none."""
    found = []
    for data in sorted({str(record["about"]["data"]) for record in runs.records.values()}):
        for log in same_logs(data):
            own = [line for line in lines if line.data.split(" #")[0] == data]
            found.append(f"<h3>{text(log)}</h3>" + beside(log, own, metric))
            cells = cells_of_published(log)
            heads: list[str | tuple[str, str]] = [
                h if h in WORDS else (h, "descending") for h in cells[0]
            ]
            rows = [("", [Cell(text(cell)) for cell in one.values()]) for one in cells]
            says = f"<summary>All that papers print for {text(log)}</summary>"
            found.append(f"<details>{says}{table(heads, rows)}</details>")
            for paper in dict.fromkeys(f.paper for f in published(log)):
                if paper in NOTES:
                    found.append(f"<p class=note>{text(paper)}: {text(NOTES[paper])}</p>")
    if not found:
        return ""
    return (
        "<section id=paper><h2>What papers print</h2><p>Their logs and periods may differ from those here: "
        f"compare the gaps between updaters rather than the levels.</p>{''.join(found)}</section>"
    )


def beside(log: str, lines: Sequence[Line], metric: str) -> str:
    """Return the table of what a paper has, too: same log, model, updater and scenario.

    Gaps are to the baseline, or to frozen where the paper has that alone.
    """
    printed: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for f in published(log):
        if f.metric == metric and f.period != 0:
            values = printed.setdefault((f.paper, f.table, f.model, f.scenario), {})
            values.setdefault(f.updater, []).append(f.value)
    own = {(line.data, line.model, line.updater): line for line in lines}
    rows: list[tuple[str, Sequence[Cell]]] = []
    seen: list[tuple[Line, str, str, float]] = []
    for line, (key, values) in itertools.product(lines, printed.items()):
        paper, table_of, model, scenario = key
        here, name = _in_scenario(line, scenario), line.updater.split(" ")[0]
        if model != line.model or name not in values or here is None:
            continue
        theirs = {updater: statistics.fmean(some) for updater, some in values.items()}
        known = (line, paper, scenario, theirs[name])
        if known in seen:  # two tables of a paper print it alike
            continue
        seen.append(known)
        cells = [Cell(text(line.updater)), Cell(text(model)), Cell(text(scenario))]
        cells += [Cell(text(f"{paper} {table_of}")), numeric(here), numeric(theirs[name])]
        for base in (line.baseline or "", "frozen"):
            rival = own.get((line.data, model, base))
            if rival and base in theirs and base != name:
                gap = here - (_in_scenario(rival, scenario) or math.nan)
                cells += [Cell(text(base)), numeric(gap, "+.4f")]
                rows.append(("", [*cells, numeric(theirs[name] - theirs[base], "+.4f")]))
                break
        else:
            rows.append(("", [*cells, Cell(NONE, ""), Cell(NONE, ""), Cell(NONE, "")]))
    title = results.title(metric)
    heads: list[str | tuple[str, str]] = ["updater", "model", "scenario", "paper and table"]
    heads += [(f"{title} here", "descending"), (f"{title} printed", "descending"), "compared to"]
    heads += [("gap here", "descending"), ("gap printed", "descending")]
    if all(cells[-1].value == "" for _, cells in rows):  # the paper has no updater to compare to
        heads, rows = heads[:6], [(more, cells[:6]) for more, cells in rows]
    return table(heads, rows) if rows else ""


def _in_scenario(line: Line, scenario: str) -> float | None:
    return line.value if scenario == POOLED else line.by_scenario.get(scenario)


def missing(runs: Runs) -> str:
    """Return the section on what is not there, not finished or not comparable, empty where all is well."""
    if not runs.missing:
        return ""
    items = [f"<li>{text(sentence)}</li>" for sentence in runs.missing]
    return (
        "<section id=missing class=warn><h2>What is missing</h2><p>The page shows what there is; this is "
        f"not in it, or not compared.</p>{folded(items, '<ul class=plain>{}</ul>')}</section>"
    )


def made(runs: Runs) -> str:
    """Return the section with the commands and versions that made the runs."""
    records = list(runs.records.values())
    commands = Counter(str(record.get("command", "unknown")) for record in records)
    items = [
        f"<p class=note>{count} run{'s' * (count != 1)}</p><pre>{text(command)}</pre>"
        for command, count in commands.most_common()
    ]
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, {})[str(version)] = None
    prints = Counter(
        (str(r["about"]["data"]), str(r.get("data", {}).get("fingerprint", "unknown")))
        for r in records
    )
    used = "".join(
        f"<li>{text(name)} {text(' and '.join(some))}</li>" for name, some in versions.items()
    )
    logs = "".join(f"<li>{text(data)}: fingerprint {text(one)}</li>" for data, one in prints)
    return (
        f"<section id=made><h2>How it was made</h2>{folded(items)}<ul class=plain>{logs}</ul>"
        f"<details><summary>Versions</summary><ul class=plain>{used}</ul></details></section>"
    )
