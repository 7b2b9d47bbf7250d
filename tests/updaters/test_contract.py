"""What every updater in conf/updater, alone and in pairs, must keep: no leak, resume, no surprises."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.models.mf import MF
from incrs.module import ScenarioModule
from incrs.results import Row, Run
from incrs.runner import run
from incrs.updaters.base import Updater, check
from tests.conftest import CONF, SCHEMA, SmallBackbone, SmallSource

SOONER = {"asmg": {"k": 2}, "sml": {"repetitions": 2}}
"""Settings with which an updater does all that it does within six periods."""
NAMES = sorted(path.stem for path in (CONF / "updater").glob("*.yaml"))


def made(names: tuple[str, ...]) -> dict[str, Updater]:
    """Return the updaters of these names, each with settings behind it: `asmg variant=full`."""
    updaters = {}
    for name, *settings in map(str.split, names):
        config = OmegaConf.load(CONF / "updater" / f"{name}.yaml")
        assert list(config) == [name], f"{name}.yaml must hold one key, {name}"
        config[name].update(SOONER.get(name, {}))
        config[name].merge_with_dotlist(settings)
        updaters |= instantiate(config, _convert_="all")
    return updaters


def makes_sense(names: tuple[str, ...]) -> bool:
    try:
        check(made(names))
    except Mistake:
        return False
    return True


SINGLE = [(name,) for name in NAMES]
LISTS = SINGLE + [pair for pair in itertools.combinations(NAMES, 2) if makes_sense(pair)]
PAIRS = [pytest.param(pair, marks=pytest.mark.slow) for pair in LISTS[len(SINGLE) :]]
VARIANTS = [
    pytest.param((f"asmg variant={variant}",), marks=pytest.mark.slow)
    for variant in ("single", "full", "zero", "uniform", "linear")
]
every_list = pytest.mark.parametrize("names", SINGLE + VARIANTS + PAIRS, ids="+".join)


def run_all(
    names: tuple[str, ...], source: SmallSource, folder: Path, backbone: Backbone | None = None
) -> list[Row]:
    about = Run("0", "small", "small", "+".join(names), 0)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(backbone or SmallBackbone(), made(names), optimizer, 3)
    trainer = partial(L.Trainer, accelerator="cpu")
    return run(PeriodStream(source, 32), module, trainer, RunFolder(folder), about)


@every_list
def test_noise_in_later_periods_changes_nothing_before_it(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    plain = run_all(names, SmallSource(), tmp_path / "plain")
    for first in (3, 5):
        noisy = run_all(names, SmallSource(noise_from=first), tmp_path / str(first))
        assert [row for row in noisy if row.period < first] == [
            r for r in plain if r.period < first
        ]
        assert [row for row in noisy if row.period == first] != [
            r for r in plain if r.period == first
        ]
        for served in range(2, first + 1):
            name = f"serving/period={served:04d}.safetensors"
            ours, theirs = (tmp_path / which / name for which in ("plain", str(first)))
            assert ours.read_bytes() == theirs.read_bytes()


@every_list
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    class Cut(SmallSource):
        def __init__(self, at: int):
            super().__init__()
            self.at = at

        def read(self, t: int):
            if t == self.at:
                raise KeyboardInterrupt
            return super().read(t)

    run_all(names, SmallSource(), tmp_path / "whole")
    for at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run_all(names, Cut(at), tmp_path / str(at))
        run_all(names, SmallSource(), tmp_path / str(at))
        for name in ("results.csv", "serving/period=0006.safetensors"):
            assert (tmp_path / str(at) / name).read_bytes() == (
                tmp_path / "whole" / name
            ).read_bytes()


@pytest.mark.parametrize("names", SINGLE, ids="+".join)
def test_a_run_begins_with_the_same_warm_up_whatever_the_updater(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    ours, plain = (run_all(n, SmallSource(), tmp_path / n[0]) for n in (names, ("finetune",)))
    pick = [[row[5:] for row in rows if row.period == 2] for rows in (ours, plain)]
    assert pick[0] == pick[1]


@pytest.mark.slow
@pytest.mark.parametrize("names", SINGLE, ids="+".join)
def test_a_backbone_of_tables_alone_will_do(names: tuple[str, ...], tmp_path: Path) -> None:
    rows = run_all(names, SmallSource(), tmp_path, MF(SCHEMA, 0, 4))
    assert {row.period for row in rows} == {2, 3, 4, 5}


def test_some_pairs_make_sense_and_some_do_not() -> None:
    assert ("incctr", "incmsr") in LISTS
    assert ("frozen", "incmsr") not in LISTS
