"""What generating weights costs: a step, its growth with the tables, memory, and whole periods.

python -m benchmarks.meta            a few minutes on one core
python -m benchmarks.meta --smoke    the same paths on little data, for a check that they work
python -m benchmarks.meta data=kuairand data.path=...     with whole periods of a log's own, by the command

The step is asmg's at the size of its paper's Sobazaar log: 17,126 users and 24,785 items of 8 numbers,
histories of 30, layers 24-12-6-1, three models and batches of 256 rows of each of their three periods.
A larger log's batches hold as many different ids, drawn from those spread over the whole table. Memory
is the system's word on a process of its own. Periods are timed as run.json has them: training on D_t,
scoring D_{t+1}, and what is learnt from it thereafter. Contestants take turns. Of a log it is the periods
whose models are tested, and in which asmg learns, their median; the ratio is that of a turn.

What bounds them: a step of asmg scores k batches, which alone costs k passes of fine-tuning, and takes a GRU
step forward and back for every dense weight; sml's transfer takes eight or more GELUs for every number,
forward and back.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.speed import RandomLog, optimizer_of, ratio, trainer
from incrs import results
from incrs.dashboard import Watcher
from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.stream import PeriodStream
from incrs.environment import CONF
from incrs.folder import RunFolder
from incrs.module import ScenarioModule, clone
from incrs.period import Batch, Period
from incrs.results import Run
from incrs.roster import Roster
from incrs.runner import Fit, run
from incrs.updaters.base import Updater

USERS, ITEMS, BATCH, K, DIM, PERIODS = 17_126, 24_785, 256, 3, 8, 8
CONTESTANTS = (
    "finetune",
    "asmg",
    "asmg share=per_output",
    "sml",
    "sml freeze_transfer=true",
    "spmf",
)
console = Console(highlight=False)


class Shop(Source):
    """Random rows of users, items and histories of 30; ids are drawn from `drawn`, spread evenly."""

    def __init__(self, rows: int, users: int, items: int, drawn: int | None = None):
        self.name, self.fingerprints = "shop", ["0"] * PERIODS
        self.schema = Schema(
            vocabularies={"user": users, "item": items},
            fields={"user": "user", "item": "item"},
            lists={"history": ListField("item", 30)},
            numbers=(),
            scenarios=("all",),
            user="user",
            item="item",
        )
        self.roles = assign_roles(1, 0, None, PERIODS, "data")
        self.rows, self.drawn = rows, drawn

    def read(self, t: int) -> Period:
        random = torch.Generator().manual_seed(t)

        def ids(size: int, *shape: int) -> torch.Tensor:
            drawn = min(size, self.drawn or size)
            found = torch.randint(drawn, shape, generator=random) * (size // drawn)
            return found.to(torch.int32)

        n, sizes = self.rows, self.schema.vocabularies
        fields = torch.stack([ids(sizes[name], n) for name in ("user", "item")], 1)
        lists = {"history": ids(sizes["item"], n, 30)}
        label = torch.randint(2, (n,), generator=random).float()
        rows = Batch(fields, lists, torch.zeros(n, 0), torch.zeros(n, dtype=torch.long), label)
        return Period(t, str(t), self.roles[t], rows)


class Clock(Watcher):
    """Takes down when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step_done(self) -> None:
        self.times.append(time.perf_counter())


def updater_of(contestant: str) -> dict[str, Updater]:
    """Return what `name setting=value ...` says."""
    name, *settings = contestant.split()
    config = OmegaConf.load(CONF / "updater" / f"{name}.yaml")
    config[name].merge_with_dotlist(settings)
    made: dict[str, Updater] = instantiate(config, _convert_="all")
    return made


def module_for(source: Source, updater: str, **model: object) -> ScenarioModule:
    config = OmegaConf.load(CONF / "model" / "embedding_mlp.yaml")
    make = instantiate(OmegaConf.merge(config, model), _partial_=True, _convert_="all")
    backbone = make(schema=source.schema, seed=0)
    scenarios = len(source.schema.scenarios)
    return ScenarioModule(backbone, updater_of(updater), optimizer_of("adam"), scenarios)


