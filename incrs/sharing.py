"""What a run takes from other runs and leaves to them, as its configuration says; and how much that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from incrs.data.base import Schema
from incrs.environment import code, machine
from incrs.folder import RunFolder
from incrs.kept import Kept
from incrs.labels import SHARING
from incrs.phases import Phases
from incrs.phases import digest as digest_of
from incrs.record import essence
from incrs.runner import TrainerMaker, make_trainer
from incrs.shelf import Shelf

APART = SHARING | {
    *("data", "updater", "task", "logger", "experiment", "resume"),
    *("seed", "epochs", "warmup_epochs", "incremental_lr"),
}
"""Settings that no fit depends on, or that `Phases` sees in what goes into one."""


def shared(
    folder: RunFolder,
    record: Mapping[str, Any],
    schema: Schema,
    trainer: TrainerMaker,
    by_task: bool = False,
) -> tuple[Phases | None, Kept | None]:
    """Return what this run can take from others and leave to others, None where that is not asked for.

    by_task: whether training depends on the task.
    """
    config, ours = record["config"], make_trainer(trainer, [], 1)
    if not config.get("share") or ours.world_size > 1:
        return None, None
    shelf = Shelf(Path(config["share_path"]).expanduser(), config["share_gib"])
    device = ours.strategy.root_device
    meaning = {
        "settings": {
            k: v for k, v in config.items() if k not in APART or (by_task and k == "task")
        },
        "schema": asdict(schema) | {"vocabularies": list(schema.vocabularies)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    everything = [meaning, essence(config), config["logger"], record["about"], record["data"]]
    key = digest_of([everything, code(), machine()])
    return Phases(shelf, meaning, config["updater"]), Kept(shelf, key, folder)


def counted(timings: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many of a run's phases were computed and how many were shared."""
    phases = [one for one in timings if one.get("phase")]
    taken = sum(one["shared"] for one in phases)
    return {"computed": len(phases) - taken, "shared": taken}


def totals(folders: Sequence[Path]) -> str | None:
    """Return a line about the phases of several runs, None where none are shared."""
    found = [one for one in (RunFolder(f).record.get("phases") for f in folders) if one]
    computed, taken = (sum(one[what] for one in found) for what in ("computed", "shared"))
    return f"{computed} phases computed, {taken} shared" if found else None
