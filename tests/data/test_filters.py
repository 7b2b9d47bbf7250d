"""Which rows of a log count: values kept, values required, and filters by the whole log's counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from incrs.data import raw
from incrs.errors import Mistake
from tests.data.shop import declare, made_up, read_all, same, write


def filtered(rows: list[dict], filters: list[dict]) -> list[dict]:
    """The slow way."""
    for one in filters:
        column = one.get("top") or one["at_least"]
        ordered = sorted((row for row in rows if row[column]), key=lambda row: row["ts"])
        counts = Counter(row[column] for row in ordered)
        first = {row[column]: row["ts"] for row in reversed(ordered)}
        best = sorted(counts, key=lambda value: (-counts[value], first[value], value))
        kept = best[: one["n"]] if "top" in one else [v for v in best if counts[v] >= one["n"]]
        rows = [row for row in rows if row[column] in kept]
    return rows


@pytest.mark.parametrize("period", ["day", "count"])
@pytest.mark.parametrize(
    "filters",
    [
        [{"top": "user", "n": 4}, {"at_least": "item", "n": 8}],
        [{"at_least": "item", "n": 12}, {"at_least": "user", "n": 20}, {"top": "item", "n": 5}],
        [{"top": "tab", "n": 1}],
    ],
)
def test_filters_count_what_the_one_before_left(
    tmp_path: Path, filters: list[dict], period: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(raw, "BLOCK", 300)
    monkeypatch.setattr(raw, "PIECE", 900)
    rows = made_up()
    left = filtered(rows, filters)
    assert 20 < len(left) < 300
    for name, log in (("all", rows), ("left", left)):
        write(tmp_path / name / "log1.csv", log[: len(log) // 2])
        write(tmp_path / name / "log2.csv", log[len(log) // 2 :])
    options = {"period": period, "period_count": 3, "history": 2, "pretrain": 1}
    got = read_all(declare(tmp_path / "all", **options, filters=filters))
    want = read_all(declare(tmp_path / "left", **options))
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


def test_rows_with_certain_values_are_kept(tmp_path: Path):
    rows = made_up(100)
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, keep={"tab": ["x", "y"], "click": [1]}, required=["price", "user"])
    kept = [r for r in rows if r["tab"] in "xy" and r["click"] and r["price"] and r["user"]]
    got = read_all(source)
    assert 5 < sum(map(len, got)) == len(kept)
    assert torch.cat([period.rows.label for period in got]).min() == 1


def test_rows_that_are_not_kept_may_be_damaged(tmp_path: Path):
    rows = made_up(50)
    write(tmp_path / "log.csv", rows + [row | {"tab": "no", "ts": "noon"} for row in rows[:9]])
    assert sum(map(len, read_all(declare(tmp_path, keep={"tab": ["x", "y", "z"]})))) == 50


def test_a_log_with_filters_cannot_grow(tmp_path: Path):
    write(tmp_path / "log1.csv", made_up(50))
    source = declare(tmp_path, filters=[{"top": "user", "n": 3}])
    source.prepare()
    write(tmp_path / "log2.csv", [row | {"ts": row["ts"] + 10**7} for row in made_up(50)])
    with pytest.raises(Mistake, match=r"^data\.filters looks at the whole log.* by log2\.csv"):
        source.prepare()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filters": [{"best": "user", "n": 1}]}, r"data\.filters: .*top: COLUMN"),
        ({"filters": [{"top": "user", "n": 0}]}, r"data\.filters: .*from 1"),
        ({"filters": [{"top": "user", "at_least": "item", "n": 1}]}, r"data\.filters: "),
        ({"filters": [{"top": "usr", "n": 1}]}, r"data\.filters: there is no column 'usr'"),
        ({"filters": [{"at_least": "user", "n": 999}]}, r"data\.filters: .* leaves no row"),
        ({"keep": {"tab": "x"}}, r"data\.keep: tab: x must be a list"),
        ({"keep": {"tabs": ["x"]}}, r"data\.keep: there is no column 'tabs'"),
        ({"keep": {"tab": ["q"]}}, r"no row that data\.keep"),
        ({"required": ["x"]}, r"data\.required: there is no column 'x'"),
        ({"format": "xml"}, r"data\.format=xml is not one of null, csv, json, parquet"),
        ({"time_unit": "%m%d"}, r"data\.time_year"),
        ({"time_year": 2014}, r"data\.time_year"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, changes: dict, said: str):
    write(tmp_path / "log.csv", made_up(60))
    with pytest.raises(Mistake, match=said):
        declare(tmp_path, **changes).prepare()


def test_a_pattern_may_lack_the_year_and_the_first_zero(tmp_path: Path):
    days = {"829": "2014-08-29", "0830": "2014-08-30", "1111": "2014-11-11"}
    write(tmp_path / "log.csv", [row | {"ts": day} for day in days for row in made_up(3)])
    options = {"time_unit": "%m%d", "time_year": 2014, "timezone": "Asia/Shanghai", "pretrain": 1}
    assert [period.name for period in read_all(declare(tmp_path, **options))] == [*days.values()]
    write(tmp_path / "log.csv", [row | {"ts": "0229"} for row in made_up(3)])
    with pytest.raises(Mistake, match=r"data\.time: 3 values"):
        declare(tmp_path, **options, store=str(tmp_path / "other")).prepare()
