"""The yaml files of real logs, on a few made-up rows in exactly their owners' layout."""

from __future__ import annotations

import gzip
import json
import random
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from incrs.data.log import LogSource
from incrs.errors import Mistake
from incrs.period import Role
from tests.data.shop import read_all, write

CONF = Path(__file__).parents[2] / "conf"
LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
RANGES = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag"
)


def load(name: str, *changes: str) -> LogSource:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(None, [f"+data={name}", *(f"data.{change}" for change in changes)])
    return instantiate(config.data)


def kuairand(folder: Path, variant: str, parts: list[str]) -> None:
    dice = random.Random(0)
    rows = []
    for day in range(10):
        for _ in range(12):
            hour = dice.randrange(24)
            moment = datetime(2022, 4, 25 + day % 5, hour, 7, tzinfo=ZoneInfo("Asia/Shanghai"))
            row = dict.fromkeys(LOG.split(","), 0) | {
                "user_id": dice.randrange(9),
                "video_id": dice.randrange(20),
                "date": f"202204{20 + day:02d}",
                "hourmin": hour * 100,
                "time_ms": int(moment.timestamp() * 1000) + 86_400_000 * (day - 5 - day % 5),
                "is_click": dice.randrange(2),
                "long_view": 0,
                "tab": dice.choice([0, 1, 2, 4, 6, 14]),
            }
            rows.append(row)
    for k, part in enumerate(parts):
        write(folder / "data" / part, rows[k :: len(parts)])
    flags = {
        "user_active_degree": "full_active",
        "is_lowactive_period": 0,
        "is_live_streamer": -124,
    }
    user = {"is_video_author": 1}
    for name in RANGES:
        user |= {name: 514, f"{name}_range": "(250,500]"}
    user |= {f"onehot_feat{k}": "" if k == 4 else k for k in range(18)}
    write(
        folder / "data" / f"user_features_{variant}.csv",
        [{"user_id": k} | flags | user | {"fans_user_num": k * k} for k in range(9)],
    )
    values = ["NORMAL", "2022-04-10", "Web", "0.0", "8000.0", "720.0", "1280.0", "9155", "9.0"]
    videos = [[k, 100 + k % 7, *values, ["39", "3,11", ""][k % 3]] for k in range(18)]
    for video in videos[:3]:
        video[6] = ""
    write(
        folder / "data" / f"video_features_basic_{variant}.csv",
        [dict(zip(VIDEO.split(","), video, strict=True)) for video in videos],
    )
    write(
        folder / "data" / f"video_features_statistic_{variant}.csv",
        [{"video_id": 0, "show_cnt": 9}],
    )
    write(folder / "data" / f"log_random_4_22_to_5_08_{variant}.csv", rows[:9])


PARTS = {
    "pure": ["log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv"],
    "1k": ["log_standard_4_08_to_4_21_1k.csv", "log_standard_4_22_to_5_08_1k.csv"],
    "27k": [
        f"log_standard_{days}_27k_part{k}.csv"
        for days in ("4_08_to_4_21", "4_22_to_5_08")
        for k in (1, 2)
    ],
}


@pytest.mark.parametrize("variant", PARTS)
def test_kuairand_reads_its_archives(tmp_path: Path, variant: str):
    kuairand(tmp_path, variant, PARTS[variant])
    source = load("kuairand", f"path={tmp_path}", f"store={tmp_path}/store", f"variant={variant}")
    got = read_all(source)
    assert source.name == f"kuairand-{variant}"
    assert [p.name for p in got] == [f"2022-04-{20 + day}" for day in range(10)]
    assert [p.role for p in got] == [Role.PRETRAIN] * 7 + [Role.TUNE] + [Role.TEST] * 2
    assert 0 < sum(map(len, got)) < 120
    assert source.schema.scenarios == ["0", "1", "2", "4"]
    assert list(source.schema.fields)[:3] == ["user_id", "video_id", "author_id"]
    assert (source.schema.user, source.schema.item) == ("user_id", "video_id")
    assert len(source.schema.fields) == 32
    assert source.schema.vocabularies["onehot_feat4"] == 1
    assert source.schema.vocabularies["tag"] == 4
    assert len(source.schema.numbers) == 5
    assert not {"show_cnt", "is_like", "play_time_ms"} & {
        *source.schema.fields,
        *source.schema.numbers,
    }


