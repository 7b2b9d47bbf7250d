"""Compares methods on one log as a careful user would: settings on tune periods, then seeds, then a table.

    python -m benchmarks.compare kuairand31 data.path=/logs/KuaiRand-Pure
    python -m benchmarks.compare drift        the synthetic log, one kind of change turned up at a time
    python -m benchmarks.compare next_item data.path=/logs/KuaiRand-Pure     backbones, next items

Every method, the study's first one before the others, chooses among the settings of its grid by the mean
over tune periods with seed 0 and `data.test=0`, so that no choice can look at the test. The others start
from what the first one chose, such as a learning rate, unless their own grid has it. Then the seeds run,
and the table pairs each method with the first over seed and test period. What is finished already is not
run again. Its seconds are those of the runs as they were, beside whatever else the machine did; with
`--time` a first seed of each method that is finished runs once more, one after the other and sharing
nothing, and its seconds count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from incrs import results
from incrs.significance import t_interval

BASELINE = "finetune"


class Method(NamedTuple):
    """An updater's fixed settings and the grid that it chooses from."""

    fixed: Sequence[str]
    grid: Mapping[str, Sequence[str]]


class Study(NamedTuple):
    """One log and task, and what is compared on it, the first of `methods` with every other.

    metrics: what the table has, `auc`, or `auc/4` of scenario 4 alone; settings are chosen by the first.
    """

    fixed: Sequence[str]
    seeds: int
    metrics: Sequence[str]
    methods: Mapping[str, Method]


RATES = {"optimizer.lr": ["0.001", "0.002"], "epochs": ["1", "2"]}
META = {"updater.asmg.learning_rate": ["0.01", "0.003", "0.001", "0.0003"]}


def asmg(variant: str, output: str = "residual") -> Method:
    """Return ASMG in one of its variants."""
    grid: Mapping[str, Sequence[str]] = META
    if variant == "linear":
        grid = {"updater.asmg.learning_rate": ["0.1", "0.03", "0.01", "0.003"]}
    if output == "direct":
        rates = ["0.01", "0.003"]
        grid = {"updater.asmg.learning_rate": rates, "updater.asmg.epochs": ["1", "5"]}
    fixed = [f"updater.asmg.variant={variant}", f"updater.asmg.output={output}"]
    return Method(["updater=asmg", *fixed], grid)


def window(size: str) -> Method:
    """Return retraining on a window of periods, one epoch from the weights of the period before."""
    fixed = [f"updater.batch.window={size}", "updater.batch.warm=true", "epochs=1"]
    rates = {"optimizer.lr": ["0.0003", "0.0005", "0.001", "0.002"]}
    return Method(["updater=batch", *fixed], rates)


SPMF = Method(
    ["updater=spmf"], {"updater.spmf.fraction": ["0.3", "1"], "updater.spmf.ratio": ["0.1", "0.5"]}
)
SML = Method(
    ["updater=sml"], {"updater.sml.learning_rate": ["0.00003", "0.0001", "0.0003", "0.001"]}
)
SML_DIRECT = Method(
    ["updater=sml", "updater.sml.output=direct"],
    {"updater.sml.learning_rate": ["0.001", "0.01"], "updater.sml.repetitions": ["1", "5"]},
)
INCCTR = Method(["updater=incctr"], {"updater.incctr.weight": ["0.05", "0.1", "0.2", "0.4"]})
INCMSR = Method(
    ["updater=incmsr"],
    {"updater.incmsr.weight": ["0.001", "0.01"], "updater.incmsr.margin": ["null", "1"]},
)
BOTH = Method(
    ["updater=[incmsr,asmg]", "updater.incmsr.margin=1"],
    {
        "updater.asmg.learning_rate": ["0.003", "0.001"],
        "updater.incmsr.weight": ["0.001", "0.01"],
    },
)
ALL = {
    BASELINE: Method(["updater=finetune"], RATES),
    "asmg multi": asmg("multi"),
    "incctr": INCCTR,
    "incmsr": INCMSR,
    "batch 3": window("3"),
    "asmg multi direct": asmg("multi", "direct"),
    "asmg single": asmg("single"),
    "asmg linear": asmg("linear"),
    "asmg uniform": asmg("uniform"),
    "asmg zero": asmg("zero"),
    "incmsr + asmg": BOTH,
    "batch 5": window("5"),
    "batch 7": window("7"),
    "spmf": SPMF,
    "sml": SML,
    "sml direct": SML_DIRECT,
    "full retraining": window("all"),
    "asmg full": asmg("full"),
}
CLICKS = ["auc", "logloss"]
PERIODS = ["data.period=count", "data.period_count=31", "data.pretrain=10", "data.tune=13"]


