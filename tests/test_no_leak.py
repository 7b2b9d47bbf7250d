"""From the raw log on: what happens later, new users and items too, changes no digit before it."""

from __future__ import annotations

import csv
import random
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from incrs.data.log import LogSource
from incrs.data.stream import PeriodStream
from incrs.environment import CONF
from incrs.folder import RunFolder
from incrs.module import ScenarioModule
from incrs.results import Row, Run
from incrs.roster import Roster
from incrs.runner import run
from incrs.updaters.incctr import IncCTR
from incrs.updaters.incmsr import IncMSR

BACKBONES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
NOISE = 4


def write_log(folder: Path, noise_from: int) -> None:
    folder.mkdir()
    known, strange = random.Random(0), random.Random(1)
    with (folder / "log.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("time", "user", "item", "colour", "page", "click", "price"))
        for k in range(7 * 200):
            row = [known.randrange(n) for n in (70, 50, 9, 3, 2)]
            price = known.random()
            if k // 200 >= noise_from:
                row = [strange.randrange(n) for n in (300, 200, 40, 3, 2)]
                price = 100 * strange.random()
            rows.writerow((k * 432, *row, price))


def run_on(folder: Path, noise_from: int, backbone: str, vocabulary: str) -> list[Row]:
    write_log(folder, noise_from)
    source = LogSource(
        name="shop",
        path=str(folder),
        store=str(folder / "store"),
        files="*.csv",
        time="time",
        label="click",
        scenario="page",
        scenarios=["0", "1", "2"],
        user="user",
        item="item",
        categorical=["colour"],
        numeric=["price"],
        history=5,
        pretrain=2,
    )
    source.prepare()
    model, optimizer = (
        instantiate(OmegaConf.load(CONF / name), _partial_=True, _convert_="all")
        for name in (f"model/{backbone}.yaml", "optimizer/adam.yaml")
    )
    updaters = {"incmsr": IncMSR(0.01), "incctr": IncCTR(0.1)}
    module = ScenarioModule(model(schema=source.schema, seed=0), updaters, optimizer, 3)
    about = Run("0", "shop", backbone, "incmsr+incctr", 0)
    trainer = partial(L.Trainer, accelerator="cpu")
    roster = Roster(source.schema, vocabulary)
    stream = PeriodStream(source, 64, roster, unknown_rate=0.01)
    return run(stream, module, trainer, RunFolder(folder), about)


@pytest.mark.parametrize("vocabulary", ["growing", "fixed"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_noise_in_the_raw_log_of_later_days_changes_no_digit_before_it(
    backbone: str, vocabulary: str, tmp_path: Path
) -> None:
    plain = run_on(tmp_path / "plain", 99, backbone, vocabulary)
    noisy = run_on(tmp_path / "noisy", NOISE, backbone, vocabulary)
    assert [r for r in noisy if r.period < NOISE] == [r for r in plain if r.period < NOISE]
    assert [r for r in noisy if r.period == NOISE] != [r for r in plain if r.period == NOISE]
    grown = set()
    for served in range(2, NOISE + 1):
        name = f"serving/period={served:04d}.safetensors"
        ours, theirs = (load_file(tmp_path / which / name) for which in ("plain", "noisy"))
        for key, value in ours.items():
            if value.shape != theirs[key].shape:
                grown.add(key)
                assert torch.equal(theirs[key][: len(value)], value)
            else:
                assert torch.equal(theirs[key], value)
    tables = {"mf": 2, "ruie": 1}.get(backbone, 3)
    assert len(grown) == (tables if vocabulary == "fixed" else 0)