def test_kuairand_takes_a_subset_of_days_tabs_and_another_label(tmp_path: Path):
    kuairand(tmp_path, "pure", PARTS["pure"])
    changes = [
        "label=long_view",
        "scenarios=[6]",
        "start=2022-04-21",
        "end=2022-04-28",
        "pretrain=1",
    ]
    source = load("kuairand", f"path={tmp_path}", f"store={tmp_path}/store", *changes)
    got = read_all(source)
    assert {p.name for p in got} <= {f"2022-04-{day}" for day in range(21, 29)}
    assert source.schema.scenarios == ["6"]
    assert sum(float(p.rows.label.sum()) for p in got) == 0


def movielens(folder: Path) -> list[dict[str, float]]:
    dice = random.Random(0)
    ratings = [
        {
            "userId": user,
            "movieId": dice.randrange(40),
            "rating": dice.randrange(1, 11) / 2,
            "timestamp": 1_400_000_000 + dice.randrange(10**7),
        }
        for user in range(10)
        for _ in range(32)
    ]
    movies = [
        {
            "movieId": k,
            "title": f'Film, "{k}" (1995)',
            "genres": ["Drama|War", "(no genres listed)"][k % 2],
        }
        for k in range(40)
    ]
    write(folder / "ratings.csv", ratings)
    write(folder / "movies.csv", movies)
    write(folder / "tags.csv", [{"userId": 1, "movieId": 1, "tag": "x", "timestamp": 1}])
    return ratings


def test_movielens_reads_its_archives(tmp_path: Path):
    ratings = movielens(tmp_path)
    source = load("movielens", f"path={tmp_path}", f"store={tmp_path}/store")
    got = read_all(source)
    assert [len(p) for p in got] == [10] * 31
    assert [p.role for p in got] == [Role.PRETRAIN] * 10 + [Role.TUNE] * 13 + [Role.TEST] * 8
    ordered = sorted(ratings, key=lambda row: row["timestamp"])[:310]
    assert [float(x) for p in got for x in p.rows.label] == [
        float(r["rating"] >= 4) for r in ordered
    ]
    assert source.schema.vocabularies["genres"] == 4
    assert source.schema.lists["history"].vocabulary == "movieId"
    assert got[-1].rows.lists["history"].shape == (10, 30)
    assert got[-1].rows.lists["history"].max() > 0


def sobazaar(folder: Path) -> int:
    dice = random.Random(0)
    actions = ["product_detail_clicked", "product_wanted", "purchase:buy_clicked"]
    rows = [
        {
            "Action": dice.choice(actions),
            "Timestamp": f"2014-{9 + k // 100:02d}-{1 + k % 28:02d}T{k % 24:02d}:05:06.{k:03d}Z",
            "ItemID": f"{dice.randrange(40):032x}",
            "UserID": f"{dice.randrange(9):032x}",
        }
        for k in range(315)
    ]
    write(folder / "log.csv", rows)
    folder.joinpath("Sobazaar-hashID.csv.gz").write_bytes(
        gzip.compress((folder / "log.csv").read_bytes(), mtime=0)
    )
    return len(rows)


def test_sobazaar_reads_its_file(tmp_path: Path):
    assert sobazaar(tmp_path) // 31 == 10
    source = load("sobazaar", f"path={tmp_path}", f"store={tmp_path}/store")
    got = read_all(source)
    assert [p.role for p in got] == [Role.PRETRAIN] * 10 + [Role.TUNE] * 14 + [Role.TEST] * 7
    assert [float(p.rows.label.sum()) for p in got] == [10] * 31
    assert {len(p) for p in got} <= set(range(10, 21))
    assert sum(map(len, got)) > 31 * 17
    assert (source.schema.user, source.schema.item) == ("UserID", "ItemID")
    assert got[-1].rows.lists["history"].shape[1] == 30
    assert got[-1].rows.lists["history"].max() > 0


