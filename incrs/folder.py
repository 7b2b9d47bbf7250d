"""What a run leaves on disk: results, run.json, the serving weights and the place to go on from.

    results.csv                     one tidy row per number
    run.json                        configuration, versions, data, timings: all it takes to repeat it
    serving/period=0007.safetensors the weights that serve period 7, learnt from periods 0 .. 6
    checkpoint/period=0006/         what training on period 7 starts from; only the last is kept
    curves.png, losses.csv          for people

Everything is written whole or not at all, so a run killed at any moment can go on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from incrs import results
from incrs.dashboard import Timing
from incrs.module import ScenarioModule
from incrs.results import Row, replace_text
from incrs.updaters.base import Weights


class RunFolder:
    """Reads and writes the files of one run.  path: the folder; made when first written to."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def results(self) -> Path:
        """The path of results.csv."""
        return self.path / results.FILE

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says; empty where there is none."""
        file = self.path / "run.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def add_timing(self, timing: Timing) -> None:
        """Add what a period cost to run.json, in the place of an earlier try at it."""
        record = self.record
        kept = [one for one in record.get("timings", []) if one["period"] < timing.period]
        seconds = timing.fit_seconds
        rate = round(timing.rows_trained / seconds) if timing.rows_trained and seconds else None
        record["timings"] = [*kept, timing._asdict() | {"rows_per_second": rate}]
        self.write_record(record)

    def write_serving(self, period: int, weights: Weights) -> None:
        """Write the weights that serve `period`."""
        folder = self.path / "serving"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"period={period:04d}.safetensors"
        partial = folder / f".{file.name}.partial"
        save_file(_plain(weights), partial)
        partial.replace(file)

    def save(self, period: int, module: ScenarioModule) -> None:
        """Write the checkpoint after `period`, then drop the one before it."""
        parent = self.path / "checkpoint"
        target = parent / f"period={period:04d}"
        partial = parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_plain(module.backbone.state_dict()), partial / "backbone.safetensors")
        _write(partial / "optimizer", _unpack_optimizer(module.optimizer_state))
        for name, updater in module.updaters.items():
            _write(partial / f"updater-{name}", updater.state_dict())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in parent.glob("period=*"):
            if old != target:
                shutil.rmtree(old)

    def restore(self, module: ScenarioModule) -> int | None:
        """Load the last checkpoint into the module; return its period, or None if there is none."""
        found = sorted((self.path / "checkpoint").glob("period=*"))
        if not found:
            return None
        module.backbone.load_state_dict(load_file(found[-1] / "backbone.safetensors"))
        module.optimizer_state = _pack_optimizer(_read(found[-1] / "optimizer"))
        for name, updater in module.updaters.items():
            updater.load_state_dict(_read(found[-1] / f"updater-{name}"))
        return int(found[-1].name.removeprefix("period="))

    def rows_until(self, period: int) -> list[Row]:
        """Return the rows of results.csv up to and including `period`."""
        if not self.results.exists():
            return []
        return [row for row in results.read(self.results) if row.period <= period]

    def write_results(self, rows: Sequence[Row]) -> None:
        """Write results.csv."""
        self.path.mkdir(parents=True, exist_ok=True)
        results.write(self.results, rows)


def _plain(weights: Weights) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _write(stem: Path, state: Mapping[str, Any]) -> None:
    """Write a flat state: tensors as safetensors, the rest as json; nothing is ever unpickled."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in state.items() if name not in tensors}
    save_file(_plain(tensors), stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(others))


def _read(stem: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(stem.with_suffix(".json").read_text())
    return state | load_file(stem.with_suffix(".safetensors"))


def _unpack_optimizer(state: Mapping[str, Any] | None) -> dict[str, Any]:
    if state is None:
        return {}
    flat = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return {"param_groups": state["param_groups"], **flat}


def _pack_optimizer(flat: dict[str, Any]) -> dict[str, Any] | None:
    if not flat:
        return None
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        if key != "param_groups":
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
    return {"state": entries, "param_groups": flat["param_groups"]}