class Meta:
    """asmg as it stands with k models before it learns from the next period, again and again."""

    def __init__(self, source: Shop, k: int = K):
        self.clock = Clock()
        self.module = module_for(
            source, f"asmg k={k}", embedding_size=DIM, hidden=[12, 6], scenario_field=False
        )
        (self.updater,) = self.module.updaters.values()
        roster = Roster(source.schema, "fixed")
        stream = PeriodStream(source, BATCH, roster)
        self.fit = Fit(trainer(), stream, [self.clock])
        *_, (self.history, self.following), _ = stream.pairs()
        self.models = [clone(self.module.backbone.state_dict()) for _ in range(k)]
        random = torch.Generator().manual_seed(0)
        for model in self.models:
            for weight in model.values():
                weight += 0.01 * torch.randn(weight.shape, generator=random)

    def learn(self) -> tuple[list[float], float]:
        """Learn from the next period; return the seconds of its steps and of all that is around them."""
        self.updater.models = list(self.models)  # type: ignore[attr-defined]
        self.clock.times = []
        began = time.perf_counter()
        self.updater.learn_next(self.module, self.history, self.following, self.fit)
        spent = time.perf_counter() - began
        times = self.clock.times
        steps = [b - a for a, b in itertools.pairwise(times)]
        return steps, spent - statistics.median(steps) * len(times)


def step_speed(rows: int, times: int, few: int, many: int) -> None:
    """Time the step at the paper's size, and of few ids and many."""
    logs = {
        f"Sobazaar: {USERS:,} users, {ITEMS:,} items": Shop(rows, USERS, ITEMS),
        f"{few:,} users, {few:,} items": Shop(rows, few, few),
        f"{many:,} users, {many:,} items": Shop(rows, many, many, few),
    }
    _, base, _ = logs
    metas = {name: Meta(source) for name, source in logs.items()}
    steps: dict[str, list[float]] = {name: [] for name in logs}
    around: dict[str, list[float]] = {name: [] for name in logs}
    for turn in range(times + 1):
        for name, meta in metas.items():
            spent, rest = meta.learn()
            if turn:
                steps[name].append(statistics.median(spent))
                around[name].append(rest)
    table = Table(
        title=f"a step of asmg: {K} models of {DIM} numbers an id, 24-12-6-1, {K} x {BATCH} rows",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for head in ("", "ms/step", f"times {few:,}'s", "s/period around the steps"):
        table.add_column(head, justify="right")
    for name in logs:
        table.add_row(
            name,
            f"{statistics.median(steps[name]) * 1e3:.1f}",
            f"{ratio(steps[name], steps[base]):.2f}",
            f"{statistics.median(around[name]):.2f}",
        )
    console.print(table)


def peak_of(k: int, ids: int) -> None:
    """Print as json the MiB of a model, and the process's peak when k of them were learnt from."""
    meta = Meta(Shop(BATCH * 4, ids, ids, 40_000), k)
    size = sum(w.numel() * w.element_size() for w in meta.models[0].values())
    gc.collect()
    meta.learn()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([size / 2**20, peak]))


