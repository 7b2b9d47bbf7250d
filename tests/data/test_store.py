"""The prepared store: whole or absent, reused until a file changes, readable by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from incrs.data import build as building
from incrs.data.log import LogSource
from incrs.errors import Mistake
from incrs.period import Stored
from tests.data.shop import declare, made_up, read_all, same, write

CHILD = """
import os, signal, sys
from incrs.data import build
from tests.data.shop import declare
from pathlib import Path

def stop(folder, t, *rest):
    if t == 2 and sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return write_period(folder, t, *rest)

write_period, build.write_period = build.write_period, stop
source = declare(Path(sys.argv[1]))
source.prepare()
print(source.fingerprint)
"""


def files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write(tmp_path / "log.csv", made_up(120))
    return tmp_path


def test_a_second_preparation_reuses_the_first(shop: Path, monkeypatch: pytest.MonkeyPatch):
    first = declare(shop, numeric=["price"])
    before = read_all(first)
    monkeypatch.setattr(building, "write_period", None)  # would fail if called
    second = declare(shop, numeric=["price"], tune=2, help="other words")
    assert all(same(a, b) for a, b in zip(before, read_all(second), strict=True))
    assert first.folder == second.folder
    assert first.fingerprint == second.fingerprint


def test_the_fingerprint_is_of_content_not_of_place(shop: Path, tmp_path: Path):
    write(tmp_path / "elsewhere" / "log_renamed.csv", made_up(120))
    write(tmp_path / "changed" / "log.csv", [*made_up(120)[:-1], made_up(121)[-1]])
    options = {"numeric": ["price"]}
    folders = (shop, tmp_path / "elsewhere", tmp_path / "changed")
    sources = [declare(folder, **options) for folder in folders]
    sources += [declare(shop, **options, store=str(tmp_path / "again"))]
    sources += [declare(shop, **options, pretrain=3)]  # another standardisation
    for source in sources:
        source.prepare()
    here, there, changed, again, longer = (source.fingerprint for source in sources)
    assert here == there == again
    assert len({here, changed, longer}) == 3


def test_a_store_made_twice_is_the_same_bytes(shop: Path, tmp_path: Path):
    one, two = (declare(shop, history=3, store=str(tmp_path / name)) for name in ("s1", "s2"))
    one.prepare()
    two.prepare()
    a, b = files_below(one.folder), files_below(two.folder)
    assert [f.relative_to(one.folder) for f in a] == [f.relative_to(two.folder) for f in b]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_a_broken_preparation_leaves_nothing(
    shop: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]
):
    def broken(folder: Path, t: int, *rest):
        if t == 1:
            raise problem
        return whole(folder, t, *rest)

    whole = building.write_period
    monkeypatch.setattr(building, "write_period", broken)
    with pytest.raises(problem):
        declare(shop).prepare()
    assert files_below(shop / "store") == []
    monkeypatch.undo()
    assert sum(map(len, read_all(declare(shop)))) == 120


def test_what_a_killed_preparation_left_is_cleaned_by_the_next(shop: Path):
    command = [sys.executable, "-c", CHILD, str(shop), "killed"]
    assert subprocess.run(command, check=False).returncode == -9
    left = [f for f in (shop / "store" / "shop").iterdir() if f.suffix == ".tmp"]
    assert len(left) == 1
    source = declare(shop)
    assert sum(map(len, read_all(source))) == 120
    assert not left[0].exists()


@pytest.mark.slow
def test_two_processes_at_once_both_end_well(shop: Path):
    command = [sys.executable, "-c", CHILD, str(shop), "whole"]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    prints = [child.communicate(timeout=120)[0] for child in pair]
    assert [child.returncode for child in pair] == [0, 0]
    source = declare(shop)
    source.prepare()
    assert prints == [f"{source.fingerprint}\n"] * 2


def test_a_store_is_plain_parquet_and_json(shop: Path):
    source = declare(shop, numeric=["price"], history=2, scenario="tab")
    got = read_all(source)
    manifest = json.loads((source.folder / "manifest.json").read_text())
    assert [p["rows"] for p in manifest["periods"]] == [len(p) for p in got]
    assert [p["positives"] for p in manifest["periods"]] == [int(p.rows.label.sum()) for p in got]
    assert [p["name"] for p in manifest["periods"]] == [p.name for p in got]
    last = manifest["periods"][-1]["known"]
    assert last == source.schema.vocabularies
    rows = pl.read_parquet(source.folder / "period=*" / "*.parquet", hive_partitioning=True)
    assert rows["period"].unique().sort().to_list() == list(range(len(got)))
    assert rows["time"].is_sorted()
    assert rows["field.user"].to_list() == torch.cat([p.rows.fields[:, 0] for p in got]).tolist()


def test_tensors_are_packed_and_their_own(shop: Path):
    source = declare(shop, numeric=["price"], history=2)
    source.prepare()
    rows = source.read(0).rows
    kinds = [rows.fields.dtype, rows.lists["history"].dtype, rows.numbers.dtype]
    assert kinds == [torch.int32, torch.int32, torch.float32]
    assert (rows.scenario.dtype, rows.label.dtype) == (torch.int64, torch.float32)
    for tensor in (rows.fields, rows.numbers, *rows.lists.values()):
        assert tensor.is_contiguous()
        tensor.add_(1)  # writable, and nobody else's
    assert torch.equal(source.read(0).rows.fields + 1, rows.fields)


def test_numbers_without_a_spread_or_a_value_become_zero(tmp_path: Path):
    rows = [row | {"same": 5.1, "none": "", "huge": 1e18 + k} for k, row in enumerate(made_up(60))]
    write(tmp_path / "log.csv", rows)
    source: LogSource = declare(
        tmp_path, numeric=["same", "none", "huge"], numeric_transform="none"
    )
    for period in read_all(source):
        assert period.rows.numbers[:, :2].abs().max() < 1e-12
        assert period.rows.numbers.isfinite().all()


def test_periods_of_more_rows_than_memory_stay_on_disk_and_read_the_same(shop: Path):
    options = {"numeric": ["price"], "history": 2, "scenario": "tab"}
    whole = read_all(declare(shop, **options))
    parted = read_all(declare(shop, **options, memory_rows=17))
    on_disk = [isinstance(period.content, Stored) for period in parted]
    assert on_disk == [len(period) > 17 for period in whole]
    assert any(on_disk)
    assert all(map(same, whole, parted))
    for period in parted:
        if isinstance(period.content, Stored):
            assert [len(part.label) for part in period.parts()] == list(period.content.sizes)
    with pytest.raises(Mistake, match=r"data\.memory_rows=0"):
        declare(shop, memory_rows=0).prepare()
