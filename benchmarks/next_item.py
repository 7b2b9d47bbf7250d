"""The next item: how fast a catalogue is judged and a model trained; ruie where interest migrates.

python -m benchmarks.next_item             all of it
python -m benchmarks.next_item speed       20,000 users against 50,000 items; training against a bare loop
python -m benchmarks.next_item migration   ruie, its ablations and sasrec on a made-up log, 5 seeds
python -m benchmarks.next_item --smoke     the same paths on little data, for a check that they work

The made-up log: every user has a scenario and a topic that hold the interest. With a chance of .06 a
step the interest moves to another scenario and to another topic there. Three in four steps are in the
scenario of interest: items of the topic, one after the other in a fixed order with some skipped, which
are often liked, shared or followed. The others are in any scenario, items that many take, and no more
than clicked. The learning rate of each model is chosen on the tune period of the first seed.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.log import LogSource
from incrs.data.stream import PeriodStream
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.models.ruie import RUIE
from incrs.models.sasrec import SASRec
from incrs.module import ScenarioModule
from incrs.next_item import NextItem, Positives, Seeking, Supply
from incrs.period import Batch, Period
from incrs.results import POOLED, Run
from incrs.roster import Roster
from incrs.runner import Fit, rank, run
from incrs.updaters.finetune import Finetune

CPU = partial(L.Trainer, accelerator="cpu")
LENGTH, BATCH = 20, 2000
TOPICS, EACH, SCENARIOS = 30, 20, 3
BEHAVIOURS = ["click", "follow", "like", "share"]
MODELS: dict[str, Callable[..., Backbone]] = {
    "ruie": partial(RUIE),
    "ruie w/o MHA": partial(RUIE, attention=False),
    "ruie w/o MHA, gate": partial(RUIE, attention=False, gate=False),
    "ruie w/o MHA, gate, SUIM": partial(RUIE, q=False),
    "sasrec": partial(SASRec, tower=None),
}
RATES = (0.001, 0.003, 0.01)
console = Console(highlight=False, width=120)


class RandomHistories(Source):
    """Two periods of positives with full histories of random items."""

    def __init__(self, rows: int, items: int) -> None:
        self.name, self.rows, self.items = "random", rows, items
        self.roles, self.fingerprints = assign_roles(1, 1, None, 2, "data"), ["0", "1"]
        self.schema = Schema(
            {"user": rows + 1, "item": items + 1},
            {"user": "user", "item": "item"},
            {"history": ListField("item", LENGTH)},
            [],
            ["all"],
            "user",
            "item",
        )

    def read(self, t: int) -> Period:
        random = torch.Generator().manual_seed(t)
        item = torch.randint(1, self.items + 1, (self.rows,), generator=random)
        fields = torch.stack([torch.arange(1, self.rows + 1), item], 1).int()
        shape = (self.rows, LENGTH)
        past = torch.randint(1, self.items + 1, shape, generator=random, dtype=torch.int32)
        zeros = torch.zeros(self.rows)
        rows = Batch(fields, {"history": past}, zeros[:, None][:, :0], zeros.long(), zeros + 1)
        return Period(t, str(t), self.roles[t], rows)


def seeking_on(
    source: Source,
    model: Callable[..., Backbone],
    task: NextItem,
    seed: int,
    rate: float,
    batch: int,
) -> tuple[ScenarioModule, Seeking, PeriodStream]:
    """Return all that a run of the task needs."""
    log = Positives(source)
    schema = log.schema
    roster = Roster(schema, "fixed")
    stream = PeriodStream(log, batch, roster)
    seeker = task.seeker(model(schema=schema, seed=seed), schema)
    seeking = Seeking(task, Supply(task, seeker, schema, roster, log.everything), stream)
    adam = partial(torch.optim.Adam, lr=rate, fused=True)
    module = ScenarioModule(seeker, {"finetune": Finetune()}, adam, len(schema.scenarios))
    return module, seeking, stream


def judge(users: int, items: int) -> None:
    """Print how long the catalogue takes, and the memory above that of the model and the rows."""
    source = RandomHistories(users, items)
    model, task = partial(SASRec, tower=None), NextItem()
    module, seeking, stream = seeking_on(source, model, task, 0, 0.001, BATCH)
    stream.roster.see(source.read(0))
    stream.roster.known["item"] = items + 1
    following = source.read(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, worked = time.perf_counter(), time.process_time()
    places = rank(module, CPU, seeking, following)
    seconds, busy = time.perf_counter() - began, time.process_time() - worked
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(places) == users
    console.print(
        f"{users:,} users against {items:,} items, sasrec of 64: {seconds:.1f} s "
        f"({busy:.1f} s of the processor), "
        f"{more:.0f} MiB more, "
        f"{torch.get_num_threads()} threads; mean share of items above {places[:, 0].mean() / items:.3f}"
    )


def train(rows: int, items: int, turns: int) -> None:
    """Print the training speed against a bare loop over the same module and the same batches."""
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    source = RandomHistories(rows, items)
    model, task = partial(SASRec, tower=None), NextItem()
    module, _, stream = seeking_on(source, model, task, 0, 0.001, BATCH)
    stream.roster.see(source.read(0))
    stream.roster.known["item"] = items + 1
    fit, period = Fit(CPU, stream, []), source.read(0)
    batches = list(stream.loader(period, 0))  # made beforehand: the loop has nothing else to do
    for _ in range(turns):
        began = time.perf_counter()
        fit(module, period)
        found["ours"].append(rows / (time.perf_counter() - began))
        seeker = module.backbone.train()
        adam = torch.optim.Adam(seeker.parameters(), lr=0.001, fused=True)
        began = time.perf_counter()
        for batch in batches:
            loss = seeker.loss(batch, seeker(batch))
            adam.zero_grad()
            loss.backward()
            adam.step()
        found["bare"].append(rows / (time.perf_counter() - began))
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["bare"], strict=True))
    ours, bare = (statistics.median(values) for values in found.values())
    console.print(
        f"training: {ours:,.0f} sequences a second, a bare loop {bare:,.0f}: {ratio:.2f} of it, "
        f"median of {turns} turns"
    )


def migrating(folder: Path, seed: int, users: int, steps: int, days: int) -> LogSource:
    """Write the log of the text above and prepare it; every day a user makes `steps` steps."""
    dice = np.random.default_rng(seed)
    scenario, topic = dice.integers(SCENARIOS, size=users), dice.integers(TOPICS, size=users)
    place = dice.integers(EACH, size=users)
    popular = dice.permutation(TOPICS * EACH)
    share = 1 / np.arange(1, TOPICS * EACH + 1)
    parts = []
    for step in range(steps * days):
        moves = dice.random(users) < 0.06
        other = (scenario + dice.integers(1, SCENARIOS, users)) % SCENARIOS
        scenario = np.where(moves, other, scenario)
        topic = np.where(moves, dice.integers(TOPICS, size=users), topic)
        home = dice.random(users) < 0.75
        place = (place + home * (1 + dice.integers(2, size=users))) % EACH
        any_item = popular[dice.choice(TOPICS * EACH, users, p=share / share.sum())]
        drawn = dice.random((3, users)) < np.array([[0.1], [0.4], [0.2]])
        when = step // steps * 86_400 + step % steps * 1000
        parts.append(
            pl.DataFrame(
                {
                    "time": when + dice.permutation(users) % 900,
                    "user": np.arange(users),
                    "item": np.where(home, topic * EACH + place, any_item),
                    "scenario": np.where(home, scenario, dice.integers(SCENARIOS, size=users)),
                    "click": 1,
                    **{
                        name: (some & home).astype(int)
                        for name, some in zip(BEHAVIOURS[1:], drawn, strict=True)
                    },
                }
            )
        )
    pl.concat(parts).write_csv(folder / "log.csv")
    source = LogSource(
        name="migrating",
        path=str(folder),
        store=str(folder / "store"),
        files="log.csv",
        time="time",
        label="click",
        scenario="scenario",
        scenarios=[str(s) for s in range(SCENARIOS)],
        user="user",
        item="item",
        history=LENGTH,
        history_events=True,
        behaviours=BEHAVIOURS,
        pretrain=days - 4,
        tune=1,
    )
    source.prepare()
    return source


def hits(
    source: LogSource, name: str, seed: int, rate: float, epochs: int
) -> dict[tuple[str, str], float]:
    """Return (role, metric) -> the mean over the role's periods, of all scenarios together."""
    task = NextItem("full")
    batch = 256
    module, seeking, stream = seeking_on(source, MODELS[name], task, seed, rate, batch)
    about = Run("0", source.name, name, "finetune", seed)
    with tempfile.TemporaryDirectory() as folder:
        to = RunFolder(Path(folder))
        rows = run(stream, module, CPU, to, about, warmup_epochs=epochs, seeking=seeking)
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.scenario == POOLED and row.value is not None:
            found.setdefault((row.role, row.metric), []).append(row.value)
    return {key: statistics.fmean(values) for key, values in found.items()}