def memory(ids: int, counts: Sequence[int] = (1, 3, 6)) -> None:
    """Tell how much memory asmg takes with ever more models in its sequence."""
    found = []
    for k in counts:
        command = [sys.executable, "-m", "benchmarks.meta", "--peak", str(k), str(ids)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout))
    table = Table(
        title=f"memory: {ids:,} users, {ids:,} items, a model of {found[0][0]:.0f} MiB",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for head in ("models", "MiB at most", "models' worth for each more"):
        table.add_column(head, justify="right")
    for i, (k, (size, peak)) in enumerate(zip(counts, found, strict=True)):
        more = (peak - found[0][1]) / (k - counts[0]) / size if i else None
        table.add_row(str(k), f"{peak:.0f}", "" if more is None else f"{more:.2f}")
    console.print(table)


class TunedLog(RandomLog):
    """Rows as KuaiRand's, with periods to tune on between the warm-up and the test."""

    def __init__(self, rows: int, periods: int):
        super().__init__(rows, periods)
        self.roles = assign_roles(1, K + 1, None, periods, "data")


PARTS = ("fit", "score", "learn_next")
"""What a period's seconds are spent on, as run.json names them."""


def seconds_of(source: Source, contestant: str, batch_size: int = 2000) -> list[list[float]]:
    """Run the protocol; return what the PARTS of every test period cost, by run.json."""
    with tempfile.TemporaryDirectory(prefix="meta.") as name:
        folder = RunFolder(Path(name))
        about = Run("0", source.name, "embedding_mlp", contestant, 0)
        stream = PeriodStream(source, batch_size)
        run(stream, module_for(source, contestant), trainer(), folder, about, warmup_epochs=1)
        tested = [one for one in folder.record["timings"] if one["period"] > stream.warmup + K]
    return [[one[f"{part}_seconds"] for part in PARTS] for one in tested[:-1]]


def period_cost(rows: int, periods: int, times: int, contestants: Sequence[str]) -> None:
    """Time whole periods of what generates weights against those of fine-tuning."""
    source = TunedLog(rows, periods)
    names = [n for n in contestants if (CONF / "updater" / f"{n.split()[0]}.yaml").exists()]
    taken: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(times):
        for name in names:
            taken[name] += seconds_of(source, name)
    table = Table(
        title=f"a period of {rows:,} rows, as KuaiRand's; embedding_mlp 64-32, batch 2000",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("updater")
    for head in ("s to fit", "to score", "to learn", "s/period", "times finetune", "unscored"):
        table.add_column(head, justify="right")
    bases = taken["finetune"]
    for name, spent in taken.items():
        parts = [statistics.median(some) for some in zip(*spent, strict=True)]
        whole = ratio([sum(one) for one in spent], [sum(one) for one in bases])
        unscored = ratio([a + c for a, _, c in spent], [a + c for a, _, c in bases])
        cells = [*parts, statistics.median(map(sum, spent)), whole, unscored]
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    console.print(table)


def run_of(contestant: str, settings: Sequence[str], folder: Path) -> list[dict[str, float]]:
    """Run the command; return what every period cost that came before one of the test, by run.json."""
    name, *own = contestant.split()
    command = [sys.executable, "-m", "incrs.train", "model=embedding_mlp", f"updater={name}"]
    command += [*(f"updater.{name}.{one}" for one in own), *settings]
    command += ["share=false", f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    timings: list[dict[str, float]] = json.loads((folder / "run.json").read_text())["timings"]
    tested = {row.period for row in results.read(folder / results.FILE) if row.role == "test"}
    return [one for one in timings if one["period"] + 1 in tested]


def cost_on(settings: Sequence[str], times: int, contestants: Sequence[str]) -> None:
    """Time whole periods of a log; the first turn only warms up."""
    parts: dict[str, list[list[float]]] = {name: [] for name in contestants}  # of every turn
    for turn in range(times + 1):
        with tempfile.TemporaryDirectory(prefix="meta.") as name:
            timings = {
                one: run_of(one, settings, Path(name) / str(i)) for i, one in enumerate(contestants)
            }
        learnt = {one["period"] for one in timings["asmg"] if one["learn_next_seconds"]}
        for one, periods in timings.items():
            some = [
                [p[f"{part}_seconds"] for part in PARTS] for p in periods if p["period"] in learnt
            ]
            if turn:
                parts[one].append([statistics.median(each) for each in zip(*some, strict=True)])
    table = Table(
        title=f"a period, embedding_mlp, {times} turns: {' '.join(settings)}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("updater")
    for head in ("s to fit", "to score", "to learn", "times finetune", "from", "to", "unscored"):
        table.add_column(head, justify="right")
    for one, turns in parts.items():
        pairs = list(zip(turns, parts["finetune"], strict=True))
        ratios = [sum(ours) / sum(base) for ours, base in pairs]
        unscored = statistics.median((a[0] + a[2]) / (b[0] + b[2]) for a, b in pairs)
        seconds = [statistics.median(each) for each in zip(*turns, strict=True)]
        cells = [*seconds, statistics.median(ratios), min(ratios), max(ratios), unscored]
        table.add_row(one, *(f"{cell:.2f}" for cell in cells))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meta", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="little data: does it work at all")
    parser.add_argument("settings", nargs="*", help="a log: settings of python -m incrs.train")
    parser.add_argument("--turns", type=int, default=5, help="with settings: how often")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    for name in ("lightning.pytorch", "incrs"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    if given.peak:
        peak_of(*given.peak)
        return
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    smoke = given.smoke
    # Memory comes first: a process begins with the peak of the one that started it.
    if smoke:
        memory(20_000, (1, 3))
        step_speed(BATCH * 3, 1, 2_000, 20_000)
    else:
        memory(1_000_000)
        step_speed(BATCH * 20, 5, 40_000, 1_000_000)
    if given.settings:
        cost_on(given.settings, given.turns, CONTESTANTS)
    elif smoke:
        period_cost(1_000, 8, 1, CONTESTANTS[:2])
    else:
        period_cost(40_000, 10, 3, CONTESTANTS)


if __name__ == "__main__":
    main()
