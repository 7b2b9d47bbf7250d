"""A declared log against a slow reading of it, row by row, in plain Python."""

from __future__ import annotations

import math
import random
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
import torch

from incrs.data.log import LogSource
from incrs.period import Role
from tests.data.shop import DAY, ITEMS, MIDNIGHT, OSLO, declare, made_up, read_all, same, write


def periods_of(rows: list[dict], name) -> list[list[dict]]:
    """Cut and sort the slow way."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return [sorted(groups[key], key=lambda row: row["ts"]) for key in sorted(groups)]


def oslo_day(row: dict) -> str:
    return datetime.fromtimestamp(row["ts"], OSLO).strftime("%Y-%m-%d")


def test_everything_at_once_equals_the_slow_reading(tmp_path: Path):
    rows = made_up()
    write(tmp_path / "log.csv", rows)
    write(tmp_path / "items.csv", ITEMS)
    source = declare(
        tmp_path,
        scenario="tab",
        categorical=["brand"],
        time_fields=["hour", "weekday"],
        multivalued={"genre": "|"},
        multivalued_length=3,
        numeric=["price"],
        joins=[{"file": "items.csv", "key": "item"}],
        history=4,
    )
    got = read_all(source)
    assert [p.name for p in got] == sorted({oslo_day(row) for row in rows})
    assert [p.role for p in got] == [Role.PRETRAIN] * 2 + [Role.TUNE] + [Role.TEST] * (len(got) - 3)

    table = {row["item"]: row for row in ITEMS}
    ids: dict[str, dict[str, int]] = {}

    def number(field: str, value: str) -> int:
        known = ids.setdefault(field, {})
        return known.setdefault(value, len(known) + 1) if value else 0

    expected = periods_of(rows, oslo_day)
    logs = []
    for t, period in enumerate(expected):
        for k, row in enumerate(period):
            side = table.get(row["item"], {"genre": "", "brand": ""})
            clock = datetime.fromtimestamp(row["ts"], OSLO)
            fields = {
                "user": row["user"],
                "item": row["item"],
                "brand": side["brand"],
                "hour": str(clock.hour),
                "weekday": str(clock.isoweekday()),
            }
            assert list(source.schema.fields) == list(fields)
            want = [number(field, value) for field, value in fields.items()]
            assert got[t].rows.fields[k].tolist() == want
            genres = [number("genre", part) for part in side["genre"].split("|")[:3]]
            assert got[t].rows.lists["genre"][k].tolist() == (genres + [0] * 3)[:3]
            assert source.schema.scenarios[got[t].rows.scenario[k]] == row["tab"]
            assert got[t].rows.label[k] == row["click"]
            past = [r for day in expected[: t + 1] for r in day if r["ts"] < row["ts"]]
            past = [r["item"] for r in past if r["click"] and r["user"] == row["user"] != ""]
            history = [ids["item"][item] for item in past[::-1][:4]]
            assert got[t].rows.lists["history"][k].tolist() == (history + [0] * 4)[:4]
            if row["price"]:
                x = float(row["price"])
                logs.append((t, math.copysign(math.log1p(abs(x)), x)))
            else:
                logs.append((t, None))
    assert source.schema.vocabularies == {field: len(known) + 1 for field, known in ids.items()}
    base = [x for t, x in logs if t < 2 and x is not None]
    mean = sum(base) / len(base)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in base) / len(base))
    want = torch.tensor([0.0 if x is None else (x - mean) / deviation for _, x in logs])
    torch.testing.assert_close(torch.cat([p.rows.numbers[:, 0] for p in got]), want)


def test_hours_cut_the_local_day(tmp_path: Path):
    rows = made_up()
    write(tmp_path / "log.csv", rows)
    got = read_all(declare(tmp_path, period="hours", period_hours=[0, 10, 17]))

    def name(row: dict) -> str:
        clock = datetime.fromtimestamp(row["ts"], OSLO)
        return f"{clock:%Y-%m-%d} {max(e for e in (0, 10, 17) if e <= clock.hour):02d}h"

    want = periods_of(rows, name)
    assert [p.name for p in got] == sorted({name(row) for row in rows})
    assert [p.rows.label.tolist() for p in got] == [[r["click"] for r in part] for part in want]


def test_equal_counts_split_ties_by_row_and_drop_the_remainder(tmp_path: Path):
    rows = [row | {"ts": row["ts"] // 20_000} for row in made_up(103)]  # long ties
    write(tmp_path / "log.csv", rows)
    got = read_all(declare(tmp_path, period="count", period_count=10, history=3))
    ordered = sorted(rows, key=lambda row: row["ts"])[:100]
    assert [p.name for p in got] == [str(t + 1) for t in range(10)]
    assert [len(p) for p in got] == [10] * 10
    assert torch.cat([p.rows.label for p in got]).tolist() == [row["click"] for row in ordered]
    ids = torch.cat([p.rows.fields[:, 1] for p in got]).tolist()
    for k, row in enumerate(ordered):  # a tie across the border is no past
        past = [
            ids[j]
            for j, r in enumerate(ordered)
            if r["ts"] < row["ts"] and r["click"] and r["user"] == row["user"] != ""
        ]
        assert got[k // 10].rows.lists["history"][k % 10].tolist() == (past[::-1] + [0] * 3)[:3]


def test_a_column_names_the_periods_even_when_they_overlap_in_time(tmp_path: Path):
    dice = random.Random(1)
    rows = [
        row | {"week": (row["ts"] - MIDNIGHT) // DAY * 5 + dice.randrange(9)} for row in made_up()
    ]
    write(tmp_path / "log.csv", rows)
    got = read_all(declare(tmp_path, period="column", period_column="week", history=2))
    want = periods_of(rows, lambda row: f"{row['week']:03d}")
    assert [int(p.name) for p in got] == sorted({row["week"] for row in rows})
    seen: list[tuple[dict, int]] = []
    late = 0
    for period, part in zip(got, want, strict=True):
        seen += zip(part, period.rows.fields[:, 1].tolist(), strict=True)
        seen = [s for s in seen if s[0]["click"] and s[0]["user"]]
        seen = sorted(seen, key=lambda s: s[0]["ts"])
        for k, row in enumerate(part):
            past = [s for s in seen if s[0]["ts"] < row["ts"] and s[0]["user"] == row["user"]]
            items = [item for _, item in past][::-1][:2]
            assert period.rows.lists["history"][k].tolist() == [*items, 0, 0][:2]
        kept = [s for s in seen if s[0]["ts"] >= part[0]["ts"]]  # and two before that of each user
        for user in "abcdefghij":
            before = [s for s in seen if s[0]["ts"] < part[0]["ts"] and s[0]["user"] == user]
            kept += before[-2:]
        late += len(seen) - len(kept)
        seen = kept
    assert late > 0


def test_a_day_column_overrules_the_clock(tmp_path: Path):
    rows = [row | {"date": f"202103{27 + k % 4:02d}"} for k, row in enumerate(made_up(40))]
    write(tmp_path / "log.csv", rows)
    options = {"day": "date", "day_format": "%Y%m%d", "pretrain": 1}
    got = read_all(declare(tmp_path, **options))
    assert [(p.name, len(p)) for p in got] == [(f"2021-03-{27 + k}", 10) for k in range(4)]
    got = read_all(declare(tmp_path, **options, start="2021-03-28", end="2021-03-30"))
    assert [p.name for p in got] == ["2021-03-28", "2021-03-29", "2021-03-30"]


@pytest.mark.parametrize("choice", ["seen", "all"])
def test_negatives_are_new_to_the_user_and_known_by_then(tmp_path: Path, choice: str):
    rows = made_up(150)
    write(tmp_path / "log.csv", rows)
    write(tmp_path / "items.csv", ITEMS)
    options = {
        "label": None,
        "negatives": 3,
        "negatives_from": choice,
        "scenario": "tab",
        "multivalued": {"genre": "|"},
        "joins": [{"file": "items.csv", "key": "item", "columns": ["genre"]}],
        "history": 2,
    }
    source = declare(tmp_path, **options)
    got = read_all(source)
    again = read_all(declare(tmp_path, **options, store=str(tmp_path / "again")))
    assert all(same(a, b) for a, b in zip(got, again, strict=True))
    items = vocabulary(source, "item")
    genres = vocabulary(source, "genre")
    table = {row["item"]: row["genre"] for row in ITEMS}
    every = {row["item"] for row in rows}
    drawn = set()
    for period, part in zip(got, periods_of(rows, oslo_day), strict=True):
        starts = torch.nonzero(period.rows.label).flatten().tolist()
        assert len(starts) == len(part)
        for row, at, end in zip(part, starts, [*starts[1:], len(period)], strict=True):
            known = {r["item"] for r in rows if r["ts"] <= row["ts"]} if choice == "seen" else every
            own = {r["item"] for r in rows if r["ts"] <= row["ts"] and r["user"] == row["user"]}
            allowed = known - own if row["user"] else known
            assert end - at == (4 if allowed else 1)
            for k in range(at, end):
                item = items[period.rows.fields[k, 1]]
                assert item == row["item"] if k == at else item in allowed
                have = [genres[i] for i in period.rows.lists["genre"][k].tolist() if i]
                assert have == (table[item].split("|") if item in table else [])
                assert period.rows.fields[k, 0] == period.rows.fields[at, 0]
                assert period.rows.scenario[k] == period.rows.scenario[at]
                history = period.rows.lists["history"]
                assert torch.equal(history[k], history[at])
            drawn |= {int(i) for i in period.rows.fields[at + 1 : end, 1]}
    assert len(drawn) > 15
    other = read_all(declare(tmp_path, **(options | {"negatives_seed": 1})))
    assert not all(same(a, b) for a, b in zip(got, other, strict=True))


def test_the_last_free_item_is_found(tmp_path: Path):
    """A user who took all but one of many items gets that one; one who took all gets none."""
    rows = [{"ts": DAY * (k % 2) + k, "user": "a", "item": f"i{k}"} for k in range(200)]
    rows += [{"ts": 1, "user": "b", "item": "last"}, {"ts": 3 * DAY, "user": "a", "item": "last"}]
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, label=None, negatives=2, negatives_from="all", pretrain=1)
    got = read_all(source)
    items = vocabulary(source, "item")
    late = got[1].rows.fields[-2:, 1].tolist()
    assert [items[i] for i in late] == ["last", "last"]
    assert got[2].rows.label.tolist() == [1]


def vocabulary(source: LogSource, name: str) -> list[str | None]:
    return [None, *pl.read_parquet(source.folder / "vocab" / f"{name}.parquet")["value"]]


def test_scenarios_are_kept_in_order_or_pooled(tmp_path: Path):
    rows = made_up(60)
    write(tmp_path / "log.csv", rows)
    kept = declare(tmp_path, scenario="tab", scenarios=["z", "x"])
    count = sum(len(p) for p in read_all(kept))
    assert kept.schema.scenarios == ["z", "x"]
    assert count == sum(row["tab"] in "zx" for row in rows)
    pooled = declare(tmp_path, scenario="tab", scenarios=["y"], scenario_rest="pool")
    got = torch.cat([p.rows.scenario for p in read_all(pooled)])
    assert pooled.schema.scenarios == ["y", "other"]
    assert len(got) == 60
    assert int((got == 0).sum()) == sum(row["tab"] == "y" for row in rows)


def test_later_rows_change_nothing_before_them(tmp_path: Path):
    rows = made_up()
    border = MIDNIGHT + 3 * DAY
    changed = [
        row
        if row["ts"] < border
        else row
        | {"user": f"u{k % 7}", "item": f"j{k % 9}", "price": "9", "tab": "w", "click": k % 2}
        for k, row in enumerate(rows)
    ]
    options = {"numeric": ["price"], "history": 3, "time_fields": ["hour"], "scenario": "tab"}
    positives = {"label": None, "negatives": 2}
    for k, more in enumerate((options, options | positives)):
        stores = []
        for side, log in (("before", rows), ("after", changed)):
            write(tmp_path / f"{side}{k}" / "log.csv", log)
            stores.append(declare(tmp_path / f"{side}{k}", **more))
        before, after = map(read_all, stores)
        assert [same(a, b) for a, b in zip(before[:3], after[:3], strict=True)] == [True] * 3
        assert not same(before[4], after[4])
        assert stores[0].schema.vocabularies != stores[1].schema.vocabularies
        assert stores[0].fingerprint != stores[1].fingerprint


def test_parquet_gzip_and_parts_equal_one_csv(tmp_path: Path):
    rows = sorted(made_up(80), key=lambda row: row["ts"])
    write(tmp_path / "a" / "log.csv", rows)
    frame = pl.read_csv(tmp_path / "a" / "log.csv")
    for name in "bcd":
        (tmp_path / name).mkdir()
    frame.write_parquet(tmp_path / "b" / "log.parquet")
    frame[:33].write_csv(tmp_path / "c" / "log1.csv", compression="gzip", check_extension=False)
    (tmp_path / "c" / "log1.csv").rename(tmp_path / "c" / "log1.csv.gz")
    frame[33:].write_parquet(tmp_path / "c" / "log2.parquet")
    clock = pl.from_epoch("ts").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Oslo")
    frame.with_columns(clock, pl.col("click").cast(pl.Boolean)).write_parquet(
        tmp_path / "d" / "log.parquet"
    )
    sources = [declare(tmp_path / name, numeric=["price"]) for name in "abcd"]
    first, *others = map(read_all, sources)
    for other in others:
        assert all(same(a, b) for a, b in zip(first, other, strict=True))
    assert len({source.fingerprint for source in sources}) == 1


@pytest.mark.parametrize(
    ("unit", "spell"),
    [
        ("s", lambda t: f"{t}.0"),
        ("ms", lambda t: t * 1000),
        ("us", lambda t: t * 10**6),
        ("ns", lambda t: t * 10**9),
        ("iso", lambda t: datetime.fromtimestamp(t, OSLO).isoformat()),
        ("iso", lambda t: f"{datetime.fromtimestamp(t, ZoneInfo('UTC')):%Y-%m-%d %H:%M:%S.000Z}"),
        (
            "%d/%m/%Y %H:%M:%S %z",
            lambda t: f"{datetime.fromtimestamp(t, OSLO):%d/%m/%Y %H:%M:%S %z}",
        ),
    ],
)
def test_every_spelling_of_time_reads_the_same(tmp_path: Path, unit: str, spell):
    rows = made_up(60)
    write(tmp_path / "a" / "log.csv", rows)
    write(tmp_path / "b" / "log.csv", [row | {"ts": spell(row["ts"])} for row in rows])
    plain = read_all(declare(tmp_path / "a", time_fields=["hour"]))
    spelt = read_all(declare(tmp_path / "b", time_fields=["hour"], time_unit=unit))
    assert all(same(a, b) for a, b in zip(plain, spelt, strict=True))


def test_local_times_that_the_clocks_skip_or_repeat_are_read(tmp_path: Path):
    times = ["2021-03-28 01:30:00", "2021-03-28 02:30:00", "2021-03-28 03:30:00"]
    times += ["2021-10-31 02:30:00", "2021-10-31 03:30:00", "2021-11-01"]
    rows = [{"ts": x, "user": "a", "item": f"{k}", "click": 1} for k, x in enumerate(times)]
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, time_unit="iso", pretrain=1, tune=0)
    source.prepare()
    got = pl.read_parquet(source.folder / "period=*" / "*.parquet", hive_partitioning=True)
    clock = got["time"].dt.convert_time_zone("UTC").dt.strftime("%m-%d %H:%M").to_list()
    assert clock[:3] == ["03-28 00:30", "03-28 01:30", "03-28 01:30"]
    assert clock[3:] == ["10-31 00:30", "10-31 02:30", "10-31 23:00"]


def test_a_threshold_makes_labels_and_a_prefix_is_of_ids_known_by_then(tmp_path: Path):
    rows = [row | {"stars": k % 10 / 2} for k, row in enumerate(made_up(90))]
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, label="stars", label_threshold=4)
    got = read_all(source)
    want = [float(r["stars"] >= 4) for part in periods_of(rows, oslo_day) for r in part]
    assert torch.cat([p.rows.label for p in got]).tolist() == want
    items = pl.read_parquet(source.folder / "vocab" / "item.parquet")
    most = 0
    for t, period in enumerate(got):
        ids = period.rows.fields[:, 1]
        assert set(range(most + 1, int(ids.max()) + 1)) <= set(ids.tolist())
        fresh = items.filter(pl.col("first_period") == t)["id"].to_list()
        assert fresh == list(range(most + 1, max(most, int(ids.max())) + 1))
        most = max(most, int(ids.max()))
    assert items.columns == ["value", "id", "first_period"]