def tmall(folder: Path) -> list[dict]:
    dice = random.Random(0)
    rows = []
    for k in range(900):
        item = dice.randrange(12)
        day = dice.choice([930, 1101, *range(1001, 1032), *range(1001, 1032)])
        row = {"user_id": dice.randrange(9), "item_id": item, "cat_id": item % 4, "seller_id": 7}
        row |= {"brand_id": "" if k % 9 else 3, "time_stamp": day}
        rows.append(row | {"action_type": dice.choice([0, 0, 0, 2, 3])})
    rows += [rows[0] | {"user_id": 77, "action_type": 0, "time_stamp": 829}]
    rows += [rows[0] | {"item_id": 88, "action_type": 0, "time_stamp": 1009}]
    write(folder / "user_log_format1.csv", rows)
    write(folder / "user_info_format1.csv", [{"user_id": 1, "age_range": 3, "gender": 0}])
    return rows


def test_tmall_reads_its_file(tmp_path: Path):
    rows = tmall(tmp_path)
    source = load("tmall", f"path={tmp_path}", f"store={tmp_path}/store")
    got = read_all(source)
    assert [p.name for p in got] == [f"2014-10-{day:02d}" for day in range(1, 32)]
    assert [p.role for p in got] == [Role.PRETRAIN] * 10 + [Role.TUNE] * 14 + [Role.TEST] * 7
    clicks = [
        sum(
            r["time_stamp"] == 1000 + day and r["action_type"] == 0
            for r in rows
            if r["item_id"] < 88
        )
        for day in range(1, 32)
    ]
    assert [int(p.rows.label.sum()) for p in got] == clicks
    assert source.schema.vocabularies == {"user_id": 10, "item_id": 13, "cat_id": 5}
    item, cat = source.schema.column("item_id"), source.schema.column("cat_id")
    category: dict[int, int] = {}
    for period in got:
        for row in period.rows.fields.tolist():
            assert category.setdefault(row[item], row[cat]) == row[cat]
    past: dict[int, list[int]] = {}
    for period in got:
        rows_of = zip(period.rows.fields.tolist(), period.rows.label.tolist(), strict=True)
        for k, (row, _) in enumerate(rows_of):
            history = [i for i in period.rows.lists["history"][k].tolist() if i]
            assert sorted(history) == sorted(past.get(row[0], [])[-30:]) or len(history) == 30
            cats = [i for i in period.rows.lists["history.cat_id"][k].tolist() if i]
            assert cats == [category[i] for i in history]
        for row, label in zip(period.rows.fields.tolist(), period.rows.label.tolist(), strict=True):
            if label:
                past.setdefault(row[0], []).append(row[item])


def yelp(folder: Path) -> list[dict]:
    dice = random.Random(0)
    rows = []
    for k in range(420):
        user, place = dice.randrange(12), dice.randrange(9)
        row = {
            "review_id": f"r{k}",
            "user_id": f"u{user}",
            "business_id": f"b{place}",
            "stars": 4.0,
        }
        row |= {"useful": 0, "funny": 0, "cool": 0, "text": 'So "good",\nagain!'}
        rows.append(row | {"date": f"2016-{1 + k % 12:02d}-{1 + k % 28:02d} 12:00:{k % 60:02d}"})
    rows += [rows[0] | {"user_id": "rare"}] * 9 + [rows[0] | {"business_id": "rare"}] * 19
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "yelp_academic_dataset_review.json").write_text(text)
    (folder / "yelp_academic_dataset_user.json").write_text('{"user_id": "u1"}\n')
    return rows


def test_yelp_reads_its_file(tmp_path: Path):
    yelp(tmp_path)
    source = load("yelp", f"path={tmp_path}", f"store={tmp_path}/store")
    got = read_all(source)
    assert [p.role for p in got] == [Role.PRETRAIN] * 10 + [Role.TUNE] * 23 + [Role.TEST] * 7
    assert [int(p.rows.label.sum()) for p in got] == [10] * 40
    assert source.schema.vocabularies == {"user_id": 13, "business_id": 10}


