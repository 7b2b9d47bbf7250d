"""The door that trains: `python -m incrs.train model=star updater=incmsr data=kuairand data.path=...`

python -m incrs.train                                     the embedded synthetic log
python -m incrs.train -m updater=finetune,incmsr seed=0,1 a sweep, one run per combination
python -m incrs.train resume=multirun/2026-01-31/10-00-00 go on where a run stopped
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf, open_dict

from incrs import console, drawing, report, selection, show
from incrs.dashboard import Watcher
from incrs.data.base import Source
from incrs.data.stream import PeriodStream
from incrs.door import FIRST, Sweeping, enter, made, maker
from incrs.environment import CONF
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.launchers.standing import is_finished
from incrs.models.base import Backbone, SequenceBackbone
from incrs.module import ScenarioModule
from incrs.next_item import NextItem, Positives, Seeking, Supply
from incrs.ranking import Clicks, Ranking
from incrs.record import digest, without_secret, without_secrets
from incrs.results import Run
from incrs.roster import Roster
from incrs.runner import make_trainer, run, seed_of
from incrs.selection import Selection
from incrs.selectors.base import Selector
from incrs.selectors.search import open_gates
from incrs.sharing import counted, shared, totals
from incrs.signals import Interrupted
from incrs.updaters.base import Updater, check


def main(config: DictConfig) -> None:
    """Run one configuration, or go on with the one in `resume`."""
    quiet()
    folder = RunFolder(Path(config.resume or HydraConfig.get().runtime.output_dir))
    with folder.claimed() if FIRST else nullcontext(), folder.written():
        if config.resume is not None:
            record = go_on(folder)
        elif HydraConfig.get().mode is RunMode.MULTIRUN and folder.record:
            record = folder.record
            if is_finished(record, HydraConfig.get().overrides.task, folder.path):
                console.line(f"{folder.path}: finished before")
                return
        else:
            record = begin(config, folder)
        if folder.record:
            config = OmegaConf.create(record["config"])
        execute(config, folder, record)
    gc.collect()  # trainers and what they trained hold each other; the next run of a sweep needs the room


def quiet() -> None:
    """Keep Lightning's tips, device lines and hints about loaders and loggers off the console."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    if not FIRST:
        logging.disable()
        console.terminal.quiet = True


