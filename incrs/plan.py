"""What a search is going to do: the settings of its runs, what is tried, and whether that makes sense.

Hydra composes a trial's configuration from overrides, as it does for a command line; `data.test=0` is the
last of them, so nothing that a trial is made of knows a test period.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from incrs.data.base import Source
from incrs.door import made, maker
from incrs.errors import Mistake
from incrs.labels import SHARING
from incrs.period import Role
from incrs.record import without_secret
from incrs.results import replace_text
from incrs.runner import make_trainer
from incrs.search import Choice, Range, flat, read

OWN = ("search", "trials", "metric", "pruner", "sampler", "resume")
"""The settings that no run has."""

KEPT = ("data", "task", "experiment", "seed", "trainer", "logger", "hydra", *sorted(SHARING), *OWN)
"""What is the same in every trial: what is scored and how, and where it is computed."""


class Plan(NamedTuple):
    """A search: its folder, the runs' settings, what is tried, the composed configuration."""

    folder: Path
    overrides: list[str]
    search: dict[str, Range | Choice]
    config: DictConfig
    trials: int
    periods: int


def planned(config: DictConfig, folder: Path, asked: Mapping[str, Any]) -> Plan:
    """Return the plan of a new search, checked and written down, or that of the folder's.

    asked: setting -> what to try, beside those of the configuration.
    """
    given = [o for o in HydraConfig.get().overrides.task if key_of(o) not in ("resume", "trials")]
    file = folder / "study.json"
    if config.resume is None:
        if file.exists():
            raise Mistake(f"{folder} holds a search already: give resume={folder} to go on with it")
        wanted = flat(cast("dict[str, Any]", OmegaConf.to_container(config.search))) | dict(asked)
        record: dict[str, Any] = {"overrides": given, "search": wanted, "trials": config.trials}
    else:
        record = json.loads(file.read_text())
        other = [name for name, spec in asked.items() if record["search"].get(name) != spec]
        if other or (given and given != record["overrides"]):
            raise Mistake(
                f"resume={folder} goes on with a search as it was begun, so it takes no other setting "
                "but trials=: leave the others out"
            )
        if "trials" in map(key_of, HydraConfig.get().overrides.task):
            record["trials"] = config.trials
        config = composed(record["overrides"])
    trials = record["trials"]
    if type(trials) is not int or trials < 1:
        raise Mistake(f"trials={trials}: give a whole number from 1")
    if not record["search"]:
        raise Mistake(
            "search: nothing to try; give a setting and its range, such as "
            "'search.optimizer.lr=log(1e-4,1e-2)'"
        )
    tried = {name: read(name, spec) for name, spec in record["search"].items()}
    if "test" not in config.data or "tune" not in config.data:
        raise Mistake(
            "data: it has no settings `tune` and `test`, so nothing says which periods a search may read"
        )
    if not config.data.tune:
        raise Mistake("data.tune=0: settings are chosen by tune periods; give data.tune=1 or more")
    plan = Plan(folder, record["overrides"], tried, config, trials, 0)
    check(plan)
    plan = plan._replace(periods=tune_periods(composed(of_run(plan, {}))))
    written = record | {"overrides": [without_secret(one) for one in record["overrides"]]}
    replace_text(file, json.dumps(written, indent=2) + "\n")
    return plan


def check(plan: Plan) -> None:
    """Raise Mistake where a setting that is searched is none there is, or must not differ."""
    if make_trainer(maker(plan.config, "trainer"), [], 1).world_size > 1:
        raise Mistake(
            f"trainer.devices={plan.config.trainer.devices}: a trial is trained by one process: leave it out"
        )
    groups = groups_of(plan)
    places = [plan.config]
    for name, values in plan.search.items():
        if name.split(".")[0] in KEPT:
            raise Mistake(
                f"search.{name}: {name.split('.')[0]} must be the same in all trials to compare them; "
                "search settings of model, updater, optimizer or the training"
            )
        if name in groups:
            if isinstance(values, Range):
                raise Mistake(f"search.{name}: give names with commas, such as {name}=A,B")
            places += [composed(of_run(plan, {name: option})) for option in values.options]
    for name in plan.search:
        if name in groups or any(has(place, name) for place in places):
            continue
        above, _, last = name.rpartition(".")
        held = OmegaConf.select(plan.config, above) if above else plan.config
        known = [str(key) for key in held] if isinstance(held, DictConfig) else []
        near = difflib.get_close_matches(last, known, 1)
        hint = f"; did you mean {f'{above}.' if above else ''}{near[0]}?" if near else ""
        raise Mistake(f"search.{name}: there is no such setting{hint}")


def groups_of(plan: Plan) -> list[str]:
    """Return what is searched by a yaml's name, as model."""
    return [name for name in plan.search if name in HydraConfig.get().runtime.choices]


def has(config: DictConfig, setting: str) -> bool:
    """Return whether there is such a setting."""
    above, _, last = setting.rpartition(".")
    held = OmegaConf.select(config, above) if above else config
    return isinstance(held, DictConfig) and last in held


def tune_periods(config: DictConfig) -> int:
    """Prepare the log; return how many tune periods there are.  Raises Mistake where there is none."""
    source: Source = made(config.data, "data")
    source.prepare()
    if Role.TEST in source.roles:
        raise Mistake("data: test=0 leaves test periods in it, so it cannot be searched on")
    if Role.TUNE not in source.roles:
        raise Mistake(
            "data: there is no tune period yet to choose settings by; give more of the log"
        )
    return list(source.roles).count(Role.TUNE)


def key_of(override: str) -> str:
    """Return the setting that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def of_run(plan: Plan, settings: Mapping[str, str]) -> list[str]:
    """Return the overrides of a trial's run: the plan's, the trial's, and no test period."""
    drop = {"data.test", *settings}
    kept = [one for one in plan.overrides if key_of(one) not in drop]
    return [*kept, *(f"{name}={value}" for name, value in settings.items()), "data.test=0"]


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration that the overrides give; Hydra's own part of it becomes the present one."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    config = hydra.compose_config(
        config_name="tune",
        overrides=[*overrides, "hydra.mode=MULTIRUN"],
        run_mode=RunMode.RUN,
        from_shell=False,
        with_log_configuration=False,
    )
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config
