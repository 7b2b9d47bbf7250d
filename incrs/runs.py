"""What run and sweep folders hold, read at once for tables, curves and the report's page.

    runs = find_runs([Path("multirun/2026-01-31/10-00-00")])
    auc = runs.table.filter(metric="auc", scenario="all", role="test")
    auc.group_by("log", "model", "label").agg(pl.col("value").mean())

A sweep's folder may be given while it still runs: what is there counts, what is not is a sentence.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from incrs import results
from incrs.errors import Mistake
from incrs.labels import Record, differing, labels_of
from incrs.results import Row

WORDS = ("run", "data", "model", "updater", "role", "scenario", "metric")
NUMBERS = {"value": pl.Float64, "rows": pl.Int64, "positives": pl.Int64}
SCHEMA = {name: pl.Categorical if name in WORDS else pl.Int32 for name in Row._fields} | NUMBERS


class Runs(NamedTuple):
    """Everything that some run folders hold.

    records: run folder -> its run.json, of the runs with results.
    table: the rows of all results.csv, with three columns more: `folder`, a key of `records`; `label`,
    the updater and the settings that tell it from others of its name; `log`, the name of the data, or
    "name #1", "name #2", ... where runs of one name cannot be compared.  Words are categorical.
    missing: sentences on what is not there, not finished, not comparable or there twice.
    """

    records: Mapping[str, Record]
    table: pl.DataFrame
    missing: list[str]


def find_runs(folders: Sequence[Path]) -> Runs:
    """Read every run below the folders.  Raises Mistake where there is none with results."""
    found, sweeps = _folders(folders)
    records = {str(folder): _record(folder) for folder in found}
    empty = [name for name in records if not (Path(name) / results.FILE).exists()]
    missing = [sentence for sweep in sweeps for sentence in _not_begun(sweep)]
    missing += [_unfinished(name, one) for name, one in records.items() if not one["finished"]]
    for name in empty:
        del records[name]
    if not records:
        raise Mistake(
            f"no run with results below {' '.join(map(str, folders))}: give a run or sweep folder"
            + "".join(f"; {sentence}" for sentence in missing[:3])
        )
    missing += _drop_copies(records)
    logs, sentences = _logs(records)
    labels = labels_of(records, logs)
    names = {"folder": list(records)}
    names |= {"label": [labels[name] for name in records], "log": [logs[name] for name in records]}
    files = [str(Path(name) / results.FILE) for name in records]
    known = pl.DataFrame(names, schema=dict.fromkeys(names, pl.Categorical))
    rows = pl.scan_csv(files, schema=SCHEMA, glob=False, include_file_paths="file")
    by_file = known.lazy().with_columns(file=pl.Series(files))
    table = rows.join(by_file, on="file", how="left", maintain_order="left").drop("file")
    return Runs(records, table.collect(engine="streaming"), missing + sentences)


def swept(runs: Runs) -> dict[str, dict[str, str]]:
    """Return folder -> {setting: value} of what differs among runs of one log, model and updater.

    Seeds, paths and devices aside; a setting is named as the command line names it.
    """
    logs = dict(runs.table.select("folder", "log").unique().cast(pl.String).iter_rows())
    return differing({name: runs.records[name] for name in runs.records if name in logs}, logs)


def _folders(given: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the run folders and the sweep folders below those given, each once."""
    runs: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    for top in given:
        for folder, below, files in os.walk(top):
            here = Path(folder)
            if "run.json" in files:
                runs.setdefault(here.resolve(), here)
                below.clear()
            elif "multirun.yaml" in files:
                sweeps.setdefault(here.resolve(), here)
            below.sort(key=lambda name: (len(name), name) if name.isdigit() else (99, name))
    return list(runs.values()), list(sweeps.values())


def _record(folder: Path) -> Record:
    try:
        record: Record = json.loads((folder / "run.json").read_text())
    except ValueError as error:
        raise Mistake(
            f"{folder / 'run.json'} cannot be read: {error}: leave out or repair it"
        ) from error
    return record


