"""The papers' own figures, and the table that puts them beside a run.

    python -m incrs.report RUN --published
    published(data="kuairand", metric="auc", model="star")

`published.csv`: paper,table,data,model,updater,metric,scenario,period,value, one row per printed
number of every table that compares methods, with the digits printed; percent are fractions, but for
hr_K, which is percent in results.csv, too; columns of relative gains are left out.

paper     asmg (Peng et al., RecSys 2021), sml (Zhang et al., SIGIR 2020), multifs (WSDM 2024, its poster's
          one table, here 1), incmsr (Zhang et al., WSDM 2024), ruie (Feng et al., CIKM 2025).
data      As in `conf/data`, without the variant: kuairand for kuairand-pure.
model     A name of `conf/model`, else the paper's; what follows a hyphen tells a variant: dcn-single
          (a model per scenario), dnn-optfs (a backbone on the features that OptFS selects), dnn-sd.
updater   A name of `conf/updater`, with the variant after a hyphen: finetune (IU, Fine-tune), batch-7
          (BU-7), batch-all (Full-retrain), asmg-multi, incmsr-wo-t. frozen is IncMSR's Batch-i,
          the warm-up's model i days later. once: trained once on a log without periods.
metric    auc, logloss, recall_5, ndcg_20, ...; hr_5, ... for what RUIE calls NDCG and what behaves as a hit
          rate; auc_std and logloss_std over a paper's repeated runs;
          minutes and seconds of an update.
scenario  `all` where rows are pooled, else the log's name of the scenario.
period    Empty for a mean over the test periods, else the paper's number: IncMSR's Batch-0 to Batch-6
          and Incre-1 to Incre-6, SML's test periods 0 to 6, ASMG's period 30.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from incrs.console import line, terminal
from incrs.errors import Mistake
from incrs.results import POOLED

FILE = Path(__file__).with_name("published.csv")
NOTES = {
    "incmsr": "Batch-i (here frozen) and Incre-i are means over i = 1 to 6 (Taobao: 5); Incre-i seems to be "
    "scored on rows of the day it learnt from, not of the next; incctr in its Table 4 is plain fine-tuning.",
    "multifs": "The poster does not name the two columns of a log: taken as nl, fr and es, us, as the base "
    "rates of clicks order them.",
    "ruie": "What it calls NDCG behaves like a hit rate, and stands here as one.",
}
"""What a reader must know of a paper's figures before comparing."""


WORDS = ("from", "model", "updater")
"""The columns that name a line; `from` is the paper and the number of its table."""


class Figure(NamedTuple):
    """One printed number: the columns of `published.csv`; period is None for a mean over periods."""

    paper: str
    table: str
    data: str
    model: str
    updater: str
    metric: str
    scenario: str
    period: int | None
    value: float


def published(
    data: str | None = None,
    metric: str | None = None,
    *,
    paper: str | None = None,
    table: str | None = None,
    model: str | None = None,
    updater: str | None = None,
    scenario: str | None = None,
) -> list[Figure]:
    """Return the figures in the papers' order, of the names that are given.

    Raises Mistake for a name that its column does not hold.
    """
    wanted = {"data": data, "metric": metric, "paper": paper, "table": table, "model": model}
    wanted |= {"updater": updater, "scenario": scenario}
    asked = {column: name for column, name in wanted.items() if name is not None}
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for column, name in asked.items():
        held = dict.fromkeys(row[column] for row in rows)
        if name not in held:
            raise Mistake(f"{column}={name}: published.csv holds {', '.join(held)}")
    return [
        Figure(
            row["paper"],
            row["table"],
            row["data"],
            row["model"],
            row["updater"],
            row["metric"],
            row["scenario"],
            int(row["period"]) if row["period"] else None,
            float(row["value"]),
        )
        for row in rows
        if all(row[column] == name for column, name in asked.items())
    ]


def base(name: str) -> str:
    """Return a log's name without its variant: kuairand of kuairand-pure."""
    return re.split("[-_]", name.lower(), maxsplit=1)[0]


def same_logs(data: str) -> list[str]:
    """Return the papers' names of a log: its own name, else every name with its base name."""
    names = list(dict.fromkeys(f.data for f in published()))
    return [data] if data in names else [name for name in names if base(name) == base(data)]


def cells_of_published(log: str) -> list[dict[str, str]]:
    """Return what the papers print for a log of theirs: a mapping from head to cell for each method.

    Means over the printed periods from 1 on: period 0 is IncMSR's warm-up model on its own days.
    A method that two tables of a paper print alike is listed once, under the first.
    """
    groups: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for f in published(log):
        timing = f.metric in ("minutes", "seconds")
        if timing or f.metric.endswith("_std") or f.period == 0:
            continue
        head = {"auc": "AUC", "logloss": "log loss"}.get(f.metric, f.metric.replace("_", "@"))
        head += "" if f.scenario == POOLED else f" {f.scenario}"
        values = groups.setdefault((f.paper, f.table, f.model, f.updater), {})
        values.setdefault(head, []).append(f.value)
    found: list[dict[str, str]] = []
    first: dict[tuple[str, str, str], dict[str, str]] = {}
    for (paper, table, model, updater), values in groups.items():
        means = {head: f"{sum(v) / len(v):.4f}" for head, v in values.items()}
        known = first.setdefault((paper, model, updater), means)
        if known is means or any(known.get(head) != cell for head, cell in means.items()):
            about = (f"{paper} {table}", model, updater)
            found.append(dict(zip(WORDS, about, strict=True)) | means)
    heads = dict.fromkeys(head for one in found for head in one)
    return [{head: one.get(head, "-") for head in heads} for one in found]


def show_published(runs_on: Iterable[str], markdown: bool = False) -> None:
    """Print the papers' figures for each log that runs were made on, or that there are none."""
    for data in runs_on:
        logs = same_logs(data)
        if not logs:
            known = ", ".join(dict.fromkeys(base(f.data) for f in published()))
            line(f"no paper has figures on {data}; there are figures on {known}")
            continue
        papers = dict.fromkeys(f.paper for log in logs for f in published(log))
        for log in logs:
            (_print_markdown if markdown else _print_tables)(log, cells_of_published(log))
        line(
            f"The papers' log and periods may differ from those of {data}: "
            "compare the gaps between methods rather than their levels."
        )
        for paper in papers:
            if paper in NOTES:
                line(f"{paper}: {NOTES[paper]}")


def _print_markdown(log: str, cells: Sequence[Mapping[str, str]]) -> None:
    print(f"\nwhat the papers print for {log}\n")
    rule = ["---" if head in WORDS else "---:" for head in cells[0]]
    for row in (list(cells[0]), rule, *(list(one.values()) for one in cells)):
        print("| " + " | ".join(row) + " |")
    print()


def _print_tables(log: str, cells: Sequence[Mapping[str, str]]) -> None:
    """Print one table, or one for each metric where the numbers would not fit side by side."""
    numbers = [head for head in cells[0] if head not in WORDS]
    kinds = list(dict.fromkeys(re.split("@| (?!loss)", head)[0] for head in numbers))
    for kind in kinds if len(numbers) > 4 else [""]:
        shown = [head for head in numbers if head.startswith(kind)]
        title = f"what the papers print for {log}" + (f": {kind}" if kind else "")
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for head in WORDS:
            table.add_column(head, overflow="fold")
        for head in shown:
            table.add_column(head.removeprefix("log "), justify="right", no_wrap=True)
        for one in cells:
            if any(one[head] != "-" for head in shown):
                table.add_row(*(one[head] for head in [*WORDS, *shown]))
        terminal.print(table)
