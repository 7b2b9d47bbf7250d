"""`report.html`: one page on some runs that answers which updater to deploy, and shows why.

    page.write(Path("report.html"), runs, lines, "finetune", "test", ("auc", "logloss"))

The page holds everything it shows and loads nothing.  `page.html` is its markup and looks, `page.js`
draws the charts with Plotly (MIT), which is in it once: 4.8 MB that bring zoom, hover, touch and
pictures to keep.  What is in it of the runs are means: a thousand runs make no larger page than ten.

Names come from other people's logs. In markup they pass `html.escape`, in the data they stand as JSON
without <, > and &, and the script writes them as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from incrs import __version__, figures, results, sections, sensitivity
from incrs.answer import Answer, answers
from incrs.markup import embedded, number, text
from incrs.runs import Runs
from incrs.summary import Line, lower_is_better


def write(
    path: Path,
    runs: Runs,
    lines: Sequence[Line],
    baseline: str,
    role: str,
    metrics: tuple[str, str],
) -> None:
    """Write the page on the runs to `path`, whole or not at all.

    lines: the summary, by metrics[0], over the periods of `role`; differences are to `baseline`.
    """
    results.replace_text(path, page(runs, lines, baseline, role, metrics))


def page(
    runs: Runs, lines: Sequence[Line], baseline: str, role: str, metrics: tuple[str, str]
) -> str:
    """Return the page as text."""
    metric, up = results.title(metrics[0]), not lower_is_better(metrics[0])
    table = figures.of_metric(runs, metrics[0])
    tuned = figures.means(table, "tune") if role == "test" else {}
    found = answers(lines, baseline, metric, up, tuned)
    deployed = {(one.log, one.model, one.name) for one in found}
    groups = figures.groups(runs, table, lines, deployed)
    sweeps, maps = sensitivity.charts_of(runs, table, lines, baseline, role)
    bases = sorted({line.baseline for line in lines if line.baseline})
    labels = dict.fromkeys(line.updater for line in lines)
    data = {"metric": metric, "up": up, "baseline": bases[0] if len(bases) == 1 else baseline}
    data |= {"colours": [label for label in labels if label != data["baseline"]]}
    data |= {"groups": groups, "sweeps": sweeps, "maps": maps}
    logs = dict.fromkeys(line.data for line in lines)
    parts = {
        "title": text(f"{', '.join(logs)}: which updater to deploy"),
        "header": header(runs, lines, found, role, metric),
        "table": sections.summary(lines, found, metrics, up, role),
        "metric": text(metric),
        "baseline": text(baseline),
        "charts": sections.charts_of_settings(sweeps, maps, role),
        "published": sections.papers(runs, lines, metrics[0]),
        "missing": sections.missing(runs),
        "made": sections.made(runs),
        "version": text(__version__),
        "data": embedded(data),
        "plotly": files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8"),
        "script": _beside("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _beside("page.html"))


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def header(
    runs: Runs, lines: Sequence[Line], found: Sequence[Answer], role: str, metric: str
) -> str:
    """Return what stands first: the answer, how sure it is, what it costs."""
    names = dict.fromkeys(one.name for one in found)
    about = [", ".join(dict.fromkeys(getattr(one, k) for one in found)) for k in ("log", "model")]
    about.append(f"{len(runs.records)} runs" if len(runs.records) > 1 else "1 run")
    top = f"<p>{text(' · '.join(about))}</p><button type=button id=theme>Dark</button>"
    if len(found) == 1:
        one = found[0]
        says = f"<h1>{text(one.headline)}</h1><p class=lead>{text(one.because)}</p>"
        says += f"<p class=lead>{text(one.cost)}</p>{facts(lines, one, metric)}"
    else:
        agreed = len(names) == 1 and len({one.headline for one in found}) == 1
        many = f"The answer is the same on all {len(found)} logs and models."
        apart = [k for k in ("log", "model") if len({getattr(one, k) for one in found}) > 1]
        headline = found[0].headline if agreed else f"It depends on the {' and the '.join(apart)}"
        says = f"<h1>{text(headline)}</h1>" + (f"<p class=lead>{many}</p>" if agreed else "")
        says += "<ul class=each>"
        for one in found:
            head = "" if agreed else f" {text(one.headline)}."
            who = f"<b>{text(one.log)} · {text(one.model)}:</b>"
            says += f"<li>{who}{head} {text(one.because)} {text(one.cost)}</li>"
        says += "</ul>"
    notes = []
    if role == "tune":
        notes.append(
            "These are tune periods, on which settings are chosen: only test periods decide."
        )
    if runs.missing:
        notes.append(
            'Something is missing or cannot be compared: <a href="#missing">see below</a>.'
        )
    says += "".join(f"<p class=note>{note}</p>" for note in notes)
    return f"<header><div class=top>{top}</div>{says}</header>"


def facts(lines: Sequence[Line], one: Answer, metric: str) -> str:
    """Return the numbers of the updater to deploy, large."""
    line = next(line for line in lines if line.updater == one.name)
    shown = [(metric, number(line.value), "mean over seeds and periods")]
    if line.gap is not None:
        reach = f"95% interval ± {number(sections.wide(line.gap), '.5f')}"
        shown.append((f"minus {line.baseline}", number(line.gap.difference, "+.5f"), reach))
    shown.append(("seconds a period", number(line.seconds, ".2f"), "training and learning"))
    seeds = f"{line.seeds} seed{'s' * (line.seeds != 1)}"
    shown.append(("evidence", seeds, f"by {line.periods} period{'s' * (line.periods != 1)}"))
    cells = [
        f"<div><dt>{text(a)}</dt><dd>{text(b)}<small>{text(c)}</small></dd></div>"
        for a, b, c in shown
    ]
    return f"<dl class=facts>{''.join(cells)}</dl>"