def migration(seeds: int, users: int, steps: int, days: int, epochs: int) -> None:
    """Print HR@K and NDCG@K of every model on the test periods, means over the seeds with deviations."""
    metrics = ["hr_5", "hr_10", "hr_20", "ndcg_20"]
    table = Table(title="migrating interest: test periods, %", box=box.SIMPLE_HEAD)
    for head in ("model", "lr", *metrics, "seconds"):
        table.add_column(head, justify="left" if head == "model" else "right")
    chosen: dict[str, float] = {}
    found: dict[str, list[dict[tuple[str, str], float]]] = {name: [] for name in MODELS}
    seconds: dict[str, list[float]] = {name: [] for name in MODELS}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            source = migrating(Path(folder), seed, users, steps, days)
            for name in MODELS:
                if seed == 0:
                    tried = {r: hits(source, name, seed, r, epochs) for r in RATES}
                    chosen[name] = max(RATES, key=lambda r: tried[r]["tune", "ndcg_20"])
                began = time.perf_counter()
                found[name].append(hits(source, name, seed, chosen[name], epochs))
                seconds[name].append(time.perf_counter() - began)
    for name, runs in found.items():
        cells = []
        for metric in metrics:
            values = [one["test", metric] for one in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.2f} ± {spread:.2f}")
        table.add_row(name, str(chosen[name]), *cells, f"{statistics.fmean(seconds[name]):.0f}")
    console.print(table)


def main() -> None:
    """Run what the command names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("speed", "migration"))
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    if asked.what != "migration":
        judge(*((300, 500) if asked.smoke else (20_000, 50_000)))
        train(*((600, 300, 1) if asked.smoke else (20_000, 50_000, 5)))
    if asked.what != "speed":
        migration(*((1, 30, 3, 6, 1) if asked.smoke else (5, 300, 8, 11, 8)))


if __name__ == "__main__":
    main()
