"""The everyday use: the log gains a day, and the run that stands takes it in."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.commands import forked, run_folders

pytestmark = pytest.mark.slow

YAML = """
defaults: [log]
name: shop
path: raw
store: store
files: clicks-*.csv
time: at
label: click
scenario: page
scenarios: [home, search]
user: user
item: item
categorical: [colour]
multivalued: {{tags: "|"}}
numeric: [price]
joins: [{{file: items.csv, key: item}}]
history: 4
pretrain: 3
tune: 1
"""
WHAT = ["data=shop", "model=star", "updater=incmsr", "batch_size=100", "model.hidden=[16,8]"]


def write_day(folder: Path, day: int) -> None:
    """Write one day's file: users and items come and go, and a few rows are after midnight."""
    draw = random.Random(day)
    lines = ["at,user,item,page,click"]
    for k in range(250):
        at = day * 86400 + k * 345
        user, item = draw.randrange(5 * day, 40 + 5 * day), draw.randrange(3 * day, 30 + 3 * day)
        page = draw.choice(["home", "search", "search", "feed"])
        lines.append(f"{at},{user},{item},{page},{int(draw.random() < (item % 7) / 7)}")
    (folder / f"clicks-{day:02d}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a folder with the yaml, the side table and four days."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.yaml").write_text(YAML.format())
    raw = tmp_path / "raw"
    raw.mkdir()
    table = [f"{i},{'red' if i % 3 else 'blue'},a{i % 5}|b{i % 2},{i / 7}" for i in range(200)]
    (raw / "items.csv").write_text("\n".join(["item,colour,tags,price", *table]) + "\n")
    for day in range(3):
        write_day(raw, day)
    return tmp_path


def begin(folder: Path, *arguments: str) -> Path:
    done = forked(folder, "--config-dir", str(folder), *WHAT, *arguments)
    assert done.returncode == 0, done.stderr
    return run_folders(folder)[-1]


@pytest.mark.parametrize(
    "vocabulary", [["admission=2", "expiry=3"], []], ids=["admission", "plain"]
)
def test_a_log_fed_day_by_day_gives_the_bytes_of_one_run(vocabulary: list[str], shop: Path) -> None:
    raw = shop / "raw"
    daily = begin(shop, *vocabulary)
    assert not (daily / "results.csv").read_text().splitlines()[1:]
    for day in range(3, 6):
        write_day(raw, day)
        for old in raw.glob("clicks-*.csv"):  # unreadable, were it opened
            if old.name != f"clicks-{day:02d}.csv":
                stamp = old.stat()
                old.write_bytes(b"\xff" * stamp.st_size)
                os.utime(old, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        done = forked(shop, f"resume={daily}")
        assert done.returncode == 0, done.stderr
    for day in range(6):
        write_day(raw, day)
    whole = begin(shop, *vocabulary, "data.store=other")
    assert whole != daily
    names = sorted(str(f.relative_to(whole)) for f in whole.rglob("*") if f.is_file())
    assert names == sorted(str(f.relative_to(daily)) for f in daily.rglob("*") if f.is_file())
    for name in names:
        if name != "run.json":
            assert (daily / name).read_bytes() == (whole / name).read_bytes(), name
    scored = [t["scored"] for t in json.loads((daily / "run.json").read_text())["timings"]]
    assert scored == ["1970-01-04", "1970-01-05", "1970-01-06", ""]
    refused = forked(shop, f"resume={daily}", "seed=3")
    assert refused.returncode == 2
    assert "leave out seed=3" in refused.stderr


def test_a_resume_without_a_new_day_changes_nothing(shop: Path) -> None:
    write_day(shop / "raw", 3)
    folder = begin(shop)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "run.json"}
    done = forked(shop, f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert {f: f.read_bytes() for f in before} == before
