"""Tables that say which rows there are, or are a file's own; files without a header; rows without a time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from incrs.errors import Mistake
from tests.data.shop import DAY, ITEMS, MIDNIGHT, declare, made_up, read_all, same, write

BRAND = {row["item"]: row["brand"] for row in ITEMS}
JOIN = {"file": "items.csv", "key": "item"}


def shop(folder: Path, rows: list[dict]) -> None:
    write(folder / "log.csv", rows)
    write(folder / "items.csv", ITEMS)


def wide(rows: list[dict]) -> list[dict]:
    """The rows as they would be with the table's brand in them."""
    return [row | {"brand": BRAND.get(row["item"], "")} for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {"scenario": "brand", "scenarios": ["b2", "b0"]},
        {"scenario": "brand"},
        {"scenario": "brand", "scenarios": ["b2"], "scenario_rest": "pool"},
        {"keep": {"brand": ["b0", "b1"]}},
        {"required": ["brand"]},
        {"filters": [{"top": "brand", "n": 2}]},
        {"period": "column", "period_column": "brand"},
        {"scenario": "brand", "scenarios": ["b2", "b0"], "keep": {"brand": ["b0", "b2"]}},
    ],
)
def test_a_joined_column_may_say_which_rows_there_are(tmp_path: Path, options: dict):
    rows, field = made_up(120), "scenario" in options  # it may be a field, too
    shop(tmp_path / "a", rows)
    write(tmp_path / "b" / "log.csv", wide(rows))
    options = (
        options | {"history": 2, "pretrain": 1} | ({"categorical": ["brand"]} if field else {})
    )
    joined = declare(tmp_path / "a", joins=[JOIN], **options)
    plain = declare(tmp_path / "b", **options)
    pairs = zip(read_all(joined), read_all(plain), strict=True)
    assert all(same(a, b) and a.name == b.name for a, b in pairs)
    assert joined.schema.scenarios == plain.schema.scenarios
    assert list(joined.schema.fields) == ["user", "item", *(["brand"] if field else [])]
    assert joined.schema.of_item == (["brand"] if field else [])


def test_a_column_of_the_log_itself_comes_before_a_tables(tmp_path: Path):
    rows = made_up(120)
    write(tmp_path / "a" / "log.csv", rows)
    write(tmp_path / "a" / "items.csv", [row | {"tab": "x"} for row in ITEMS])
    options = {"scenario": "tab", "required": ["tab"], "keep": {"tab": ["x", "y"]}}
    options |= {"categorical": ["brand"]}
    joined = read_all(declare(tmp_path / "a", joins=[JOIN], **options))
    write(tmp_path / "b" / "log.csv", wide(rows))
    plain = read_all(declare(tmp_path / "b", **options))
    assert all(same(a, b) for a, b in zip(joined, plain, strict=True))


def test_a_sampled_negative_has_its_own_item_and_its_positives_scenario(tmp_path: Path):
    shop(tmp_path, made_up(200))
    options = {"scenario": "brand", "categorical": ["brand"], "label": None, "negatives": 1}
    source = declare(tmp_path, joins=[JOIN], **options)
    wrong = 0
    items, brands = [], []
    for period in read_all(source):
        items = items or [
            None,
            *pl.read_parquet(source.folder / "vocab" / "item.parquet")["value"],
        ]
        brands = brands or [
            None,
            *pl.read_parquet(source.folder / "vocab" / "brand.parquet")["value"],
        ]
        for row, scenario, label in zip(
            period.rows.fields.tolist(), period.rows.scenario, period.rows.label, strict=True
        ):
            assert brands[row[2]] == (BRAND.get(items[row[1]]) or None)
            if label:
                assert brands[row[2]] == source.schema.scenarios[int(scenario)]
            else:
                wrong += brands[row[2]] != source.schema.scenarios[int(scenario)]
    assert wrong