def _not_begun(sweep: Path) -> Iterator[str]:
    """Say which runs of a sweep left no record, by what Hydra wrote of it."""
    try:
        written = yaml.safe_load((sweep / "multirun.yaml").read_text())["hydra"]
        if written["sweep"]["subdir"] != "${hydra.job.num}" or "Basic" not in str(
            written["sweeper"]
        ):
            return
        params = [f"{key}={value}" for key, value in (written["sweeper"]["params"] or {}).items()]
        given = [*params, *written["overrides"]["task"]]
        parsed = OverridesParser.create().parse_overrides(given)
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except (HydraException, yaml.YAMLError, KeyError, TypeError):
        return  # written by another sweeper, or half written
    shared = set.intersection(*map(set, jobs))
    for number, overrides in enumerate(jobs):
        if not (sweep / str(number) / "run.json").exists():
            own = " ".join(one for one in overrides if one not in shared)
            yield f"{sweep / str(number)}: {own} has not begun, or failed before it did"


def _unfinished(name: str, record: Record) -> str:
    """Say how far a run is that is not finished."""
    about = record["about"]
    scored = [one for one in record.get("timings", []) if one.get("scored")]
    roles = record.get("data", {}).get("roles", [])
    to_score = sum(role != "pretrain" for role in roles)
    how_far = f"{len(scored)} of {to_score} periods scored" if to_score else "nothing scored yet"
    state = "is running" if _locked(Path(name) / ".lock") else "is not finished"
    return f"{name}: {about['model']} {about['updater']} seed={about['seed']} {state}: {how_far}"


def _locked(file: Path) -> bool:
    """Return whether a process is working on the run that the lock is of."""
    try:
        with file.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _drop_copies(records: dict[str, Record]) -> list[str]:
    """Leave one run of each configuration, seed and log, the one that got furthest; say so."""
    best: dict[tuple[Any, ...], str] = {}
    dropped = []
    for name, record in list(records.items()):
        key = (*record["about"].values(), *_data_of(record))
        other = best.setdefault(key, name)
        if other == name:
            continue
        worse, best[key] = sorted((other, name), key=lambda one: len(records[one]["timings"]))
        del records[worse]
        dropped.append(f"{worse}: the same configuration and seed as {best[key]}, which counts")
    return dropped


def _data_of(record: Record) -> tuple[str | None, tuple[str, ...], str]:
    """Return what two runs must share to be compared: the log, the periods' roles, the ranking task."""
    data = record.get("data", {})
    task = record.get("config", {}).get("task") or {}
    ranking = json.dumps({k: v for k, v in task.items() if k != "_target_"}, sort_keys=True)
    return data.get("fingerprint"), tuple(data.get("roles", ())), ranking


def _logs(records: Mapping[str, Record]) -> tuple[dict[str, str], list[str]]:
    """Return folder -> name of the log, numbered where a name stands for several, and a sentence on each."""
    kinds: dict[str, dict[tuple[Any, ...], list[str]]] = {}
    for name, record in records.items():
        kinds.setdefault(record["about"]["data"], {}).setdefault(_data_of(record), []).append(name)
    found: dict[str, str] = {}
    sentences = []
    for data, some in kinds.items():
        numbered = [data] if len(some) == 1 else [f"{data} #{i + 1}" for i in range(len(some))]
        for log, (kind, names) in zip(numbered, some.items(), strict=True):
            found |= dict.fromkeys(names, log)
            if len(some) > 1:
                first = next(iter(some))
                why = [
                    reason
                    for reason, one, other in zip(
                        ("other rows", "other roles of its periods", "another way of ranking"),
                        kind,
                        first,
                        strict=True,
                    )
                    if one != other
                ]
                than = f": {' and '.join(why)} than #1, so they are not compared" if why else ""
                sentences.append(f"{log} is {len(names)} runs such as {names[0]}{than}")
    return found, sentences
