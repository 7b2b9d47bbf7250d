"""How fast the loader, the training path, large tables and each updater are, as ratios within one run.

python -m benchmarks.speed            a few minutes on 2 cores
python -m benchmarks.speed --smoke    the same paths on little data, for a check that they work

Contestants take turns, A B A B ..., and each ratio is the median over the turns, so that a machine
whose speed drifts does not favour one of them. Rows have 35 fields in 4 scenarios, as KuaiRand's.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.stream import BatchLoader, PeriodStream
from incrs.environment import CONF
from incrs.module import ScenarioModule
from incrs.period import Batch, Period
from incrs.roster import Roster
from incrs.runner import Fit, update
from incrs.updaters.base import overrides

SIZES = [27_000, 7_500, 5_000] + [50] * 32
BATCH = 2000
BACKBONES = ("shared_bottom", "star")
OPTIMIZERS = ("adam", "lazy_adam")
console = Console(highlight=False)


class RandomLog(Source):
    """Random rows shaped as KuaiRand's: 35 fields, tags, 5 numbers, 4 scenarios of unequal share.

    sizes: of the fields' tables.
    """

    def __init__(self, rows: int, periods: int, sizes: Sequence[int] = SIZES):
        names = [f"field{i}" for i in range(len(sizes))]
        self.name, self.fingerprints = "random", ["0"] * periods
        self.schema = Schema(
            vocabularies=dict(zip([*names, "tag"], [*sizes, 60], strict=True)),
            fields={name: name for name in names},
            lists={"tag": ListField("tag", 4)},
            numbers=tuple("abcde"),
            scenarios=("0", "1", "2", "4"),
        )
        self.roles = assign_roles(1, 0, None, periods, "data")
        self.rows, self.sizes = rows, sizes

    def read(self, t: int) -> Period:
        random = torch.Generator().manual_seed(t)
        n = self.rows
        columns = [torch.randint(size, (n,), generator=random) for size in self.sizes]
        share = torch.tensor([0.1364, 0.7592, 0.0357, 0.0687])
        rows = Batch(
            torch.stack(columns, 1).to(torch.int32),
            {"tag": torch.randint(60, (n, 4), generator=random, dtype=torch.int32)},
            torch.randn(n, 5, generator=random),
            torch.multinomial(share, n, replacement=True, generator=random),
            torch.randint(2, (n,), generator=random).float(),
        )
        return Period(t, str(t), self.roles[t], rows)


class Rows(Dataset[Batch]):
    """The same rows behind PyTorch's own DataLoader, asked for a batch of positions at a time."""

    def __init__(self, rows: Batch):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.label.shape[0]

    def __getitem__(self, where: list[int]) -> Batch:
        return self.rows.take(torch.tensor(where))


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def turns(contestants: dict[str, Callable[[], object]], times: int) -> dict[str, list[float]]:
    """Let the contestants run in turn after one warm-up each; return their seconds."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(times + 1):
        for name, what in contestants.items():
            spent = seconds(what)
            if turn:
                taken[name].append(spent)
    return taken


def ratio(some: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def loader_speed(rows: int, times: int) -> None:
    period = RandomLog(rows, 2).read(0)
    ours = BatchLoader(period, BATCH, seed=0)
    sampler = BatchSampler(RandomSampler(range(rows)), BATCH, drop_last=False)
    theirs = DataLoader(Rows(period.rows), sampler=sampler, batch_size=None)
    taken = turns(
        {"ours": lambda: [0 for _ in ours], "DataLoader": lambda: [0 for _ in theirs]}, times
    )
    table = Table(
        title=f"loader: 35 fields, batch {BATCH}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for head in ("", "million rows/s", "times PyTorch's"):
        table.add_column(head, justify="right")
    for name, spent in taken.items():
        rate = rows / statistics.median(spent) / 1e6
        table.add_row(name, f"{rate:.1f}", f"{ratio(taken['DataLoader'], spent):.2f}")
    console.print(table)


def module_of(
    backbone: str, updater: str, source: Source, optimizer: str = "adam"
) -> ScenarioModule:
    model = instantiate(
        OmegaConf.load(CONF / "model" / f"{backbone}.yaml"), _partial_=True, _convert_="all"
    )
    updaters = instantiate(OmegaConf.load(CONF / "updater" / f"{updater}.yaml"), _convert_="all")
    made = model(schema=source.schema, seed=0)
    return ScenarioModule(made, updaters, optimizer_of(optimizer), 4)


def optimizer_of(name: str) -> Callable[..., torch.optim.Optimizer]:
    made = instantiate(
        OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"), _partial_=True, _convert_="all"
    )
    return made  # type: ignore[no-any-return]


def trainer() -> Callable[..., L.Trainer]:
    made = instantiate(OmegaConf.load(CONF / "trainer" / "auto.yaml"), _partial_=True)
    return partial(made, accelerator="cpu")


def fit_of(source: Source) -> Fit:
    """Return what trains on periods whose ids all have rows."""
    return Fit(trainer(), PeriodStream(source, BATCH, Roster(source.schema, "fixed")), [])


def bare_loop(module: ScenarioModule, rows: Batch) -> None:
    """Train as anyone would by hand: the same model, optimizer and batch size, nothing else."""
    model, optimizer = module.backbone, optimizer_of("adam")(module.backbone.parameters())
    for where in torch.randperm(rows.label.shape[0]).split(BATCH):
        batch = Batch(
            rows.fields[where],
            {name: ids[where] for name, ids in rows.lists.items()},
            rows.numbers[where],
            rows.scenario[where],
            rows.label[where],
        )
        optimizer.zero_grad()
        loss = model.loss(batch, model(batch))
        loss.backward()
        optimizer.step()


def path_speed(rows: int, times: int) -> None:
    source = RandomLog(rows, 2)
    period, fit = source.read(0), fit_of(source)
    table = Table(title="training one period", box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("backbone", "ms/step", "bare loop ms/step", "speed against the bare loop"):
        table.add_column(head, justify="right")
    for backbone in BACKBONES:
        ours, bare = (module_of(backbone, "finetune", source) for _ in range(2))
        taken = turns(
            {"ours": partial(fit, ours, period), "bare": partial(bare_loop, bare, period.rows)},
            times,
        )
        steps = -(-rows // BATCH)
        table.add_row(
            backbone,
            *(f"{statistics.median(taken[n]) / steps * 1e3:.1f}" for n in ("ours", "bare")),
            f"{ratio(taken['bare'], taken['ours']):.2f}",
        )
    console.print(table)


def table_size(rows: int, times: int, sizes: Sequence[int]) -> None:
    """Time a period's training with one or three tables of ever more rows, by each optimizer."""
    table = Table(
        title="ms/step with large tables of so many rows, and the last against the first",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for head in ("backbone", "large", "optimizer", *(f"{size:,}" for size in sizes), "ratio"):
        table.add_column(head, justify="right")
    for backbone, large in itertools.product(BACKBONES, (1, 3)):
        fits = {}
        for size in sizes:
            source = RandomLog(rows, 2, [size] * large + [50] * (len(SIZES) - large))
            fit, period = fit_of(source), source.read(0)
            for name in OPTIMIZERS:
                module = module_of(backbone, "finetune", source, name)
                fits[f"{name} {size}"] = partial(fit, module, period)
        taken = turns(fits, times)
        for name in OPTIMIZERS:
            spent = [taken[f"{name} {size}"] for size in sizes]
            cells = [f"{statistics.median(s) / -(-rows // BATCH) * 1e3:.1f}" for s in spent]
            growth = f"{ratio(spent[-1], spent[0]):.2f}"
            table.add_row(backbone, str(large), name, *cells, growth)
    console.print(table)


def updater_cost(rows: int, times: int) -> None:
    """Time the update of one period after seven, by every updater, against finetune's."""
    source = RandomLog(rows, 9)
    names = sorted(path.stem for path in (CONF / "updater").glob("*.yaml"))
    names.remove("finetune")
    stream = PeriodStream(source, BATCH)
    fit = Fit(trainer(), stream, [])
    warm_up, *_, history, _ = [history for history, _ in stream.pairs()]
    table = Table(title="cost of a period's update", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("backbone")
    table.add_column("updater")
    table.add_column("seconds", justify="right")
    table.add_column("times finetune", justify="right")
    for backbone in BACKBONES:
        steps = {}
        for name in ["finetune", *names]:
            module = module_of(backbone, name, source)
            if any(overrides(one, "learn_next") for one in module.updaters.values()):
                continue  # what it costs is not in the update alone
            module.remember()
            for one in module.updaters.values():  # some keep rows of the warm-up
                one.training_period(module, warm_up, Period.concat(warm_up[:]))
            steps[name] = partial(update, stream, module, history, fit, 2, 1, None)
        taken = turns(steps, times)
        for name, spent in taken.items():
            cost = ratio(spent, taken["finetune"])
            table.add_row(backbone, name, f"{statistics.median(spent):.2f}", f"{cost:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="little data: does it work at all")
    smoke = parser.parse_args().smoke
    for name in (
        "lightning.pytorch",
        "incrs",
    ):  # random clicks let IncMSR diverge; only time counts
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    loader_speed(20_000 if smoke else 1_000_000, 1 if smoke else 5)
    path_speed(6_000 if smoke else 60_000, 1 if smoke else 7)
    table_size(
        4_000 if smoke else 20_000,
        1 if smoke else 5,
        (2_000, 20_000) if smoke else (10_000, 100_000, 1_000_000),
    )
    updater_cost(2_000 if smoke else 16_000, 1 if smoke else 5)


if __name__ == "__main__":
    main()