def test_a_log_grows_with_its_tables(tmp_path: Path):
    rows = sorted(made_up(200), key=lambda row: row["ts"])
    days = [rows[:90], rows[90:]]
    cut = days[1][0]["ts"]
    days = [[r for r in rows if r["ts"] // 86400 < cut // 86400], []]
    days[1] = [r for r in rows if r not in days[0]]
    options = {"scenario": "brand", "scenarios": ["b0", "b1"], "timezone": "UTC", "joins": [JOIN]}
    write(tmp_path / "items.csv", ITEMS)
    write(tmp_path / "log1.csv", days[0])
    first = read_all(declare(tmp_path, **options))
    write(tmp_path / "log2.csv", days[1])
    grown = read_all(declare(tmp_path, **options))
    assert len(grown) > len(first)
    whole = read_all(declare(tmp_path, **options, store=str(tmp_path / "anew")))
    assert all(same(a, b) for a, b in zip(grown, whole, strict=True))


PAIR = {"file": {"log_": "users_"}, "key": "user", "columns": ["age"], "header": ["user", "age"]}


def towns(folder: Path, rows: list[dict], ages: dict[str, dict[str, str]]) -> list[dict]:
    """Write half of the rows for each town, with its own users; return them as one wide log."""
    told = []
    for k, (town, known) in enumerate(ages.items()):
        part = rows[k::2]
        write(folder / f"log_{town}.csv", part)
        lines = "".join(f"{user},{age}\n" for user, age in known.items())
        (folder / f"users_{town}.csv").write_text(lines)
        told += [row | {"age": known.get(row["user"], "")} for row in part]
    return told


AGES = {"bergen": {"a": "30", "b": "30.0", "c": ""}, "oslo": {"a": "41", "d": "30"}}


@pytest.mark.parametrize("options", [{}, {"missing": "0"}, {"scenario": "age"}, {"files": "*.csv"}])
def test_each_file_may_have_a_table_of_its_own(tmp_path: Path, options: dict):
    rows = towns(tmp_path / "a", made_up(160), AGES)
    options = {"categorical": ["age", "price"]} | options
    read = read_all(declare(tmp_path / "a", joins=[PAIR], **({"files": "log_*.csv"} | options)))
    if options.get("missing"):
        rows = [row | {k: row[k] or "0" for k in ("age", "price")} for row in rows]
    write(tmp_path / "b" / "log.csv", rows)
    plain = read_all(declare(tmp_path / "b", **(options | {"files": "log.csv", "missing": None})))
    assert all(same(a, b) for a, b in zip(read, plain, strict=True))


def test_a_log_grows_by_files_with_their_own_tables(tmp_path: Path):
    rows = made_up(160)
    border = MIDNIGHT + 3 * DAY - 3600  # the clocks went forward
    days = [[row for row in rows if (row["ts"] < border) == early] for early in (True, False)]
    ages = {"1": {"a": "30", "b": "41"}, "2": {"a": "41", "c": "7"}}
    options = {"categorical": ["age"], "scenario": "tab", "joins": [PAIR], "files": "log_*.csv"}
    told = []
    for (name, known), part in zip(ages.items(), days, strict=True):
        write(tmp_path / f"log_{name}.csv", part)
        lines = "".join(f"{user},{age}\n" for user, age in known.items())
        (tmp_path / f"users_{name}.csv").write_text(lines)
        told += [row | {"age": known.get(row["user"], "")} for row in part]
        grown = read_all(declare(tmp_path, **options))
    write(tmp_path / "b" / "log.csv", told)
    plain = declare(tmp_path / "b", categorical=["age"], scenario="tab")
    assert all(same(a, b) for a, b in zip(grown, read_all(plain), strict=True))
    for kind in ("log", "users"):
        (tmp_path / f"{kind}_1.csv").unlink()
    assert len(read_all(declare(tmp_path, **options))) == len(grown)
    (tmp_path / "users_2.csv").write_text("a,3\n")
    with pytest.raises(Mistake, match=r"users_2\.csv changed since it was prepared"):
        declare(tmp_path, **options).prepare()


def test_columns_of_a_table_beside_each_file_can_be_the_items(tmp_path: Path):
    ages = {"bergen": {"i1": "x", "i2": "y"}, "oslo": {"i1": "z", "i3": "x"}}
    rows = [row | {"user": row["user"] or "k"} for row in made_up(160)]
    renamed = [row | {"item": row["user"], "user": row["item"]} for row in rows]
    pair = {"file": {"log_": "users_"}, "key": "user", "header": ["user", "age"]}
    wide_rows = towns(tmp_path / "a", renamed, ages)
    write(tmp_path / "b" / "log.csv", wide_rows)
    options = {"categorical": ["age"], "item": "user", "user": "item", "item_columns": ["age"]}
    options |= {"label": None, "negatives": 1, "history": 2, "history_of": ["age"]}
    read = read_all(declare(tmp_path / "a", joins=[pair], **options, files="log_*"))
    plain = read_all(declare(tmp_path / "b", **options))
    assert all(same(a, b) for a, b in zip(read, plain, strict=True))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_file_without_a_header_is_the_same_log(
    tmp_path: Path, start: bytes, monkeypatch: pytest.MonkeyPatch
):
    rows = [row | {"user": f'{row["user"]}, "the\nfirst"'} for row in made_up(90)]
    write(tmp_path / "a" / "log.csv", rows)
    header, _, lines = (tmp_path / "a" / "log.csv").read_bytes().partition(b"\r\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.csv").write_bytes(start + lines)
    names = {"files": "*.csv", "header": header.decode().split(",")}
    options = {"numeric": ["price"], "scenario": "tab"}
    plain = read_all(declare(tmp_path / "a", **options))
    monkeypatch.setattr("incrs.data.raw.BLOCK", 41)
    monkeypatch.setattr("incrs.data.raw.PIECE", 300)
    read = read_all(declare(tmp_path / "b", file_columns=[names], **options))
    assert all(same(a, b) for a, b in zip(plain, read, strict=True))
    (tmp_path / "b" / "log.csv").write_bytes(lines[:-4])
    with pytest.raises(Mistake, match=r"log\.csv cannot be read: it breaks off"):
        declare(tmp_path / "b", file_columns=[names], scenario="tab", label="price").prepare()


def test_a_log_without_times_is_drawn_into_its_periods(tmp_path: Path):
    rows = made_up(100)
    write(tmp_path / "log.csv", rows)
    options = {"time": None, "period": "random", "period_shares": [0.5, 0.25, 0.25], "pretrain": 1}
    options |= {"scenario": "tab", "scenarios": ["x", "y", "z"], "numeric": ["price"]}
    found = read_all(declare(tmp_path, **options))
    assert [p.name for p in found] == ["1", "2", "3"]
    for s, name in enumerate("xyz"):
        n = sum(row["tab"] == name for row in rows)
        held = [int((p.rows.scenario == s).sum()) for p in found]
        assert sum(held) == n
        assert all(abs(a - n * b) <= 1 for a, b in zip(held, (0.5, 0.25, 0.25), strict=True))
    again = read_all(declare(tmp_path, **options, store=str(tmp_path / "again")))
    assert all(same(a, b) for a, b in zip(found, again, strict=True))
    other = read_all(declare(tmp_path, **options, period_seed=1))
    assert not all(same(a, b) for a, b in zip(found, other, strict=True))
    write(tmp_path / "log2.csv", rows)
    with pytest.raises(Mistake, match=r"data\.period=random looks at the whole log"):
        declare(tmp_path, **options).prepare()


def test_a_log_without_times_may_name_its_periods(tmp_path: Path):
    write(tmp_path / "log.csv", made_up(60))
    source = declare(tmp_path, time=None, period="column", period_column="tab", pretrain=1)
    assert [p.name for p in read_all(source)] == ["x", "y", "z"]
