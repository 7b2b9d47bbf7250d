"""What tells one configuration from another: the settings that differ, and a name made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

SHARING = {"share", "share_path", "share_gib"}
"""Settings of what runs share."""
ELSEWHERE = SHARING | {
    *("path", "store", "download", "archives", "help", "trainer", "logger", "resume", "seed"),
}
"""Settings that say where and how a run is computed, not what: they are no part of its name."""
Record = Mapping[str, Any]
"""What a run.json holds."""


def differing(records: Mapping[str, Record], logs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return folder -> {setting: value} of what differs within a log, model and updater."""
    found: dict[str, dict[str, str]] = {}
    for names in _alike(records, logs).values():
        run = {name: records[name]["about"]["run"] for name in names}  # the same for all seeds
        first = {one: name for name, one in reversed(run.items())}
        settings = {one: settings_of(records[name]) for one, name in first.items()}
        keys = dict.fromkeys(key for one in settings.values() for key in one)
        varied = [key for key in keys if len({one.get(key) for one in settings.values()}) > 1]
        own = {
            one: {key: given[key] for key in varied if key in given}
            for one, given in settings.items()
        }
        found |= {name: dict(own[run[name]]) for name in names}
    return found


def _alike(
    records: Mapping[str, Record], logs: Mapping[str, str]
) -> dict[tuple[str, str, str], list[str]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, record in records.items():
        about = record["about"]
        groups.setdefault((logs[name], about["model"], about["updater"]), []).append(name)
    return groups


def settings_of(record: Record) -> dict[str, str]:
    """Return a run's settings, one key each, or what was given on its command line where that is all."""
    config = record.get("config")
    if config is not None:
        return dict(_flat(config))
    given = (one.partition("=") for one in record.get("overrides", []))
    return {key: value for key, _, value in given if not ELSEWHERE & set(key.split("."))}


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            if key not in ELSEWHERE:
                yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node if isinstance(node, str) else json.dumps(node, separators=(",", ":"))


def labels_of(records: Mapping[str, Record], logs: Mapping[str, str]) -> dict[str, str]:
    """Return folder -> the updater's name, with the settings that tell it from runs of the same name.

    The settings that differ, or what the command lines gave where that says the same and they are many
    or name a class.
    """
    labels: dict[str, str] = {}
    varied = differing(records, logs)
    for (_, _, updater), names in _alike(records, logs).items():
        by_config = {name: _short(updater, varied[name]) for name in names}
        given = {name: list(records[name].get("overrides", [])) for name in names}
        shared = set.intersection(*map(set, given.values()))
        by_command = {}
        for name, some in given.items():
            own = dict(one.split("=", 1) for one in some if one not in shared and "=" in one)
            kept = {k: v for k, v in own.items() if not ELSEWHERE & set(k.split("."))}
            by_command[name] = _short(updater, kept)
        pairs = {(by_config[name], by_command[name]) for name in names}
        same = len(pairs) == len(set(by_config.values())) == len(set(by_command.values()))
        long = any(len(varied[n]) > 3 or "_target_" in " ".join(varied[n]) for n in names)
        labels |= by_command if same and long else by_config
    return labels


def _short(updater: str, settings: Mapping[str, str]) -> str:
    """Return an updater with settings, those of its own without its name: asmg k=2 hidden_size=4."""
    own = [
        f"{key.removeprefix('updater.').removeprefix(f'{updater}.')}={value}"
        for key, value in settings.items()
    ]
    return " ".join([updater, *own])