def begin(config: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Check what can be checked before anything is read, and open the run folder's record."""
    drop_unchosen(config.updater)
    if HydraConfig.get().runtime.choices["selector"] == "none":
        config.selector = {}  # a sweep may set what other selectors have
    checks = {"seed": 0, "batch_size": 1, "warmup_epochs": 1, "epochs": 1}
    share = config.unknown_rate
    if type(share) not in (int, float) or not 0 <= share < 1:
        raise Mistake(f"unknown_rate={share}: give a number from 0 to below 1")
    for key, least in checks.items():
        if type(config[key]) is not int or config[key] < least:
            raise Mistake(f"{key}={config[key]}: give a whole number from {least}")
    rate = config.incremental_lr
    if rate is not None and (type(rate) not in (int, float) or rate < 0):
        raise Mistake(
            f"incremental_lr={rate}: give a number from 0, or null for the optimizer's own"
        )
    if type(config.carry_optimizer) is not bool:
        raise Mistake(f"carry_optimizer={config.carry_optimizer}: give true or false")
    if type(config.share) is not bool:
        raise Mistake(f"share={config.share}: give true or false")
    if not isinstance(config.share_path, str):
        raise Mistake(f"share_path={config.share_path}: give a folder, or share=false")
    most = config.share_gib
    if type(most) not in (int, float) or not most > 0:
        raise Mistake(f"share_gib={most}: give a number above 0, or share=false to share nothing")
    if folder.record and FIRST:
        raise Mistake(
            f"{folder.path} holds a run already: give resume={folder.path} to go on with it"
        )
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    choices = HydraConfig.get().runtime.choices
    about = Run(
        run=digest(resolved),
        data=config.data.name,
        model=choices["model"] + (f"-{choices['selector']}" if config.get("selector") else ""),
        updater="+".join(config.updater),
        seed=config.seed,
    )
    packages = ("incrs", "torch", "lightning", "polars", "numpy", "hydra-core")
    return {
        "command": " ".join(["python -m incrs.train", *map(without_secret, sys.argv[1:])]),
        "overrides": [without_secret(one) for one in HydraConfig.get().overrides.task],
        "about": about._asdict(),
        "config": without_secrets(resolved),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "timings": [],
        "finished": False,
    }


def drop_unchosen(updaters: DictConfig) -> None:
    """Leave out what an experiment sets of updaters that were not chosen: nothing says their class."""
    known = {path.stem for path in (CONF / "updater").glob("*.yaml")}
    with open_dict(updaters):
        for name in [
            name for name in updaters if name in known and "_target_" not in updaters[name]
        ]:
            del updaters[name]


def go_on(folder: RunFolder) -> dict[str, Any]:
    """Read the record of the run to go on with."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise Mistake("resume= goes on with one run, so it cannot be swept: leave out -m")
    others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    if others:
        raise Mistake(
            f"resume= goes on with a run as it was configured, so it takes no other setting: "
            f"leave out {' '.join(others)}"
        )
    record = folder.record
    if not record:
        raise Mistake(
            f"resume={folder.path}: there is no run.json in that folder, so no run to go on with"
        )
    return record


def execute(
    config: DictConfig, folder: RunFolder, record: dict[str, Any], others: Sequence[Watcher] = ()
) -> None:
    """Build the objects that a configuration names, run them, and show what came out.

    others: who watches the run beside its loggers.
    """
    # Determinism would also write NaN into memory before it is used, on which no number depends.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    beside = drawing.beside() if FIRST and Sweeping.here() else None
    about = Run(**record["about"])
    updaters: dict[str, Updater] = {
        str(name): made(one, f"updater.{name}") for name, one in config.updater.items()
    }
    check(updaters)
    selector: Selector | None = (
        made(config.selector, "selector") if config.get("selector") else None
    )
    task: Clicks | Ranking | NextItem = (
        made(config.task, "task") if config.get("task") else Clicks()
    )
    ranking = task if isinstance(task, Ranking) else None
    finding = task if isinstance(task, NextItem) else None
    if finding is not None and selector is not None:
        raise Mistake(
            "task=next_item knows no selectors: leave out selector=, or choose task=click"
        )
    optimizer, trainer = maker(config, "optimizer"), maker(config, "trainer")
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
        check_processes(make_trainer(trainer, [], 1))
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise Mistake(f"optimizer or trainer: their settings are not accepted: {error}") from None
    loggers: list[Watcher] = [
        made(one, f"logger.{name}", folder=str(folder.path))
        for name, one in (config.logger or {}).items()
        if FIRST
    ]
    source: Source = made(config.data, "data")
    source.prepare()
    if ranking is not None:
        ranking.check(source.schema)
    if finding is not None:
        finding.check(source.schema, updaters)
        source = Positives(source)
    before = record.get("data")
    if before and before["fingerprint"] not in source.fingerprints[len(before["roles"]) - 1 :][:1]:
        raise Mistake(
            f"resume={folder.path}: the log is not the one the run began with, nor that log with "
            f"periods added behind; start a new run, or give back the files of "
            f"{config.data.get('path', 'the log')}"
        )
    record["finished"] = False
    record["data"] = {
        "fingerprint": source.fingerprint,
        "roles": [str(role) for role in source.roles],
        "scenarios": list(source.schema.scenarios),
    }
    schema = source.schema
    roster = Roster(schema, config.vocabulary, config.admission, config.expiry)
    stream = PeriodStream(source, config.batch_size, roster, config.unknown_rate)
    torch.manual_seed(seed_of(config.seed, 0))
    empty = replace(schema, vocabularies=dict.fromkeys(schema.vocabularies, 1))  # rows come later
    backbone: Backbone = maker(config, "model")(schema=empty, seed=config.seed)
    if selector is not None:
        open_gates(backbone, schema, about.model.rpartition("-")[0])
    seeking = None
    if finding is not None and isinstance(source, Positives):
        if isinstance(backbone, SequenceBackbone) and config.model.get("tower") is not None:
            backbone = maker(config, "model")(schema=empty, seed=config.seed, tower=None)
        backbone = finding.seeker(backbone, schema)
        supply = Supply(finding, backbone, schema, roster, source.everything)
        seeking = Seeking(finding, supply, stream)
    module = ScenarioModule(
        backbone,
        updaters,
        optimizer,
        len(schema.scenarios),
        config.carry_optimizer,
        selector,
    )
    phases, kept = shared(folder, record, schema, trainer, seeking is not None)
    watchers = loggers
    began, finished = time.perf_counter(), False
    try:
        if FIRST:
            folder.write_record(record)
            watchers = [console.Progressing(about, len(stream.roles)), *loggers, *others]
        for watcher in watchers:
            watcher.run_begins()
        taken = kept.take(watchers) if kept else None
        rows = taken
        if rows is None:
            rows = run(
                stream,
                module,
                trainer,
                folder,
                about,
                watchers,
                warmup_epochs=config.warmup_epochs,
                epochs=config.epochs,
                incremental_lr=config.incremental_lr,
                ranking=ranking,
                phases=phases,
                selection=None if selector is None else Selection(selector, schema.scenarios),
                seeking=seeking,
            )
        finished = True
    except Interrupted:
        if folder.record:
            console.line(f"stopped; to go on: python -m incrs.train resume={folder.path}")
        raise
    finally:
        for watcher in watchers:
            watcher.run_ends(finished)
    if not FIRST:
        return
    record = folder.record
    record["seconds"] = record.get("seconds", 0.0) + time.perf_counter() - began
    if phases:
        record["phases"] = counted(record["timings"])
    folder.write_record(record)
    if HydraConfig.get().mode is RunMode.RUN:  # a sweep sums up at its end
        scored = {one["period"] + 1: one["scored"] for one in record["timings"]}
        show.show_run(rows, about, scored)
    if taken is None and selector is not None:
        selection.draw(folder.path)
        selection.export(folder.path, module.backbone)
    if taken is not None:
        folder.write_record(folder.record | {"finished": True})
    elif beside is not None:
        beside.finish(folder, kept)
    else:
        drawing.finish(folder, kept)
    console.line(f"everything is in {folder.path}")


def check_processes(trainer: L.Trainer) -> None:
    """Raise Mistake where several processes would not train as one."""
    if trainer.world_size == 1:
        return
    spawns = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    if spawns or not isinstance(trainer.strategy, DDPStrategy):
        raise Mistake(
            f"trainer.devices={trainer.num_devices}: several devices train as one with trainer=ddp "
            "alone, not with another trainer.strategy"
        )
    launcher = trainer.strategy.cluster_environment
    by_itself = launcher is None or not launcher.creates_processes_externally
    if HydraConfig.get().mode is RunMode.MULTIRUN and by_itself:
        raise Mistake(
            f"-m with trainer.devices={trainer.num_devices}: the processes of a sweep's runs must be "
            "started together, or each would train another configuration: start the command by "
            "torchrun or a launcher that starts every process, or leave out -m"
        )


def sum_up(sweep: Path) -> None:
    """Show the summary of a sweep's runs that are finished, wherever they ran."""
    drawing.settle()
    records = sorted(sweep.rglob("run.json"))
    done = [one.parent for one in records if json.loads(one.read_text())["finished"]]
    if len(done) > 1:
        report.show_summary(report.find_runs(done))
        if line := totals(done):
            console.line(line)


if __name__ == "__main__":
    from incrs import train  # by its name, under which a launcher's processes find it

    enter(train.main, train.sum_up)