def by_day(model: str) -> Study:
    """Return the comparison on KuaiRand by day with one backbone."""
    shared = {"updater.asmg.share": ["per_output"]}
    rates = {"updater.asmg.learning_rate": ["0.003", "0.001"]}
    return Study(
        [
            "data=kuairand",
            f"model={model}",
            "data.start=2022-04-25",
            "data.end=2022-05-08",
            "data.pretrain=4",
            "data.tune=4",
            "data.test=6",
            "batch_size=500",
        ],
        3,
        CLICKS,
        {
            BASELINE: ALL[BASELINE],
            "incmsr": INCMSR,
            "asmg": Method(["updater=asmg"], shared | rates | {"updater.asmg.k": ["2", "3"]}),
            "incmsr + asmg": BOTH._replace(grid=shared | BOTH.grid),
            "sml": SML,
        },
    )


def drift(setting: str, level: str) -> Study:
    """Return the comparison on the synthetic log with one kind of change at a level, 5 logs."""
    days = ["data.periods=28", "data.pretrain=7", "data.tune=7", "data.shift_at=20"]
    off = {"data.shift": "0", "data.weekly_rhythm": "0"} | {f"data.{setting}": level}
    names = [BASELINE, "batch 7", "incctr", "incmsr", "spmf", "sml", "asmg multi"]
    return Study(
        ["data=synthetic", "data.seed=${seed}", "data.rows_per_period=4000", *days]
        + [f"{key}={value}" for key, value in off.items()]
        + ["model=embedding_mlp", "batch_size=256"],
        5,
        CLICKS,
        {name: ALL[name] for name in names},
    )


DAYS = ["data=kuairand", "data.start=2022-04-25", "data.end=2022-05-08"]
NEXT_ITEMS = [
    *DAYS,
    "data.filters=[{sample:user_id,n:4000}]",
    *[f"data.{columns}=[]" for columns in ("categorical", "time_fields", "numeric", "joins")],
    "~data.multivalued.tag",
    "data.history=20",
    "data.history_events=true",
    "data.behaviours=[is_click,is_follow,is_like,is_forward]",
    "data.pretrain=10",
    "data.tune=1",
    "data.test=3",
    "task=next_item",
    "task.negatives=20",
    "updater=finetune",
    "batch_size=256",
    "warmup_epochs=10",
]
"""Ids alone, as RUIE's log has them, of 4,000 users; the tuned day is the last before the test."""


def backbone(name: str, *settings: str) -> Method:
    """Return a backbone, which chooses its learning rate."""
    rates = {"optimizer.lr": ["0.001", "0.003", "0.01", "0.0003", "0.0001"]}
    return Method([f"model={name}", *settings], rates)


BACKBONES = {
    "sasrec": backbone("sasrec"),
    "ruie": backbone("ruie"),
    "gru4rec": backbone("gru4rec"),
    "caser": backbone("caser"),
    "nextitnet": backbone("nextitnet"),
    "mf": backbone("mf"),
    "din": backbone("din"),
    "star": backbone("star"),
    "pepnet": backbone("pepnet"),
    "shared_bottom": backbone("shared_bottom"),
    "embedding_mlp": backbone("embedding_mlp"),
    "dnn": backbone("dnn", "model.hidden=[128,64]"),
    "deepfm": backbone("deepfm", "model.hidden=[128,64]"),
    "dcn": backbone("dcn"),
    "mmoe": backbone("mmoe"),
    "hmoe": backbone("hmoe"),
    "ple": backbone("ple"),
}
TABS = {"0_4": ["0", "4"], "tabs": ["0", "1", "2", "4"]}


