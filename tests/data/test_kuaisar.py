"""KuaiSAR as its owners lay it out: two files that call the same things by other names."""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from incrs.errors import Mistake
from incrs.period import Role
from tests.data.shop import declare, made_up, read_all, write
from tests.data.test_declared import load

REC = (
    "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,"
    "search_item_related"
)
SRC = (
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,"
    "item_id,click_cnt,item_type"
)


def moment(day: int, minute: int) -> int:
    start = datetime(2023, 5, 20 + day, tzinfo=ZoneInfo("Asia/Shanghai"))
    return int(start.timestamp() * 1000) + 60_000 * minute


def kuaisar(folder: Path) -> list[dict]:
    """Write eleven days, of which the first two and the last do not count; return their rows as read."""
    dice, rec, src, told = random.Random(0), [], [], []
    for k in range(360):
        day, minute, user = dice.randrange(11), 4 * k, dice.randrange(6)
        item, search = dice.randrange(15), dice.random() < 0.3
        when, row = moment(day, minute), {}
        if search:
            clicks = dice.choice([0, 0, 1, 3])
            row = {"user_id": user, "item_id": item, "click_cnt": clicks}
            src.append(
                dict.fromkeys(SRC.split(","), "x") | row | {"search_session_timestamp": when}
            )
            did = [int(clicks > 0), 0, 0, 0]
        else:
            did = [dice.randrange(2) for _ in range(4)]
            flags = dict(zip(("click", "follow", "like", "forward"), did, strict=True))
            row = {"user_id": user, "item_id": item, **flags, "timestamp": when}
            rec.append(dict.fromkeys(REC.split(","), 0) | row)
        told.append(
            {"day": day, "when": when, "user": user, "item": item, "did": did, "in": search}
        )
    write(folder / "rec_inter.csv", rec)
    write(folder / "src_inter.csv", src)
    return sorted((row for row in told if 2 <= row["day"] <= 9), key=lambda row: row["when"])


def test_both_files_are_one_log_of_two_scenarios(tmp_path: Path):
    expected = kuaisar(tmp_path)
    source = load("kuaisar", f"path={tmp_path}", f"store={tmp_path / 's'}")
    periods = read_all(source)
    assert [p.name for p in periods] == [f"2023-05-{d}" for d in range(22, 30)]
    assert [p.role for p in periods] == [Role.PRETRAIN] * 7 + [Role.TEST]
    assert list(source.schema.scenarios) == ["recommendation", "search"]
    assert source.schema.behaviours == ["click", "follow", "like", "forward"]
    ids = {
        name: [None, *pl.read_parquet(source.folder / "vocab" / f"{name}.parquet")["value"]]
        for name in ("user_id", "item_id")
    }
    past: dict[int, list[dict]] = {}
    rows = iter(expected)
    for period in periods:
        lists = period.rows.lists
        for k in range(len(period)):
            row = next(rows)
            user, item = period.rows.fields[k].tolist()
            assert (ids["user_id"][user], ids["item_id"][item]) == (
                str(row["user"]),
                str(row["item"]),
            )
            assert int(period.rows.scenario[k]) == row["in"]
            assert int(period.rows.label[k]) == row["did"][0]
            assert period.rows.outcome[k].tolist() == row["did"]
            mine = past.setdefault(row["user"], [])
            newest = mine[::-1][:20]
            where = lists["history.scenario"][k, : len(newest)].tolist()
            assert where == [1 + one["in"] for one in newest]
            bits = lists["history.behaviour"][k, : len(newest)].tolist()
            did = [1 + sum(b << i for i, b in enumerate(one["did"])) for one in newest]
            assert bits == did
            assert not lists["history"][k, len(newest) :].any()
            if row["did"][0]:
                mine.append(row)
    assert next(rows, None) is None


def test_a_file_that_is_missing_names_the_page(tmp_path: Path):
    kuaisar(tmp_path)
    (tmp_path / "src_inter.csv").unlink()
    source = load("kuaisar", f"path={tmp_path}", f"store={tmp_path / 's'}")
    with pytest.raises(
        Mistake, match=r"matches 'src_inter\.csv'.*https://zenodo\.org/records/8181109"
    ):
        source.prepare()


def test_users_are_drawn_by_their_names_alone(tmp_path: Path):
    found = []
    for name, rows in (("all", made_up()), ("half", made_up()[::2])):
        write(tmp_path / name / "log.csv", rows)
        source = declare(tmp_path / name, filters=[{"sample": "user", "n": 4}])
        read_all(source)
        found.append(set(pl.read_parquet(source.folder / "vocab" / "user.parquet")["value"]))
    assert found[0] == found[1]
    assert len(found[0]) == 4


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"columns": {"ts": "when"}}], "data.file_columns: .* must have `files`"),
        ([{"files": "*.csv", "values": ["tab"]}], "data.file_columns"),
        ([{"files": "*.csv", "columns": {"nowhere": "absent"}}], None),
        (
            [{"files": "*.csv", "columns": {"tab": "absent"}}],
            "there is no column 'absent' in log.csv to be read as 'tab'",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, entries: list, said: str | None):
    write(tmp_path / "log.csv", made_up(60))
    source = declare(tmp_path, scenario="tab", file_columns=entries)
    if said is None:
        source.prepare()
        return
    with pytest.raises(Mistake, match=said):
        source.prepare()
