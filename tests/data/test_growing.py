"""A store grows by new files: as if made at once, never rewriting a period, whole after any crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from incrs.data import build as building
from incrs.data import publish, raw
from incrs.data.log import LogSource
from incrs.data.store import Store
from incrs.errors import Mistake
from incrs.period import Period, Role
from tests.data.shop import DAY, ITEMS, MIDNIGHT, OSLO, declare, made_up, read_all, same, write

RICH = {
    "scenario": "tab",
    "scenarios": ["x", "y"],
    "scenario_rest": "pool",
    "categorical": ["brand"],
    "time_fields": ["hour"],
    "multivalued": {"genre": "|"},
    "numeric": ["price"],
    "joins": [{"file": "items.csv", "key": "item"}],
    "history": 4,
}
POSITIVES = RICH | {"label": None, "negatives": 2}
PLAIN = {"history": 3, "numeric": ["price"]}


def by_day(rows: list[dict]) -> dict[str, list[dict]]:
    """Cut at midnight in Oslo."""
    days: dict[str, list[dict]] = {}
    for row in rows:
        day = datetime.fromtimestamp(row["ts"], OSLO).strftime("%Y-%m-%d")
        days.setdefault(day, []).append(row)
    return dict(sorted(days.items()))


def put(folder: Path, days: dict[str, list[dict]], *names: str) -> None:
    for name in names:
        write(folder / f"log_{name}.csv", days[name])


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a store but the times of raw files."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = file.read_bytes()
    manifest = json.loads(found["manifest.json"])
    for entry in manifest["logs"] + manifest["tables"]:
        entry.pop("mtime_ns")
    return found | {"manifest.json": json.dumps(manifest).encode()}


def refused(source: LogSource, *words: str) -> None:
    """The next preparation is a sentence with these words, and changes nothing."""
    before = contents(source.folder)
    with pytest.raises(Mistake) as caught:
        source.prepare()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    if "manifest.json" in before:
        assert contents(source.folder) == before
    assert not list(source.folder.parent.glob(".*.tmp"))


@pytest.fixture
def days() -> dict[str, list[dict]]:
    return by_day(made_up(300))


@pytest.fixture
def grown(tmp_path: Path, days: dict[str, list[dict]]) -> Callable[..., LogSource]:
    """A store of the first five days; further days are put by the test."""

    def make(**options) -> LogSource:
        write(tmp_path / "items.csv", ITEMS)
        put(tmp_path, days, *list(days)[:5])
        source = declare(tmp_path, **(PLAIN | options))
        source.prepare()
        return source

    return make


@pytest.mark.parametrize("options", [RICH, POSITIVES, PLAIN | {"time_fields": ["weekday"]}])
def test_a_store_grown_day_by_day_is_the_store_made_at_once(
    tmp_path: Path, days: dict[str, list[dict]], options: dict
):
    names = list(days)
    write(tmp_path / "items.csv", ITEMS)
    grown = declare(tmp_path, **options, store=str(tmp_path / "grown"))
    seen: list[list[Period]] = []
    prints: list[str] = []
    for k in range(2, len(names) + 1):
        put(tmp_path, days, names[k - 1], *(names[:1] if k == 2 else []))
        if k == 4:
            (tmp_path / f"log_{names[0]}.csv").rename(tmp_path / "archived.csv")
        seen.append(read_all(grown))
        assert [p.name for p in seen[-1]] == names[:k]
        assert grown.fingerprints[: len(prints)] == prints
        prints = list(grown.fingerprints)
    assert [p.role for p in seen[0]] == [Role.PRETRAIN] * 2
    assert [p.role for p in seen[1]] == [Role.PRETRAIN] * 2 + [Role.TUNE]

    (tmp_path / "archived.csv").rename(tmp_path / f"log_{names[0]}.csv")
    once = declare(tmp_path, **options, store=str(tmp_path / "once"))
    at_once = read_all(once)
    for periods in seen:
        assert all(same(a, b) for a, b in zip(periods, at_once, strict=False))
    assert list(once.fingerprints) == prints
    assert once.schema == grown.schema
    assert contents(once.folder) == contents(grown.folder)


def test_a_new_day_opens_only_its_own_file(
    tmp_path: Path, days: dict[str, list[dict]], monkeypatch: pytest.MonkeyPatch, grown
):
    source = grown()
    opened = []
    monkeypatch.setattr(
        raw, "_opened", lambda file, real=raw._opened: opened.append(file) or real(file)
    )
    source.prepare()
    assert opened == []
    put(tmp_path, days, list(days)[5])
    for file in sorted(tmp_path.glob("log_*.csv"))[:5]:
        stat = file.stat()
        file.write_bytes(b"\xff" * stat.st_size)  # would be refused if it were read
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    read = {f: f.stat().st_atime_ns for f in source.folder.glob("period=*/rows.parquet")}
    source.prepare()
    assert {file.name for file in opened} == {f"log_{list(days)[5]}.csv"}
    assert len(source.roles) == 6
    assert {f: f.stat().st_atime_ns for f in read} == read


def test_a_written_period_is_never_touched(tmp_path: Path, days: dict[str, list[dict]], grown):
    source = grown()
    files = sorted(source.folder.glob("period=*/rows.parquet"))
    before = [(f.stat().st_ino, f.stat().st_mtime_ns, f.read_bytes()) for f in files]
    put(tmp_path, days, *list(days)[5:])
    source.prepare()
    assert [(f.stat().st_ino, f.stat().st_mtime_ns, f.read_bytes()) for f in files] == before
    assert len(list((source.folder / "state").iterdir())) == 1


def test_a_reader_of_the_old_store_reads_on_while_it_grows(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown()
    old = Store.open(source.folder)
    assert old is not None
    before = old.vocabulary("item")
    reader = declare(tmp_path, **PLAIN)
    periods = read_all(reader)
    put(tmp_path, days, *list(days)[5:])
    source.prepare()
    assert len(source.roles) > len(reader.roles)
    assert all(same(reader.read(t), period) for t, period in enumerate(periods))
    assert old.vocabulary("item").equals(before)


def test_the_same_content_with_another_time_is_the_same_file(tmp_path: Path, grown):
    source = grown()
    before = contents(source.folder)
    for file in [*tmp_path.glob("log_*.csv"), tmp_path / "items.csv"]:
        os.utime(file, (1, 1))
    source.prepare()
    assert contents(source.folder) == before


def test_a_changed_file_is_refused(tmp_path: Path, days: dict[str, list[dict]], grown):
    source = grown()
    name = list(days)[1]
    write(tmp_path / f"log_{name}.csv", days[name][1:])
    refused(
        source, f"log_{name}.csv changed", "old file back", f"delete the folder {source.folder}"
    )
    put(tmp_path, days, list(days)[5])
    refused(source, f"log_{name}.csv changed")
    shutil.rmtree(source.folder)
    assert len(read_all(source)) == 6


def test_a_day_that_is_written_already_is_refused(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown()
    names = list(days)
    late = [days[names[2]][0], *days[names[5]]]
    write(tmp_path / "log_late.csv", late)
    refused(
        source,
        f"period {names[2]} of log_late.csv",
        names[4],
        "never rewritten",
        "delete the folder",
    )
    write(tmp_path / "log_late.csv", [late[0] | {"ts": MIDNIGHT - 9 * DAY}])
    refused(source, "period 2021-03-18 of log_late.csv")
    (tmp_path / "log_late.csv").rename(tmp_path / "elsewhere.csv")
    source.prepare()


def test_new_files_without_a_kept_row_are_refused(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown(scenario="tab", scenarios=["x"])
    rows = [row | {"tab": "q"} for row in days[list(days)[5]]]
    write(tmp_path / "log_q.csv", rows)
    refused(source, "log_q.csv", "no row of these new files is kept", "data.scenarios")
    (tmp_path / "log_q.csv").write_text("ts,user,item,tab,click,price\n")
    refused(source, "log_q.csv has no row")


def test_a_side_table_may_change_with_a_new_day_and_only_then(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    options = {"categorical": ["brand"], "joins": [{"file": "items.csv", "key": "item"}]}
    source = grown(**options)
    before = read_all(source)
    write(tmp_path / "items.csv", [row | {"brand": "new"} for row in ITEMS])
    refused(source, "items.csv changed", "together with a new file of the log")
    put(tmp_path, days, list(days)[5])
    after = read_all(source)
    assert all(same(a, b) for a, b in zip(before, after, strict=False))
    brands = Store.open(source.folder).vocabulary("brand")  # type: ignore[union-attr]
    assert brands.filter(pl.col("first_period") == 5)["value"].to_list() == ["new"]
    assert set(after[5].rows.fields[:, 2].tolist()) == {0, len(brands)}
    source.prepare()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": "count", "period_count": 5, "pretrain": 2}, ["data.period=count"]),
        ({"label": None, "negatives": 1, "negatives_from": "all"}, ["data.negatives_from=all"]),
    ],
)
def test_what_looks_at_the_whole_log_does_not_grow(
    tmp_path: Path, days: dict[str, list[dict]], grown, options: dict, words: list[str]
):
    source = grown(**options)
    put(tmp_path, days, list(days)[5])
    refused(source, *words, "whole log", f"log_{list(days)[5]}.csv", "delete the folder")


def test_a_scenario_that_is_not_listed_cannot_be_new(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown(scenario="tab")
    name = list(days)[5]
    write(tmp_path / f"log_{name}.csv", [row | {"tab": "new"} for row in days[name]])
    refused(source, "'new'", "data.scenarios", "those had")
    listed = grown(
        scenario="tab", scenarios=["x", "y"], scenario_rest="pool", store=str(tmp_path / "s")
    )
    assert {p.rows.scenario.unique().item() for p in read_all(listed)[5:]} == {2}


def test_a_listed_scenario_need_not_be_in_a_new_day(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown(scenario="tab", scenarios=["x", "y", "z"])
    name = list(days)[5]
    write(tmp_path / f"log_{name}.csv", [row | {"tab": "x"} for row in days[name]])
    assert {p.rows.scenario.unique().item() for p in read_all(source)[5:]} == {0}


def test_the_pooled_scenario_is_there_even_when_nothing_is_pooled(tmp_path: Path, grown):
    source = grown(scenario="tab", scenarios=["x", "y", "z"], scenario_rest="pool")
    assert source.schema.scenarios == ["x", "y", "z", "other"]


def test_numbers_name_periods_in_their_order_as_a_store_grows(tmp_path: Path):
    rows = [row | {"week": 8 + k % 3} for k, row in enumerate(made_up(60))]
    write(tmp_path / "log1.csv", [row for row in rows if row["week"] < 10])
    options = {"period": "column", "period_column": "week", "history": 2}
    source = declare(tmp_path, **options)
    source.prepare()
    write(tmp_path / "log2.csv", [row for row in rows if row["week"] == 10])
    assert [p.name for p in read_all(source)] == ["8", "9", "10"]
    write(tmp_path / "log3.csv", [row | {"week": "ten"} for row in rows])
    refused(source, "period ten of log3.csv")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an older format": (
        lambda f: (f / "manifest.json").write_text('{"format": 1}'),
        "has format 1 but this version reads format 2",
    ),
    "half a manifest": (
        lambda f: (f / "manifest.json").write_text('{"format": 2, "per'),
        "manifest.json cannot be read",
    ),
    "a manifest of another kind": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "manifest.json cannot be read",
    ),
    "a manifest with a part missing": (
        lambda f: (f / "manifest.json").write_text('{"format": 2, "periods": [], "logs": []}'),
        "manifest.json lacks a part",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "no schema": (lambda f: (f / "schema.json").unlink(), "schema.json cannot be read"),
    "no vocabulary": (lambda f: shutil.rmtree(f / "vocab"), "vocab/"),
    "no state": (lambda f: shutil.rmtree(f / "state"), "state"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused_in_one_sentence(
    tmp_path: Path, days: dict[str, list[dict]], grown, damage: str
):
    source = grown()
    put(tmp_path, days, list(days)[5])
    hurt, word = DAMAGE[damage]
    hurt(source.folder)
    with pytest.raises(Mistake) as caught:
        source.prepare()
    sentence = str(caught.value)
    assert word in sentence
    assert "delete that folder" in sentence
    assert str(source.folder) in sentence
    assert "\n" not in sentence


class Killed(BaseException):
    """What a kill is to the code after it: nothing more is run."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the process die before its step number `step` on the disk; return the count of steps."""
    count = [0]

    def counted(real):
        def call(*args, **kwargs):
            if count[0] >= step:
                raise Killed
            count[0] += 1
            return real(*args, **kwargs)

        return call

    for place, name in [
        *((Path, name) for name in ("replace", "rename", "write_text")),
        *((building, "write_period"), (building, "write_rest"), (publish, "_sync")),
        *((pl.DataFrame, "write_parquet"), (publish.shutil, "rmtree")),
    ]:
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    return count


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "a store"])
def test_a_kill_at_any_step_leaves_the_old_store_or_the_new_one(
    tmp_path: Path, days: dict[str, list[dict]], monkeypatch: pytest.MonkeyPatch, start: str
):
    names = list(days)
    options = {"history": 2, "label": None, "negatives": 1}
    write(tmp_path / "items.csv", ITEMS)
    put(tmp_path, days, *names[:3])
    source = declare(tmp_path, **options)
    states: list[dict[str, bytes] | None] = [None]
    if start == "a store":
        source.prepare()
        states = [contents(source.folder)]
        put(tmp_path, days, names[3])
    room = tmp_path / "store"
    shutil.copytree(room, tmp_path / "backup") if room.exists() else (tmp_path / "backup").mkdir()
    source.prepare()
    states.append(contents(source.folder))
    whole = read_all(source)
    seen = set()
    for step in range(1000):
        shutil.rmtree(room)
        shutil.copytree(tmp_path / "backup", room)
        with monkeypatch.context() as patch:
            count = stop_at(step, patch)
            with suppress(Killed):
                source.prepare()
        left = Store.open(source.folder)
        seen.add(len(left.periods) if left else 0)
        if left is not None:
            assert all(
                left.read(t, *left.scale(2)).fields.equal(whole[t].rows.fields)
                for t in range(len(left.periods))
            )
            known = [len(left.vocabulary(name)) + 1 for name in left.schema.vocabularies]
            assert known == list(left.schema.vocabularies.values())
        source.prepare()
        assert contents(source.folder) == states[-1]
        assert {f.suffix for f in source.folder.parent.iterdir()} == {"", ".lock"}
        if count[0] < step:
            break
    assert step > 20
    assert seen == ({3, 4} if start == "a store" else {0, 3})


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_a_broken_growth_leaves_the_old_store_alone(
    tmp_path: Path,
    days: dict[str, list[dict]],
    monkeypatch: pytest.MonkeyPatch,
    grown,
    problem: type[BaseException],
):
    source = grown()
    before = contents(source.folder)
    put(tmp_path, days, list(days)[5])

    def broken(*rest):
        raise problem

    monkeypatch.setattr(building, "write_period", broken)
    with pytest.raises(problem):
        source.prepare()
    assert contents(source.folder) == before
    assert {f.suffix for f in source.folder.parent.iterdir()} == {"", ".lock"}