def selection(scenarios: Sequence[str], model: str) -> Study:
    """Return the comparison of selectors with a backbone on scenarios of KuaiRand.

    `alone 4`: the backbone without a selector on the rows of scenario 4 alone.
    """
    rates = {"optimizer.lr": ["0.001", "0.003"], "warmup_epochs": ["2", "4"]}
    methods = {
        "none": Method(["selector=none"], rates),
        "multifs": selector("multifs", SPARSE, sparsity="1e-5 1e-7", learning_rate="0.01 0.001"),
    }
    if model == "dnn":
        methods |= {
            "optfs": selector("optfs", sparsity="1e-5 1e-7", learning_rate="0.01 0.001"),
            "autofield": selector("autofield", keep="0.5 0.7 0.8 0.9"),
            "lpfs": selector("lpfs", sparsity="1e-4 3e-4 1e-3 3e-3"),
            "optembed": selector("optembed", alpha="1e-4 3e-4 1e-3 3e-3"),
            "cfs": selector("cfs", patience="5 10"),
            **{
                f"alone {one}": Method(["selector=none", f"data.scenarios=[{one}]"], rates)
                for one in scenarios
            },
        }
    own = [] if model == "dcn" else ["model.hidden=[256,128,64]"]
    days = ["data.pretrain=7", "data.tune=3", "data.test=4"]
    return Study(
        [
            *DAYS,
            f"data.scenarios=[{','.join(scenarios)}]",
            *days,
            f"model={model}",
            *own,
            "updater=finetune",
            "batch_size=500",
        ],
        3,
        ["auc", *(f"auc/{one}" for one in scenarios), "logloss"],
        methods,
    )


SPARSE = "selector.shared_sparsity=${selector.sparsity}"


def selector(name: str, *fixed: str, **grid: str) -> Method:
    """Return a selector with the values of its settings that it chooses from."""
    choices = {f"selector.{key}": values.split() for key, values in grid.items()}
    return Method([f"selector={name}", *fixed], choices)


LEVELS = {"shift": ["0", "2", "4"], "weekly_rhythm": ["0", "2", "4"]}
"""Of the synthetic log: one is turned up while the other is off."""
TURNED = [(setting, level) for setting, some in LEVELS.items() for level in some]


def level_of(setting: str, level: str) -> str:
    """Return the name of the study with a setting at a level."""
    return "calm" if level == "0" else f"{setting}_{level}"


STUDIES = {
    **{level_of(*one): drift(*one) for one in TURNED},
    "kuairand31": Study(
        ["data=kuairand", *PERIODS, "model=embedding_mlp", "batch_size=256"], 5, CLICKS, ALL
    ),
    "ranking": Study(
        [
            "data=movielens",
            *PERIODS,
            "model=mf",
            "task=ranking",
            "batch_size=256",
            "data.label=null",
            "data.label_threshold=null",
            "data.negatives=1",
        ],
        5,
        ["recall_20", "ndcg_20"],
        {
            BASELINE: Method(
                ["updater=finetune"], {"optimizer.lr": ["0.001", "0.01"], "epochs": ["1", "5"]}
            ),
            "full retraining": Method(
                [*window("all").fixed], {"optimizer.lr": ["0.0003", "0.001", "0.003", "0.01"]}
            ),
            "spmf": SPMF,
            "sml": SML,
            "sml direct": SML_DIRECT,
        },
    ),
    "next_item": Study(NEXT_ITEMS, 3, ["hr_20", "hr_5"], BACKBONES),
    **{
        f"{model}_{name}": selection(scenarios, model)
        for model in ("dnn", "deepfm", "dcn")
        for name, scenarios in TABS.items()
    },
    "days_shared_bottom": by_day("shared_bottom"),
    "days_star": by_day("star"),
    "movielens31": Study(
        ["data=movielens", *PERIODS, "model=embedding_mlp", "batch_size=256"], 5, CLICKS, ALL
    ),
}


def folders(below: Path) -> list[Path]:
    """Return the finished runs below a folder."""
    found = []
    for file in sorted(below.rglob("run.json")):
        if json.loads(file.read_text())["finished"]:
            found.append(file.parent)
    return found


