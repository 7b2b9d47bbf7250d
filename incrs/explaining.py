"""What is wrong with a command or a configuration, in one sentence of the user's words."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from incrs.environment import CONF
from incrs.errors import Mistake

TOLD = (Mistake, HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
"""What ends a command with a sentence, where `explain` has one."""


def explain(error: BaseException) -> str | None:
    """Return a configuration error as one sentence, or None where it is not the user's mistake."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Mistake):
            return " ".join(str(cause).split())
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, InstantiationException):
        return _explain_call(error)
    if isinstance(error, UnicodeDecodeError):
        return _explain_encoding(error)
    if isinstance(error, ValueError) and not isinstance(error, TOLD):
        return _explain_defaults(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error).split()[-1]
        return f"{key} has no value yet: give {key}=..."
    if isinstance(error, MissingConfigException):
        return _explain_choice(error)
    if "updater=[]" in sys.argv:
        return "updater=[]: give at least one updater; finetune is the one that adds nothing"
    if isinstance(error, HydraException) and (found := _override_of(error)):
        return _explain_key(found)
    return " ".join(str(error).split())


def _explain_call(error: InstantiationException) -> str | None:
    where = re.search(r"full_key: (\S+)", str(error))
    key = where.group(1) if where else "the configuration"
    found = re.match(r"Error locating target '(.*)'", str(error))
    if found:
        return f"{key}._target_={found[1]}: there is no such class"
    if error.__cause__ is None:
        return f"{key}: {' '.join(str(error).split())}"
    if isinstance(error.__cause__, TypeError | ValueError):
        return f"{key}: these settings are not accepted: {' '.join(str(error.__cause__).split())}"
    return None


def _explain_defaults(error: ValueError) -> str | None:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    if not last or "hydra" not in Path(last[0].filename).parts:
        return None
    said = " ".join(str(error).split())
    return f"a yaml of the configuration: {said}: give its `defaults` as a list of names, such as [log]"


def _explain_encoding(error: UnicodeDecodeError) -> str | None:
    readers = [
        Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)[-3:]
    ]
    if not any("hydra" in parts or "omegaconf" in parts for parts in readers):
        return None
    return f"a yaml of the configuration is not UTF-8: {error}: save the file in that encoding"


def _explain_choice(error: MissingConfigException) -> str:
    found = re.search(r"Could not find '([^']+)'", str(error))
    options = re.search(r"Available options in '([^']+)':\n((?:\t.*\n?)*)", str(error))
    if not found or not options:
        return " ".join(str(error).split())
    group, _, name = found.group(1).rpartition("/")
    known = options.group(2).split()
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{group}={name}: there is no such {group}{hint}; there are {', '.join(known)}"


def _override_of(error: Exception) -> str | None:
    found = re.search(r"Could not override '([^']+)'", str(error))
    return found.group(1) if found else None


def _explain_key(key: str) -> str:
    """Say that a setting does not exist, and what there is in its place."""
    given = get_args_parser().parse_args()
    kept = [arg for arg in given.overrides if arg.split("=")[0].lstrip("+~") != key]
    if given.config_dir:
        kept.append(f"hydra.searchpath=[file://{Path(given.config_dir).resolve()}]")
    parent, _, name = key.rpartition(".")
    try:
        known, *others = [_names_in(parent, some) for some in _choices(kept, parent)]
    except Exception:
        known, others = [], []
    if any(name in some for some in (known, *others)):  # some runs have it, and Hydra looks before
        return f"{key}: not every run of the sweep has this setting: ++{key}=... sets it where it counts"
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {f'{parent}.' if parent else ''}{near[0]}?" if near else ""
    listing = f"; {parent or 'the configuration'} has {', '.join(k for k in known if k[0] != '_')}"
    return f"{key}: there is no such setting{hint or (listing if known else '')}"


def _choices(overrides: Sequence[str], parent: str) -> list[list[str]]:
    """Return the overrides with the first value of all that is swept; then with each of the group's own.

    parent: a key below the group, such as `updater.asmg`.
    """
    found: list[list[str]] = [[]]
    for one in OverridesParser.create().parse_overrides(list(overrides)):
        key = one.get_key_element()
        swept = one.is_sweep_override()
        values = [f"{key}={v}" for v in one.sweep_string_iterator()] if swept else [one.input_line]
        kept = values if key == parent.partition(".")[0] else values[:1]
        found = [[*some, str(value)] for value in kept for some in found]
    return found


def _names_in(parent: str, overrides: Sequence[str]) -> list[str]:
    """Return the settings below a key of the configuration that overrides make."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = compose("train", list(overrides))
    inside = OmegaConf.select(config, parent) if parent else config
    return [str(k) for k in inside] if isinstance(inside, DictConfig) else []
