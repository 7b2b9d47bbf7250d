"""A comparison at Weights & Biases, as code: the summary as a table, a workspace with a panel per scenario.

python -m incrs.report multirun/2026-01-31/10-00-00 --wandb --project mine

Its charts are those that `logger=[csv,wandb]` logged while the runs ran; runs of one sweep are one group.
"""

from __future__ import annotations

import netrc
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from incrs.dashboard import group_of, labels_of
from incrs.errors import Mistake
from incrs.results import POOLED, title
from incrs.runs import Runs
from incrs.summary import Line

TABLE = "results/summary"
HOST = "https://api.wandb.ai"


class Libraries(NamedTuple):
    """The packages that talk to W&B: its own, that of its workspaces, that of their panels."""

    wandb: Any
    workspaces: Any
    panels: Any


def libraries() -> Libraries:
    """Return the packages, which warn of their own age.  Raises Mistake where one is missing."""
    names = ("wandb", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Libraries(*map(import_module, names))
    except ImportError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise Mistake(
            f"--wandb: {package} is not installed; pip install 'incrs[wandb]', or leave --wandb out"
        ) from None


def has_key() -> bool:
    """Return whether the account's key is where W&B looks for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", HOST)).hostname or ""
    try:
        file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def groups_of(runs: Runs) -> list[str]:
    """Return the W&B groups of the runs: what they were given, or their sweeps'."""
    found = []
    for folder, record in runs.records.items():
        logger = (record["config"].get("logger") or {}).get("wandb") or {}
        found.append(logger.get("group") or group_of(Path(folder)))
    return sorted({name for name in found if name})


def keys_of(runs: Runs, metrics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return metric -> {panel's title: key}, for all scenarios together and for each."""
    labels: dict[str, str] = {}
    for record in runs.records.values():
        labels |= labels_of([POOLED, *record["data"]["scenarios"]])
    return {
        metric: {
            title(metric) if name == POOLED else f"{title(metric)}, {name}": f"{metric}/{label}"
            for name, label in labels.items()
        }
        for metric in metrics
    }


def workspace(
    entity: str, project: str, groups: Sequence[str], keys: Mapping[str, Mapping[str, str]]
) -> Any:
    """Return the workspace, which is nowhere yet: a section for each metric, over periods.

    entity, project: W&B's.  groups: of the runs that are shown, none for all of the project's.
    keys: metric -> {panel's title: key}.  A line is the mean of an updater's runs, its band their
    deviation.
    """
    _, ws, wr = libraries()

    def panel(name: str, key: str) -> Any:
        by = wr.Config("about.updater")
        over = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
        return wr.LinePlot(title=name, x="period", y=[key], groupby=by, title_x="period", **over)

    sections = [
        ws.Section(
            name=f"{title(metric)} by period",
            panels=[panel(name, key) for name, key in panels.items()],
            is_open=position == 0,
        )
        for position, (metric, panels) in enumerate(keys.items())
    ]
    cost = {
        "training, s": "seconds/fit",
        "learning from the next period, s": "seconds/learn_next",
        "training loss": "loss/train",
    }
    sections += [
        ws.Section(name="cost", panels=[panel(name, key) for name, key in cost.items()]),
        ws.Section(name="summary", panels=[wr.WeavePanelSummaryTable(table_name=TABLE)]),
    ]
    shown = ws.RunsetSettings(
        filters=ws.And(ws.Metric("Group").isin(list(groups))) if groups else "",
        groupby=[ws.Config("about.model"), ws.Config("about.updater")],
    )
    name = f"incrs {', '.join(groups)}" if groups else "incrs"
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections, runset_settings=shown
    )


def table_of(
    lines: Sequence[Line], baseline: str, metrics: tuple[str, str]
) -> tuple[list[str], list[list[Any]]]:
    """Return columns and lines of the summary's table, numbers as numbers."""
    main, second = metrics
    scenarios = list(dict.fromkeys(name for line in lines for name in line.by_scenario))
    columns = ["data", "model", "updater", "seeds", "periods", main, f"{main}_deviation", second]
    columns += [f"minus_{baseline}", "half_width", "p", "wilcoxon_p", "seconds"]
    columns += [f"{main}_{name}" for name in scenarios]
    found = []
    for line in lines:
        gap = (None, None) if line.gap is None else (line.gap.difference, line.gap.half_width)
        head = [line.data, line.model, line.updater, line.seeds, line.periods]
        level = [line.value, line.deviation, line.second]
        rest = [*gap, line.p, line.wilcoxon_p, line.seconds]
        found.append([*head, *level, *rest, *(line.by_scenario.get(name) for name in scenarios)])
    return columns, found


def push(
    runs: Runs,
    lines: Sequence[Line],
    baseline: str,
    role: str,
    metrics: tuple[str, str],
    entity: str | None = None,
    project: str = "incrs",
) -> list[str]:
    """Send the summary as a run of its own, and the workspace; return where they can be seen.

    lines, baseline, role, metrics: of the report's summary.  entity: None for the account's own.
    Raises Mistake where W&B is not set up or does not take it.
    """
    wandb = libraries().wandb
    if not has_key():
        raise Mistake(
            "--wandb: there is no key of Weights & Biases; run `wandb login`, or set WANDB_API_KEY"
        )
    groups = groups_of(runs)
    settings = wandb.Settings(silent=True, console="off", x_disable_meta=True)
    columns, data = table_of(lines, baseline, metrics)
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            group=groups[0] if len(groups) == 1 else None,
            job_type="summary",
            name=f"{role} periods of {', '.join(groups) or 'runs'}",
            settings=settings,
        )
        run.log({TABLE: wandb.Table(columns=columns, data=data)})
        seen, owner = [run.url], run.entity
        run.finish()
        view = workspace(owner, project, groups, keys_of(runs, metrics))
        seen.append(view.save().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        said = " ".join((str(error) or type(error).__name__).split())[:200]
        raise Mistake(f"--wandb: Weights & Biases does not take it ({said})") from error
    return [str(url) for url in seen]
