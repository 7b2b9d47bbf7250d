"""A small log whose rows can be learnt from, and runs of it through a selector."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from incrs.data.stream import PeriodStream
from incrs.environment import CONF
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.module import ScenarioModule
from incrs.results import Row, Run
from incrs.runner import run
from incrs.selection import Selection
from incrs.selectors.base import Selector
from incrs.selectors.search import open_gates
from tests.conftest import SCHEMA, SmallSource
from tests.updaters.test_contract import made

SELECTORS = sorted(p.stem for p in (CONF / "selector").glob("*.yaml") if p.stem != "none")
PAST_GATES = ("caser", "gru4rec", "mf", "nextitnet", "ruie", "sasrec")
"""Backbones that read ids past the gates."""
GATED = sorted(p.stem for p in (CONF / "model").glob("*.yaml") if p.stem not in PAST_GATES)
"""Backbones that a selector composes with: all others."""
SOONER: dict[str, dict[str, Any]] = {
    "multifs": {"epochs": 2, "learning_rate": 0.15, "sparsity": 1e-4, "shared_sparsity": 1e-4},
    "optfs": {"epochs": 2, "learning_rate": 0.15, "sparsity": 1e-4},
    "autofield": {"epochs": 2},
    "lpfs": {"epochs": 2, "learning_rate": 0.2},
    "optembed": {"epochs": 2, "learning_rate": 0.01, "alpha": 0.1},
    "cfs": {},
}
"""Settings with which a search of a few steps decides something."""


def selector(name: str, **settings: Any) -> Selector:
    config = OmegaConf.load(CONF / "selector" / f"{name}.yaml")
    found: Selector = instantiate(config, **settings, _convert_="all")
    return found


def backbone_of(model: str = "embedding_mlp", **settings: Any) -> Backbone:
    if model == "nested":
        return backbone_of("embedding_mlp", nested=True)
    config = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    make = instantiate(config, embedding_size=4, _partial_=True, _convert_="all", **settings)
    backbone: Backbone = make(schema=SCHEMA, seed=0)
    return backbone


def module_of(
    backbone: Backbone, choice: Selector | None, updaters: tuple[str, ...] = ("finetune",)
) -> ScenarioModule:
    optimizer = partial(torch.optim.Adam, lr=0.01)
    if choice is not None:
        open_gates(backbone, SCHEMA, "small")
    return ScenarioModule(backbone, made(updaters), optimizer, 3, selector=choice)


def run_all(
    choice: Selector | None,
    source: SmallSource,
    folder: Path,
    updaters: tuple[str, ...] = ("finetune",),
    model: str = "embedding_mlp",
) -> tuple[list[Row], ScenarioModule]:
    about = Run("0", "small", "small", "+".join(updaters), 0)
    module = module_of(backbone_of(model), choice, updaters)
    selection = None if choice is None else Selection(choice, SCHEMA.scenarios)
    trainer = partial(L.Trainer, accelerator="cpu")
    stream = PeriodStream(source, 32)
    rows = run(stream, module, trainer, RunFolder(folder), about, selection=selection)
    return rows, module
