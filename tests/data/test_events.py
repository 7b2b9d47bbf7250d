"""What the history says of its steps, and what became of the row itself; by a slow reading."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from incrs.data.log import LogSource
from incrs.errors import Mistake
from tests.data.shop import declare, made_up, read_all, same, write
from tests.data.test_growing import by_day, contents, put

EVENTS = {
    "scenario": "tab",
    "scenarios": ["x", "y", "z"],
    "history": 4,
    "history_events": True,
    "behaviours": ["click", "like", "shares"],
}


def rows_of(n: int = 300) -> list[dict]:
    dice = random.Random(1)
    more = [{"like": dice.randrange(2), "shares": dice.choice(["", 0, 0, 3])} for _ in range(n)]
    return [row | some for row, some in zip(made_up(n), more, strict=True)]


def steps(source: LogSource, rows: list[dict]) -> list[dict]:
    """Return the rows in the order of the store, as that sorts them."""
    kept = [row for row in rows if row["tab"] in (source.scenarios or "xyz")]
    return sorted(kept, key=lambda row: row["ts"])


def test_a_history_says_where_each_step_was_and_what_the_user_did(tmp_path: Path):
    rows = rows_of()
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, **EVENTS)
    read = read_all(source)
    assert source.schema.behaviours == ["click", "like", "shares"]
    assert source.schema.vocabularies["history.scenario"] == 4
    assert source.schema.vocabularies["history.behaviour"] == 9
    ordered, item = steps(source, rows), source._store.vocabulary("item")["value"].to_list()
    at, held = 0, 0
    for period in read:
        for k in range(len(period)):
            row = ordered[at]
            flags = [int(bool(row[name] or 0)) for name in EVENTS["behaviours"]]
            assert period.rows.outcome[k].tolist() == flags
            past = [
                one
                for one in ordered
                if one["user"] and one["user"] == row["user"] and one["ts"] < row["ts"]
            ]
            past = [one for one in past if one["click"]][::-1][:4]
            lists = {name: ids[k].tolist() for name, ids in period.rows.lists.items()}
            names = [item[i - 1] if i else None for i in lists["history"]]
            assert names == [one["item"] for one in past] + [None] * (4 - len(past))
            where = ["xyz".index(one["tab"]) + 1 for one in past]
            assert lists["history.scenario"] == where + [0] * (4 - len(past))
            did = [
                1 + one["click"] + 2 * one["like"] + 4 * bool(one["shares"] or 0) for one in past
            ]
            assert lists["history.behaviour"] == did + [0] * (4 - len(past))
            at, held = at + 1, held + len(past)
    assert at == len(ordered)
    assert held > 100


def test_days_that_are_added_give_the_store_made_at_once(tmp_path: Path):
    days = by_day(rows_of(200))
    grown = declare(tmp_path, **EVENTS, store=str(tmp_path / "grown"))
    put(tmp_path, days, *list(days)[:2])
    for name in list(days)[2:]:
        grown.prepare()
        put(tmp_path, days, name)
    once = declare(tmp_path, **EVENTS, store=str(tmp_path / "once"))
    both = read_all(grown), read_all(once)
    assert all(same(a, b) for a, b in zip(*both, strict=True))
    assert all(torch.equal(a.rows.outcome, b.rows.outcome) for a, b in zip(*both, strict=True))
    assert contents(grown.folder) == contents(once.folder)


def test_a_later_outcome_changes_no_earlier_history(tmp_path: Path):
    found = []
    for like in (0, 1):
        rows = rows_of(150)
        for row in sorted(rows, key=lambda row: row["ts"])[100:]:
            row["like"], row["tab"] = like, "xz"[like]
        folder = tmp_path / str(like)
        folder.mkdir()
        write(folder / "log.csv", rows)
        found.append(
            torch.cat(
                [p.rows.lists["history.behaviour"] for p in read_all(declare(folder, **EVENTS))]
            )
        )
    assert torch.equal(found[0][:101], found[1][:101])
    assert not torch.equal(found[0], found[1])


def test_sampled_negatives_did_nothing_and_have_their_positives_past(tmp_path: Path):
    write(tmp_path / "log.csv", rows_of(200))
    source = declare(tmp_path, **EVENTS, label=None, negatives=1)
    for period in read_all(source):
        rows = period.rows
        assert not rows.outcome[rows.label == 0].any()
        assert torch.equal(rows.lists["history.scenario"] > 0, rows.lists["history"] > 0)


def test_a_log_without_them_keeps_its_store_and_its_schema_file(tmp_path: Path):
    write(tmp_path / "log.csv", rows_of(60))
    plain, other = declare(tmp_path, history=2), declare(tmp_path, history=2, behaviours=["like"])
    for source in (plain, other):
        source.prepare()
    assert plain.folder != other.folder
    assert "behaviours" not in json.loads((plain.folder / "schema.json").read_text())
    assert plain.read(0).rows.outcome is None
    assert plain.schema.behaviours == ()
    assert other.read(0).rows.outcome.shape[1] == 1
    assert other.read(0).take(slice(0, 2)).rows.outcome.shape == (2, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"history_events": True}, r"data\.history_events=true .*data\.history"),
        ({"history": 2, "history_events": "yes"}, r"data\.history_events=yes"),
        ({"behaviours": ["like", "like"]}, r"data\.behaviours.*each once"),
        ({"behaviours": list("abcdefg")}, r"data\.behaviours.*at most 6"),
        ({"behaviours": ["tab"], "categorical": ["tab"]}, r"data\.behaviours: 'tab' tells what"),
        ({"behaviours": ["tab"]}, r"data\.behaviours: column 'tab' holds '.', which is no number"),
        ({"behaviours": ["liked"]}, r"data\.behaviours: there is no column 'liked'"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, changes: dict, said: str):
    write(tmp_path / "log.csv", rows_of(9))
    with pytest.raises(Mistake, match=said):
        declare(tmp_path, **changes).prepare()
