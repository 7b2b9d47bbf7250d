"""Flat states on disk: tensors as safetensors, the rest as json; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from incrs.signals import uninterrupted


def load(file: Path) -> dict[str, Tensor]:
    """Read tensors into memory of their own, for how it is aligned can move a last digit."""
    with uninterrupted():  # native code makes another error of a signal's
        return {name: value.clone() for name, value in load_file(file).items()}


def save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors by name."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, file)


def write(stem: Path, state: Mapping[str, Any]) -> None:
    """Write a flat state: `stem`.safetensors and `stem`.json."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in state.items() if name not in tensors}
    save(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(others))


def read(stem: Path) -> dict[str, Any]:
    """Read back what `write` wrote."""
    state: dict[str, Any] = json.loads(stem.with_suffix(".json").read_text())
    return state | load(stem.with_suffix(".safetensors"))


def flat_optimizer(state: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an optimizer's `state_dict` as a flat state; nothing of None."""
    if state is None:
        return {}
    flat = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return {"param_groups": state["param_groups"], **flat}


def packed_optimizer(flat: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `state_dict` that `flat_optimizer` was given."""
    if not flat:
        return None
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        if key != "param_groups":
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
    return {"state": entries, "param_groups": flat["param_groups"]}