def adressa(folder: Path) -> list[dict]:
    dice = random.Random(0)
    rows = []
    for k in range(1600):
        clock = datetime(2017, 1, 1 + k % 23, k % 24, 30, tzinfo=ZoneInfo("Europe/Oslo"))
        row: dict = {"eventId": k, "userId": f"cx:{dice.randrange(20)}", "url": "http://adressa.no"}
        row |= {
            "time": int(clock.timestamp()),
            "profile": [{"item": "0", "groups": [{"count": 1}]}],
        }
        if k % 5:
            row["id"] = f"{dice.randrange(30):040x}"
        if k % 7:
            row["activeTime"] = dice.randrange(3)
        rows.append(row)
    for day in range(1, 24):
        text = "".join(json.dumps(row) + "\n" for row in rows[day - 1 :: 23])
        (folder / f"201701{day:02d}").write_text(text)
    return rows


def test_adressa_reads_its_files(tmp_path: Path):
    rows = adressa(tmp_path)
    days = ["start=2017-01-01", "end=2017-01-21"]
    source = load("adressa", f"path={tmp_path}", f"store={tmp_path}/store", *days)
    got = read_all(source)
    assert [p.name for p in got[:4]] == [
        *(f"2017-01-01 {hour}h" for hour in ("00", "10", "17")),
        "2017-01-02 00h",
    ]
    assert [p.role for p in got] == [Role.PRETRAIN] * 21 + [Role.TUNE] * 32 + [Role.TEST] * 10
    read = [r for k, r in enumerate(rows) if k % 23 < 21 and r.get("activeTime") and "id" in r]
    assert sum(int(p.rows.label.sum()) for p in got) == len(read)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kuairand", r"zenodo\.org.*data\.path=KuaiRand-Pure"),
        ("movielens", r"files\.grouplens\.org.*data\.path=ml-25m"),
        (
            "sobazaar",
            r"hainguyen-telenor/Learning-to-rank-from-implicit-feedback.*data\.path=FOLDER",
        ),
        ("tmall", r"data_format1\.zip of https://tianchi.*data\.path=data_format1"),
        ("yelp", r"https://www\.yelp\.com/dataset.*data\.path=yelp_dataset"),
        ("adressa", r"https://reclab\.idi\.ntnu\.no/dataset.*data\.path=three_month"),
        ("taobao", r"https://tianchi.*dataId=56.*data\.path=FOLDER"),
        ("aliexpress", r"aliexpress_NL_datasets\.zip.*https://tianchi.*dataId=74690.*data\.path="),
        ("kuaisar", r"https://zenodo\.org/records/8181109.*data\.path=KuaiSAR_v2"),
    ],
)
def test_a_log_that_is_not_there_says_where_to_get_it(tmp_path: Path, name: str, words: str):
    source = load(name, f"path={tmp_path}/log", f"store={tmp_path}")
    with pytest.raises(Mistake, match=words) as caught:
        source.prepare()
    assert "\n" not in str(caught.value)
    (tmp_path / "log").mkdir()
    with pytest.raises(Mistake, match=rf"data\.(files|joins): no file.*{words}"):
        source.prepare()


def test_a_log_of_ones_own_takes_a_few_lines(tmp_path: Path):
    """The example at the top of log.yaml, as written there."""
    text = (CONF / "data" / "log.yaml").read_text()
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    assert len(lines) < 20
    (tmp_path / "conf" / "data").mkdir(parents=True)
    example = "\n".join(lines).replace("/where/the/files/are", str(tmp_path))
    (tmp_path / "conf" / "data" / "shop.yaml").write_text(example + "\n")
    rows = [
        {"timestamp": 86_400 * k, "clicked": k % 2, "user_id": 1, "product_id": k, "category": "a"}
        for k in range(9)
    ]
    write(tmp_path / "log.csv", [row | {"device": "phone"} for row in rows])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        changes = [
            f"hydra.searchpath=[file://{tmp_path}/conf]",
            "+data=shop",
            f"data.store={tmp_path}/s",
        ]
        source = instantiate(compose(None, changes).data)
    assert [len(p) for p in read_all(source)] == [1] * 9
    assert list(source.schema.fields) == ["user_id", "product_id", "category", "device"]
