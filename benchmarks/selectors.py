"""What selectors keep of a log whose columns are known to carry signal or not, and what it does to the AUC.

python -m benchmarks.selectors                       four minutes on one core
python -m benchmarks.selectors --smoke               the same paths on little data, for a check that they work
python -m benchmarks.selectors --only multifs optfs  these, beside the backbone without a selector

The log: three scenarios with half, three and two tenths of the rows; fifteen columns of as many values
as SIZES say. Four carry signal everywhere, one for each scenario carries it there alone, eight never do.
A click's logit is the sum of its values' effects, normal numbers of size EFFECT. So which (scenario,
value) pairs matter is known, and what is kept has a precision and a recall; `signal` is the recall of
the effects' variance, for the loss of a value whose effect is small is none. Then the shares kept of
columns that matter everywhere, in their own scenario, elsewhere, and of the noise. Settings of the
selectors were chosen on seed 100, the log's and the run's; those of multifs by the AUC of seeds 100 to
104, of eighteen: epochs 3 or 5, learning rates .005, .01 or .02, sparsity 5e-5, 1e-4 or 2e-4, the shared
gates' the same. multifs_as_is has those of its yaml. The table is of seeds 0 to 4. autofield is told how
many columns matter anywhere. AUC is the mean over the test periods, of all rows; `oracle` scores by the
truth.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from incrs.data.base import Schema, Source, assign_roles
from incrs.data.stream import PeriodStream
from incrs.environment import CONF
from incrs.folder import RunFolder
from incrs.metrics import auc
from incrs.models.gates import gates_of
from incrs.module import ScenarioModule
from incrs.period import Batch, Period, Role
from incrs.results import Run
from incrs.runner import run
from incrs.selection import Selection
from incrs.selectors.search import open_gates
from incrs.updaters.finetune import Finetune

EFFECT, SCENARIOS, SHARES = 0.5, ("a", "b", "c"), (0.5, 0.3, 0.2)
EVERYWHERE, NOISE = 4, 8
SIZES = (10, 20, 50, 100)
"""Of the columns of a kind, in turn."""
SETTINGS: dict[str, dict[str, object]] = {
    "none": {},
    "multifs": {"epochs": 3, "sparsity": 5e-5, "shared_sparsity": 5e-5},
    "multifs_as_is": {},
    "optfs": {},
    "autofield": {"keep": (EVERYWHERE + len(SCENARIOS)) / (EVERYWHERE + len(SCENARIOS) + NOISE)},
    "lpfs": {},
    "optembed": {},
    "cfs": {},
}
console = Console(highlight=False, width=190)


class Known(Source):
    """The log; signal[s][column] says whether a column matters in scenario s."""

    def __init__(self, seed: int, rows: int, pretrain: int, periods: int):
        self.name, self.fingerprints = "known", ["0"] * periods
        kinds = ["everywhere"] * EVERYWHERE + [f"only_{s}" for s in SCENARIOS] + ["noise"] * NOISE
        names = [f"{kind}{i}" for i, kind in enumerate(kinds)]
        sizes = [SIZES[i % len(SIZES)] for i in range(len(kinds))]
        self.schema = Schema(
            {n: 1 + size for n, size in zip(names, sizes, strict=True)},
            {n: n for n in names},
            {},
            (),
            SCENARIOS,
        )
        self.roles = assign_roles(pretrain, 0, None, periods, "data")
        self.signal = [[kind in ("everywhere", f"only_{s}") for kind in kinds] for s in SCENARIOS]
        self.rows, self.seed, self._sizes = rows, seed, sizes
        random = np.random.default_rng([seed, 1])
        self.effects = [
            random.normal(0, EFFECT, (len(SCENARIOS) if "only" in kind else 1, 1 + size))
            for kind, size in zip(kinds, sizes, strict=True)
        ]

    def read(self, t: int) -> Period:
        random = np.random.default_rng([self.seed, 2, t])
        where = random.choice(len(SCENARIOS), self.rows, p=SHARES)
        ids = np.stack([random.integers(1, 1 + n, self.rows) for n in self._sizes], 1)
        logit = np.zeros(self.rows) - 0.5
        for column, effects in enumerate(self.effects):
            own = effects[where if len(effects) > 1 else 0, ids[:, column]]
            logit += own * np.array(self.signal)[where, column]
        truth = 1 / (1 + np.exp(-logit))
        label = torch.from_numpy(random.random(self.rows) < truth).float()
        fields, scenario = torch.from_numpy(ids).int(), torch.from_numpy(where)
        rows = Batch(fields, {}, torch.zeros(self.rows, 0), scenario, label)
        return Period(t, f"day {t}", self.roles[t], rows, torch.from_numpy(truth))


class Found(NamedTuple):
    """Of one run."""

    precision: float
    recall: float
    signal: float
    everywhere: float
    own: float
    elsewhere: float
    noise: float
    auc: float
    oracle: float
    seconds: float


def contest(name: str, source: Known, seed: int, model: str, size: argparse.Namespace) -> Found:
    """Run a backbone with a selector."""
    make, adam = (
        instantiate(OmegaConf.load(CONF / file), _partial_=True, _convert_="all")
        for file in (f"model/{model}.yaml", "optimizer/adam.yaml")
    )
    backbone = make(schema=source.schema, seed=seed)
    selector, selection = None, None
    if name != "none":
        config = OmegaConf.load(CONF / "selector" / f"{name.removesuffix('_as_is')}.yaml")
        selector = instantiate(config, **SETTINGS[name], _convert_="all")
        open_gates(backbone, source.schema, model)
        selection = Selection(selector, SCENARIOS)
    module = ScenarioModule(backbone, {"finetune": Finetune()}, adam, 3, selector=selector)
    trainer = partial(L.Trainer, accelerator="cpu")
    stream = PeriodStream(source, size.batch)
    about = Run("0", "known", model, "finetune", seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(
            stream,
            module,
            trainer,
            RunFolder(Path(folder)),
            about,
            (),
            size.epochs,
            selection=selection,
        )
    seconds = time.perf_counter() - began
    scores = [
        r.value for r in rows if r.metric == "auc" and r.role == "test" and r.scenario == "all"
    ]
    tests = [source.read(t) for t, role in enumerate(source.roles) if role is Role.TEST]
    best = statistics.mean(auc(p.truth.numpy(), p.rows.label.numpy()).value for p in tests)
    open_, true, strength = [], [], []
    for column, count in enumerate(source.schema.vocabularies.values()):
        gates = gates_of(backbone).kept(column) if selector else torch.ones(count, 4)
        open_.append(gates[1:, :3].bool().numpy())
        matters = np.array(source.signal)[:, column]
        true.append(np.broadcast_to(matters, (count - 1, 3)))
        strength.append((source.effects[column][:, 1:].T * matters) ** 2 / count)
    kept, good, squares = map(np.concatenate, (open_, true, strength))
    return Found(
        (kept & good).sum() / max(1, kept.sum()),
        (kept & good).sum() / good.sum(),
        (kept * squares).sum() / squares.sum(),
        *(float(kept[places].mean()) for places in kinds(source)),
        statistics.mean(float(x) for x in scores),
        best,
        seconds,
    )


def kinds(source: Known) -> list[np.ndarray]:
    """Return which pairs are of columns that matter everywhere, here alone, elsewhere alone, nowhere."""
    matters = np.array(source.signal).T  # (columns, 3)
    where = np.repeat(matters, [count - 1 for count in source.schema.vocabularies.values()], 0)
    many = where.sum(1, keepdims=True)
    return [(many == 3) & where, (many == 1) & where, (many == 1) & ~where, (many == 0) & ~where]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all contestants on all seeds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[n for n in SETTINGS if n != "none"])
    parser.add_argument("--model", default="dcn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    size = parser.parse_args(arguments)
    size.rows, size.batch, size.epochs = (500, 250, 1) if size.smoke else (8000, 500, 3)
    seeds = size.seeds[:1] if size.smoke else size.seeds
    names = ["none", *(size.only or list(SETTINGS)[1:])]
    found: dict[str, list[Found]] = {name: [] for name in names}
    for seed in seeds:
        source = Known(seed, size.rows, 5, 8)
        for name in names:
            found[name].append(contest(name, source, seed, size.model, size))
            one = found[name][-1]
            console.print(f"seed {seed} {name}: " + "  ".join(f"{x:.4f}" for x in one))
    show(found, size.model)


def show(found: dict[str, list[Found]], model: str) -> None:
    """Print means over the seeds, with the spread."""
    table = Table(box=box.SIMPLE, title=f"{model}, {len(found['none'])} seeds: mean ± sd")
    for column in ("", *Found._fields[:-2], "less none", "oracle", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    plain = [one.auc for one in found["none"]]
    for name, runs in found.items():
        cells = [name]
        for key in Found._fields[:-2]:
            cells.append(spread([getattr(one, key) for one in runs]))
        cells.append(spread([one.auc - other for one, other in zip(runs, plain, strict=True)]))
        cells += [spread([one.oracle for one in runs]), f"{runs[0].seconds:.0f}"]
        table.add_row(*cells)
    console.print(table)


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation."""
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{sd}"


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    main()
