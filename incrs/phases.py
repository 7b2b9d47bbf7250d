"""Trainings that runs share: a *phase*, one fit of the model, is a function of what goes in.

What goes in is looked at itself: the weights, the optimizer's state and the rows as they are, not how
they came about. So two runs share a phase wherever they meet, in the warm-up or as long as nothing
that an updater does reaches the training, and one that goes on after a kill shares like any other.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from incrs import states
from incrs.environment import code, machine
from incrs.module import ScenarioModule
from incrs.period import Batch, Period
from incrs.shelf import Shelf
from incrs.updaters.base import Updater, reaches_training


class Phase(NamedTuple):
    """What became of a fit: its key, the seconds that it took when it was done, whether that was before.

    elapsed: the seconds from asking to having it.
    """

    key: str = ""
    seconds: float = 0.0
    shared: bool = False
    elapsed: float = 0.0


class Phases:
    """Takes a fit that was done before from the shelf, bit for bit, or does it and puts it there.

    shelf: where they lie.  meaning: what decides how a fit goes and is not looked at: the settings of
    the model, the optimizer, the trainer and the batches.  updaters: the settings of each, by name.
    What code and machine decide is added here. Among several processes there is nothing to share.
    """

    def __init__(self, shelf: Shelf, meaning: Mapping[str, Any], updaters: Mapping[str, Any]):
        self._shelf, self._updaters = shelf, updaters
        self._meaning = digest([meaning, code(), machine()])

    def fit(
        self,
        train: Callable[[], None],
        module: ScenarioModule,
        period: Period,
        seed: int,
        epochs: int,
        warming_up: bool,
        beside: Any = None,
    ) -> Phase:
        """Bring the module to where `train` brings it; where another process is at it, wait for that.

        seed: of the order of the rows.  beside: what a task adds to them, None for nothing.
        Lines that updaters log in training are not logged again.
        """
        began = time.perf_counter()
        acting = self._acting(module, warming_up)
        parts = [self._meaning, seed, epochs, rows_of(period), *inputs(module)]
        before = {name: digest(updater.state_dict()) for name, updater in acting.items()}
        parts += [[name, self._updaters[name], before[name]] for name in acting]
        parts += [] if beside is None else [beside]
        name = f"phase-{digest(parts)}"
        found = self._read(name)
        if found is None:
            with self._shelf.claimed(name):
                found = self._read(name)
                if found is None:
                    started = time.perf_counter()
                    train()
                    seconds = time.perf_counter() - started
                    if bool(torch.stack(module.losses).isfinite().all()):
                        changed = {
                            n: u for n, u in acting.items() if digest(u.state_dict()) != before[n]
                        }
                        self._shelf.put(name, lambda to: write(to, module, changed, seconds))
                    return Phase(name[6:], seconds, False, time.perf_counter() - began)
        module.restore(found.weights, found.optimizer_state, module.ids)
        module.losses = list(found.losses.unbind())
        for one, state in found.updaters.items():
            module.updaters[one].load_state_dict(state)
        torch.set_rng_state(found.random)
        return Phase(name[6:], found.seconds, True, time.perf_counter() - began)

    def _acting(self, module: ScenarioModule, warming_up: bool) -> dict[str, Updater]:
        """Return the updaters that have a say in the steps of this fit."""
        return {
            name: updater
            for name, updater in module.updaters.items()
            if reaches_training(updater) and not (warming_up and updater.rests_in_warmup)
        }

    def _read(self, name: str) -> Trained | None:
        entry = self._shelf.find(name)
        if entry is None:
            return None
        try:
            return read(entry)
        except (OSError, SafetensorError, ValueError, KeyError):  # it went meanwhile
            return None


class Trained(NamedTuple):
    """What a fit leaves: all that anything after it depends on.

    losses: (steps,).  random: the state of torch's generator.  updaters: the states it changed.
    """

    weights: dict[str, Tensor]
    optimizer_state: dict[str, Any] | None
    updaters: dict[str, dict[str, Any]]
    losses: Tensor
    random: Tensor
    seconds: float


def write(
    folder: Path, module: ScenarioModule, changed: Mapping[str, Updater], seconds: float
) -> None:
    """Write what a fit left in the module and in the updaters that it changed."""
    states.save(module.backbone.state_dict(), folder / "backbone.safetensors")
    states.write(folder / "optimizer", states.flat_optimizer(module.optimizer_state))
    rest = {"losses": torch.stack(module.losses), "random": torch.get_rng_state()}
    states.write(folder / "rest", {**rest, "seconds": seconds, "updaters": list(changed)})
    for name, updater in changed.items():
        states.write(folder / f"updater-{name}", updater.state_dict())


def read(folder: Path) -> Trained:
    """Read back what `write` wrote."""
    rest = states.read(folder / "rest")
    return Trained(
        states.load(folder / "backbone.safetensors"),
        states.packed_optimizer(states.read(folder / "optimizer")),
        {name: states.read(folder / f"updater-{name}") for name in rest["updaters"]},
        rest["losses"],
        rest["random"],
        rest["seconds"],
    )


def inputs(module: ScenarioModule) -> list[Any]:
    """Return all of a module that the next fit depends on."""
    previous = module.previous
    return [
        module.backbone.state_dict(),
        [part.training for part in module.backbone.modules()],
        states.flat_optimizer(module.optimizer_state),
        None if previous is None else previous.state_dict(),
        module.ids,
        module.learning_rate,
        module.scenarios,
        torch.get_rng_state(),
    ]


def rows_of(period: Period) -> Any:
    """Return a period's rows and, where they stay on disk, how they are cut."""
    if isinstance(period.content, Batch):
        return period.content._asdict()
    cut = [list(period.content.sizes), period.content.buffer]
    return [cut, [digest(part._asdict()) for part in period.parts()]]


def digest(node: Any) -> str:
    """Return a digest of tensors and plain values in lists and mappings; the order of keys is none."""
    total = hashlib.sha256()
    _feed(total, node)
    return total.hexdigest()[:32]


def _feed(total: Any, node: Any) -> None:
    if isinstance(node, Tensor):
        total.update(f"tensor {node.dtype} {list(node.shape)};".encode())
        flat = node.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(node, Mapping):
        total.update(f"mapping {len(node)};".encode())
        for key in sorted(node, key=str):
            total.update(f"{key!r}:".encode())
            _feed(total, node[key])
    elif isinstance(node, list | tuple):
        total.update(f"list {len(node)};".encode())
        for one in node:
            _feed(total, one)
    else:
        total.update(f"{json.dumps(node, default=str)};".encode())