CHILD = """
import os, sys
from pathlib import Path
from incrs.data import publish
from tests.data.shop import declare

def sync(path, real=publish._sync):
    count[0] -= 1
    if not count[0]:
        os._exit(7)
    real(path)

count = [int(sys.argv[2])]
publish._sync = sync
declare(Path(sys.argv[1]), history=3, numeric=["price"]).prepare()
"""


@pytest.mark.slow
def test_a_process_that_dies_while_it_adds_a_day_is_made_good_by_the_next(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown()
    before = contents(source.folder)
    put(tmp_path, days, list(days)[5])
    for step in (1, 4, 11, 16):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(step)]
        assert subprocess.run(command, check=False).returncode == 7
        old = Store.open(source.folder)
        assert old is not None
        assert len(old.periods) == 5
        assert {name: contents(source.folder)[name] for name in before if "vocab" not in name} == {
            name: before[name] for name in before if "vocab" not in name
        }
    source.prepare()
    again = declare(tmp_path, **PLAIN, store=str(tmp_path / "once"))
    again.prepare()
    assert contents(again.folder) == contents(source.folder)


@pytest.mark.slow
def test_two_processes_that_add_the_same_day_both_end_well(
    tmp_path: Path, days: dict[str, list[dict]], grown
):
    source = grown()
    put(tmp_path, days, list(days)[5])
    command = [sys.executable, "-c", CHILD, str(tmp_path), "1000"]
    pair = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(timeout=120) for child in pair] == [0, 0]
    source.prepare()
    again = declare(tmp_path, **PLAIN, store=str(tmp_path / "once"))
    again.prepare()
    assert contents(again.folder) == contents(source.folder)
