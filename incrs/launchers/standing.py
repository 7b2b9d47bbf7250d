"""What of a sweep is there already, so that running it again runs what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from incrs.errors import Mistake


def is_finished(record: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> bool:
    """Return whether the run that `folder` holds, if any, is finished.

    record: its run.json, empty where there is none.  overrides: of the run that belongs there.
    Raises Mistake where they are not those of the run that is there.
    """
    if not record:
        return False
    there = [one for one in record["overrides"] if not any(agree(one, its) for its in overrides)]
    here = [its for its in overrides if not any(agree(one, its) for one in record["overrides"])]
    if there or here:
        theirs, ours = (" ".join(some) or "nothing" for some in (there, here))
        raise Mistake(
            f"{folder} holds a run of another sweep, with {theirs} where this one has {ours}; give "
            "another hydra.sweep.dir, or the command that the sweep there began with"
        )
    return bool(record["finished"])


def agree(recorded: str, given: str) -> bool:
    """Return whether an override is the one in run.json, which masks secrets by `***`."""
    if recorded.endswith("=***"):
        return given.startswith(recorded[:-3])
    return recorded == given