def train(where: Path, settings: Sequence[str], expected: int) -> list[Path]:
    """Run a sweep into `where`, unless it was with these settings; return its runs' folders."""
    done, given = folders(where), where / "settings.json"
    same = given.exists() and json.loads(given.read_text()) == list(settings)
    if len(done) == expected and same:
        return done
    subprocess.run(["rm", "-rf", str(where)], check=True)
    command = [sys.executable, "-m", "incrs.train", "-m", *settings]
    began = time.perf_counter()
    subprocess.run(
        [*command, f"hydra.sweep.dir={where}"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    done = folders(where)
    if len(done) != expected:
        raise RuntimeError(f"{where}: {len(done)} of {expected} runs finished: {' '.join(command)}")
    given.write_text(json.dumps(list(settings)))
    print(f"{where}: {time.perf_counter() - began:.0f} s", flush=True)
    return done


def values(run: Path, role: str, metric: str) -> dict[tuple[int, int], float]:
    """Return a run's metric by (seed, period), pooled or, as `auc/4`, of a scenario."""
    metric, _, scenario = metric.partition("/")
    return {
        (row.seed, row.period): row.value
        for row in results.read(run / results.FILE)
        if (row.role, row.scenario, row.metric) == (role, scenario or results.POOLED, metric)
        and row.value is not None
    }


def seconds(run: Path) -> tuple[float, list[float]]:
    """Return the seconds of an epoch of the warm-up, a selector's search too, and of each later period."""
    record = json.loads((run / "run.json").read_text())
    first, *later = record["timings"]
    config = record["config"]
    epochs = config["warmup_epochs"] + config.get("selector", {}).get("epochs", 0)
    each = [one["fit_seconds"] + one.get("learn_next_seconds", 0) for one in later]
    return first["fit_seconds"] / epochs, each


def paired(
    these: Mapping[tuple[int, int], float], those: Mapping[tuple[int, int], float]
) -> tuple[float, float] | None:
    """Return the mean difference over the keys of both and the half-width of its 95% t-interval."""
    gaps = np.array([these[key] - those[key] for key in these if key in those])
    if len(gaps) < 2:
        return None
    mean, half = t_interval(gaps)
    return float(mean), float(half)


def choose(where: Path, study: Study, method: Method, base: Sequence[str]) -> list[str]:
    """Return the settings of the grid with the best mean over tune periods, seed 0."""
    grid = [f"{key}={','.join(some)}" for key, some in method.grid.items()]
    count = int(np.prod([len(some) for some in method.grid.values()]))
    fixed = [*study.fixed, *base, *method.fixed]
    runs = train(where, distinct([*fixed, *grid, "data.test=0", "seed=0"]), count)
    scored = []
    for run in runs:
        given = json.loads((run / "run.json").read_text())["overrides"]
        own = [one for one in given if one.split("=")[0] in method.grid]
        scored.append((float(np.mean(list(values(run, "tune", study.metrics[0]).values()))), own))
    (where / "chosen.json").write_text(json.dumps(sorted(scored, reverse=True), indent=1))
    return max(scored)[1]


def distinct(settings: Sequence[str]) -> list[str]:
    """Return the settings with the last one of each key alone."""
    return list({one.split("=")[0]: one for one in settings}.values())


def run_method(out: Path, study: Study, name: str, base: Sequence[str]) -> list[str]:
    """Choose a method's settings, run its seeds, return what it chose."""
    method = study.methods[name]
    where = out / slug(name)
    chosen = choose(where / "tune", study, method, base)
    seeds = f"seed={','.join(map(str, range(study.seeds)))}"
    train(
        where / "test",
        distinct([*study.fixed, *base, *method.fixed, *chosen, seeds]),
        study.seeds,
    )
    return chosen


def clock(where: Path) -> None:
    """Run the first seed of a method once more, sharing nothing."""
    runs = folders(where / "test")
    if runs:
        settings = json.loads((runs[0] / "run.json").read_text())["overrides"]
        train(where / "time", distinct([*settings, "share=false"]), 1)


def table(out: Path, study: Study) -> list[str]:
    """Return the Markdown table of what is finished."""
    baseline = next(iter(study.methods))
    found = []
    rivals: dict[str, dict[tuple[int, int], float]] = {}
    for name in study.methods:
        where = out / slug(name)
        runs = folders(where / "test")
        if len(runs) < study.seeds:
            continue
        got = {
            m: {k: v for run in runs for k, v in values(run, "test", m).items()}
            for m in study.metrics
        }
        rivals = rivals or got
        cells = [name]
        apart = any(one.startswith("data.scenarios=") for one in study.methods[name].fixed)
        for metric in study.metrics:
            some, digits = list(got[metric].values()), 2 if metric.startswith("hr") else 4
            if apart and "/" not in metric:  # of other rows
                cells += ["-", "-"]
                continue
            cells.append(f"{np.mean(some):.{digits}f}" if some else "-")
            gap = paired(got[metric], rivals[metric]) if name != baseline else None
            cells.append(f"{gap[0]:+.{digits}f} ± {gap[1]:.{digits}f}" if gap else "-")
        spent = [seconds(run) for run in folders(where / "time") or runs]
        cells.append(f"{np.median([epoch for epoch, _ in spent]):.2f}")
        cells.append(f"{np.median([one for _, later in spent for one in later]):.2f}")
        settings = json.loads((where / "tune" / "chosen.json").read_text())[0][1]
        cells.append(
            " ".join(re.sub(r"^(updater\.\w+|optimizer|selector)\.", "", one) for one in settings)
        )
        found.append(cells)
    heads = ["method"]
    for metric in study.metrics:
        heads += [metric, f"minus {baseline} (95%)"]
    heads += ["s/epoch", "s/period", "chosen"]
    rule = ["---"] + ["---:"] * (len(heads) - 2) + ["---"]
    return ["| " + " | ".join(row) + " |" for row in [heads, rule, *found]]


def draw(out: Path) -> Path:
    """Draw what each method adds to fine-tuning, and how far it is from the oracle, by level of change."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, len(LEVELS), sharey="row")
    for column, (setting, levels) in enumerate(LEVELS.items()):
        names = list(drift(setting, levels[0]).methods)
        for i, name in enumerate(names):
            points = []
            for level in levels:
                where = out / level_of(setting, level)
                auc, oracle, rival = (
                    {
                        k: v
                        for run in folders(where / of / "test")
                        for k, v in values(run, "test", m).items()
                    }
                    for of, m in (
                        (slug(name), "auc"),
                        (slug(name), "oracle_auc"),
                        (BASELINE, "auc"),
                    )
                )
                if auc and rival:
                    gap = paired(auc, rival) or (0.0, 0.0)
                    points.append(
                        (float(level), *gap, float(np.mean([oracle[k] - auc[k] for k in auc])))
                    )
            if not points:
                continue
            x, mean, half, left = np.array(points).T
            x = x + (i - len(names) / 2) * 0.03  # side by side
            if name != BASELINE:
                axes[0, column].errorbar(
                    x, mean, half, color=f"C{i}", marker="o", ms=4, capsize=2, label=name
                )
            axes[1, column].plot(x, left, color=f"C{i}", marker="o", ms=4, label=name)
        axes[0, column].axhline(0, color="gray", lw=0.8)
        axes[0, column].set_title(f"data.{setting}, the other off")
        axes[1, column].set_xlabel(f"data.{setting}")
    axes[0, 0].set_ylabel("AUC minus fine-tuning's (95%)")
    axes[1, 0].set_ylabel("AUC below the oracle's")
    axes[1, 0].legend(fontsize=8)
    file = out / "drift.png"
    figure.savefig(file, dpi=110)
    return file


def slug(name: str) -> str:
    """Return a method's name as a folder's."""
    return name.replace(" ", "_")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("study", choices=["drift", *STUDIES])
    parser.add_argument("settings", nargs="*", help="settings of every run, such as data.path=...")
    parser.add_argument("--out", type=Path, default=Path("multirun/compare"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--time", action="store_true", help="time what is finished, run nothing else"
    )
    parser.add_argument("--only", nargs="*", help="methods to run; default: all")
    given = parser.parse_args()
    chosen = (
        list(dict.fromkeys(level_of(*one) for one in TURNED))
        if given.study == "drift"
        else [given.study]
    )
    for name in chosen:
        study = STUDIES[name]
        study = study._replace(fixed=[*study.fixed, *given.settings])
        out = given.out / name
        first, *rest = study.methods
        if given.time:
            for one in given.only or study.methods:
                clock(out / slug(one))
            print(f"\n{name}\n\n" + "\n".join(table(out, study)))
            continue
        base = run_method(out, study, first, [])
        others = [one for one in rest if one in (given.only or rest)]
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(partial(run_method, out, study, base=base), others))
        print(f"\n{name}\n\n" + "\n".join(table(out, study)))
    if given.study == "drift":
        print(draw(given.out))


if __name__ == "__main__":
    main()
