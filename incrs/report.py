"""The door that compares runs: `python -m incrs.report multirun/2026-01-31/10-00-00 [more folders]`

One line for each data, model and updater: means over seeds and test periods, their deviation over
seeds, and the differences to `--baseline`, paired over seed and period: in percent of the baseline,
with their 95% interval, the effect size and, after it, what tests say.  The metric is AUC, of runs that
rank Recall; `--metric ndcg_10` compares by another number of results.csv.
`--role tune` reads the tune periods instead, the only ones that settings may be chosen on.
`--markdown` and `--latex` print what a README or a paper can hold.
`--published` adds what the papers print for the runs' logs.
`--out` says where the page with the curves is written, instead of report.html in the first folder;
`--picture report.png` draws the main ones for a README or a paper.
`--wandb` sends the summary and a workspace of its curves to Weights & Biases.
A sweep may be looked at while it runs; what is missing is told.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from incrs import console, picture, workspace
from incrs.errors import Mistake
from incrs.published import show_published
from incrs.runs import Runs, find_runs
from incrs.summary import Line, metrics_of, summarise
from incrs.tables import as_latex, as_markdown, cells_of, heads_of, print_tables

MOST = 8
"""How many sentences about runs that are missing are printed."""
LEGEND = (
    "Pairs are over seed and period. effect: Cohen's d_z, the mean of the pairs' differences over their "
    "deviation. p: paired t-test; signed rank p: Wilcoxon's; both after Holm's correction. * p < .05. "
    "cautious ±: the wider of the intervals over seeds' and over periods' means, for pairs of one seed "
    "or period go together; (*) p < .05, but that interval holds zero, or there is none."
)
"""How to read the differences."""


def sentences_of(lines: Sequence[Line], baseline: str) -> list[str]:
    """Return what the summary cannot say."""
    found = []
    gaps = [line.gap for line in lines if line.gap is not None]
    if any(gap.seeds == 1 for gap in gaps):
        found.append(
            "One seed: pairs over the periods of one seed do not tell how another seed would come "
            "out: give seed=0,1,2,3,4"
        )
    if any(gap.periods == 1 for gap in gaps):
        found.append("One period: its pairs do not tell how another period would come out")
    for data, model in dict.fromkeys((line.data, line.model) for line in lines):
        own = [line for line in lines if (line.data, line.model) == (data, model)]
        labels = [line.updater for line in own]
        alone = [line.updater for line in own if line.baseline is None]
        few = [
            line.updater
            for line in own
            if line.baseline and line.baseline != line.updater and not line.gap
        ]
        if len(own) > 1 and len(alone) == len(own):
            found.append(
                f"{data}, {model}: no differences, for there is no {baseline}; "
                f"--baseline takes one of {_listed(labels)}"
            )
        elif len(own) > 1 and alone:
            found.append(
                f"{data}, {model}: no differences of {_listed(alone)}, for no {baseline} alone has their "
                f"other settings; --baseline takes one of {_listed(labels)}"
            )
        if few:
            found.append(
                f"{data}, {model}: no differences of {_listed(few)}, for with {baseline} there are fewer "
                "than two pairs of the same seed and period"
            )
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def summary_of(
    runs: Runs, baseline: str | None = None, role: str | None = None, metric: str | None = None
) -> tuple[list[Line], str, str, tuple[str, str]]:
    """Return the lines, and the baseline, role and metrics that they are by.

    baseline: None for finetune.  role: None for test, or tune if no period is.  metric: None for what
    the runs are shown by: see `metrics_of`.  Raises Mistake where the runs have none of it.
    """
    metrics = metrics_of(runs, metric)
    if role is None:
        role = "test" if (runs.table["role"] == "test").any() else "tune"
    lines = summarise(runs, baseline or "finetune", role, metrics)
    if not lines:
        raise Mistake(f"--role {role}: the runs have no period of that role with {metrics[0]}")
    if baseline is not None and all(line.baseline is None for line in lines):
        labels = list(dict.fromkeys(line.updater for line in lines))
        raise Mistake(f"--baseline {baseline}: there is no such line; there are {_listed(labels)}")
    return lines, baseline or "finetune", role, metrics


def show_summary(runs: Runs) -> None:
    """Print the summary of the runs as it is where nothing is asked for: see `summary_of`."""
    show(runs, *summary_of(runs))


def show(
    runs: Runs,
    lines: Sequence[Line],
    baseline: str,
    role: str,
    metrics: tuple[str, str],
    form: str = "terminal",
) -> None:
    """Print a summary and what is missing of the runs.  form: terminal, markdown or latex."""
    sentences = [*sentences_of(lines, baseline), *runs.missing[:MOST]]
    if len(runs.missing) > MOST:
        sentences.append(
            f"... and {len(runs.missing) - MOST} more runs that are missing or unfinished"
        )
    if form == "terminal":
        for data in dict.fromkeys(line.data for line in lines):
            print_tables([line for line in lines if line.data == data], baseline, role, metrics)
        legend = [LEGEND] if any(line.gap for line in lines) else []
        for sentence in [*legend, *sentences]:
            console.line(sentence)
        return
    cells = cells_of(lines, baseline, metrics)
    needless = {"data"} if len({line.data for line in lines}) == 1 else set()
    needless |= {h for h in heads_of(baseline) if all(one[h] == "-" for one in cells)}
    shown = [head for head in cells[0] if head not in needless]
    table = [[one[head] for head in shown] for one in cells]
    for text in (as_markdown if form == "markdown" else as_latex)(shown, table):
        print(text)
    for sentence in sentences:
        print(f"incrs: {sentence}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(
        prog="python -m incrs.report", description=(__doc__ or "").split("\n")[0]
    )
    found.add_argument("folders", nargs="+", type=Path, help="run or sweep folders")
    found.add_argument("--baseline", help="line to take differences to (finetune)")
    found.add_argument("--role", choices=("tune", "test"), help="periods to read (test)")
    found.add_argument("--metric", help="number of results.csv to compare by")
    form = found.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    form.add_argument("--latex", action="store_true", help="print a LaTeX table")
    found.add_argument("--published", action="store_true", help="add the papers' own figures")
    found.add_argument("--picture", type=Path, help="draw the curves: a .png, .svg or .pdf")
    found.add_argument(
        "--out", type=Path, help="where to write the page (report.html in the first folder)"
    )
    found.add_argument("--wandb", action="store_true", help="send summary and workspace to W&B")
    found.add_argument("--entity", help="W&B's, for --wandb (the account's own)")
    found.add_argument("--project", default="incrs", help="W&B's, for --wandb (incrs)")
    return found


@contextmanager
def _written(file: Path) -> Iterator[None]:
    """Raise Mistake where the file cannot be written inside."""
    try:
        yield
    except OSError as error:
        raise Mistake(f"{file} cannot be written ({error.strerror}): give another one") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a user's mistake."""
    given = parser().parse_args(arguments)
    form = "markdown" if given.markdown else "latex" if given.latex else "terminal"
    try:
        runs = find_runs(given.folders)
        summary = summary_of(runs, given.baseline, given.role, given.metric)
        show(runs, *summary, form)
        file = given.out or given.folders[0] / "report.html"
        with _written(file):
            from incrs import page  # Plotly takes half a second, and every sweep ends with tables

            page.write(file, runs, *summary)
        if given.picture:
            with _written(given.picture):
                picture.draw(given.picture, runs, *summary)
        if form == "terminal":
            console.line(f"with curves, for a browser: {file}")
        if given.published:
            logs = sorted({str(record["about"]["data"]) for record in runs.records.values()})
            show_published(logs, given.markdown)
        if given.wandb:
            for place in workspace.push(runs, *summary, given.entity, given.project):
                console.line(f"W&B: {place}")
    except Mistake as mistake:
        print(f"incrs: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    gc.enable()  # see incrs/__init__.py
    sys.exit(main())
