"""Every paper's data set in its owners' layout, a few rows of it, and what they must be, row by row."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from incrs.data.log import LogSource
from incrs.errors import Mistake
from incrs.period import Period
from tests.data.test_declared import load

Told = dict[str, tuple[str, list[str]]]


def words(source: LogSource, name: str) -> list[str]:
    """The values of a vocabulary by id, `-` for the unknown."""
    file = source.folder / "vocab" / f"{name}.parquet"
    return ["-", *pl.read_parquet(file)["value"].to_list()]


def told(source: LogSource, *fields: str) -> Told:
    """Period -> its role, and a line for each row: the fields' values, scenario, label."""
    source.prepare()
    known = {name: words(source, name) for name in fields}
    found: Told = {}
    for t in range(len(source.roles)):
        period = source.read(t)
        lines = []
        for k in range(len(period)):
            values = [
                known[name][int(period.rows.fields[k, source.schema.column(name)])]
                for name in fields
            ]
            scenario = source.schema.scenarios[int(period.rows.scenario[k])]
            lines.append(" ".join([*values, scenario, str(int(period.rows.label[k]))]))
        found[period.name] = (period.role.value, lines)
    return found


def listed(source: LogSource, period: Period, name: str) -> list[list[str]]:
    """The values of a list, row by row, without padding."""
    known = words(source, source.schema.lists[name].vocabulary)
    return [[known[i] for i in row if i] for row in period.rows.lists[name].tolist()]


def put(folder: Path, **files: str) -> None:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_json", ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def opened(name: str, folder: Path, *changes: str) -> LogSource:
    return load(name, f"path={folder}", f"store={folder}/store", *changes)


# Beijing's 2017-05-06 begins at 1494000000
TAOBAO = {
    "raw_sample_csv": """user,time_stamp,adgroup_id,pid,nonclk,clk
1,1494000000,10,430548_1007,0,1
5,1494086399,11,430539_1007,1,0
2,1493999999,10,430548_1007,1,0
3,1494000001,10,430548_1007,1,0
4,1494000002,10,430548_1007,0,1
2,1494086400,12,430548_1007,1,0
6,1494172800,10,430548_1007,1,0
5,1494259200,13,430539_1007,0,1
6,1494345600,10,430548_1007,1,0
1,1494432000,11,430548_1007,1,0
1,1494518400,11,430548_1007,1,0
2,1494604800,12,430548_1007,0,1
5,1494691199,10,430548_1007,1,0
5,1494691200,10,430548_1007,1,0
5,1494086398,14,430548_1007,1,0
6,1494086400,14,430548_1007,1,0
6,1494259199,14,430548_1007,1,0
""",
    "ad_feature_csv": """adgroup_id,cate_id,campaign_id,customer,brand,price
10,6261,83237,1,95471,170.0
11,6261,83237,2,NULL,99.0
12,4520,83238,1,95471,15.8
14,4520,83238,1,95471,60.0
""",
    "user_profile_csv": """userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,\
shopping_level,occupation,new_user_class_level\u0020
1,0,5,2,5,,3,0,3
2,0,5,2,5,2,3,0,1
4,0,5,2,5,2,3,0,
5,79,3,2,3,1,2,1,2
6,79,3,1,3,1,2,1,4
""",
}


def taobao(folder: Path) -> None:
    put(folder, **TAOBAO)


def test_taobao(tmp_path: Path):
    taobao(tmp_path)
    source = opened("taobao", tmp_path)
    fields = ("user", "adgroup_id", "pid", "cate_id", "brand", "pvalue_level", "hour")
    assert told(source, *fields) == {
        "2017-05-06": (
            "pretrain",
            [
                "1 10 430548_1007 6261 95471 - 0 3 1",
                "5 14 430548_1007 4520 95471 1 23 2 0",
                "5 11 430539_1007 6261 - 1 23 2 0",
            ],
        ),
        "2017-05-07": (
            "pretrain",
            ["2 12 430548_1007 4520 95471 2 0 1 0", "6 14 430548_1007 4520 95471 1 0 4 0"],
        ),
        "2017-05-08": (
            "pretrain",
            ["6 10 430548_1007 6261 95471 1 0 4 0", "6 14 430548_1007 4520 95471 1 23 4 0"],
        ),
        "2017-05-09": ("tune", ["5 13 430539_1007 - - 1 0 2 1"]),
        "2017-05-10": ("test", ["6 10 430548_1007 6261 95471 1 0 4 0"]),
        "2017-05-11": ("test", ["1 11 430548_1007 6261 - - 0 3 0"]),
        "2017-05-12": ("test", ["1 11 430548_1007 6261 - - 0 3 0"]),
        "2017-05-13": (
            "test",
            ["2 12 430548_1007 4520 95471 2 0 1 1", "5 10 430548_1007 6261 95471 1 23 2 0"],
        ),
    }
    assert source.schema.scenarios == ["1", "2", "3", "4"]
    assert set(source.schema.of_item or ()) == {
        *("cate_id", "campaign_id", "customer", "brand", "price")
    }
    prices = source.read(3).rows.numbers[:, 0], source.read(4).rows.numbers[:, 0]
    assert float(prices[0]) == 0  # an ad that the table lacks
    assert float(prices[1]) > 1


SEARCHES = {"train": {7: "3", 8: "3.0"}, "test": {7: "5"}}
"""U1 of each search: an Id is a search of one country and one part; 9 is in no table of users."""


def aliexpress(folder: Path) -> dict[str, list[str]]:
    """Write NL and FR, 20 rows each; return U1, U32, I1, I47 and the click of every row."""
    rows: dict[str, list[str]] = {}
    for country in ("nl", "fr"):
        rows[country.upper()] = []
        for part, asked in SEARCHES.items():
            (folder / country).mkdir(exist_ok=True)
            users = [f"{one},{u1},{',' * 30}{country}\n" for one, u1 in asked.items()]
            (folder / country / f"{country}_user_{part}.csv").write_text("".join(users))
            items = []
            for k in range(12 if part == "train" else 8):
                search, label = (7, 8, 9)[k % 3], (0, 0, 1, 0, 2)[k % 5]
                items.append(f"{search},{k % 4}.5,{',' * 45}0.{k % 2},{label}\n")
                u1, u32 = asked.get(search, "0"), country if search in asked else "0"
                rows[country.upper()].append(f"{u1} {u32} {k % 4}.5 0.{k % 2} {int(label > 0)}")
            (folder / country / f"{country}_item_{part}.csv").write_text("".join(items))
    return rows


def test_aliexpress(tmp_path: Path):
    rows = aliexpress(tmp_path)
    assert rows["NL"][:3] == ["3 nl 0.5 0.0 0", "3.0 nl 1.5 0.1 0", "0 0 2.5 0.0 1"]
    assert rows["NL"][12:15] == ["5 nl 0.5 0.0 0", "0 0 1.5 0.1 0", "0 0 2.5 0.0 1"]
    source = opened("aliexpress", tmp_path)
    found = told(source, "U1", "U32", "I1", "I47")
    assert list(found) == ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert [role for role, _ in found.values()] == ["pretrain"] * 7 + ["tune", "test"]
    for country, expected in rows.items():
        lines = [[x for x in part if f" {country} " in x] for _, part in found.values()]
        assert [len(part) for part in lines] == [2] * 7 + [3, 3]
        read = [line.replace(f"{country} ", "") for part in lines for line in part]
        assert sorted(read) == sorted(expected)
        assert read != expected  # drawn
    assert source.schema.scenarios == ["NL", "FR"]
    assert len(source.schema.fields) == 79
    assert source.schema.vocabularies["U2"] == 2  # always empty, which is read as 0
    assert words(source, "U2") == ["-", "0"]
    assert (source.schema.user, source.schema.item) == (None, None)


@pytest.mark.slow
def test_aliexpress_2_is_spain_and_the_us(tmp_path: Path):
    aliexpress(tmp_path)
    for old, new in (("nl", "es"), ("fr", "us")):
        for file in (tmp_path / old).iterdir():
            file.rename(tmp_path / file.name.replace(old, new))  # all in one folder
    source = opened("aliexpress", tmp_path, "variant=es_us")
    found = told(source, "U32")
    assert source.name == "aliexpress-es_us"
    assert source.schema.scenarios == ["ES", "US"]
    assert sum(len(part) for _, part in found.values()) == 40


def test_aliexpress_without_a_table_of_users_names_it_and_the_page(tmp_path: Path):
    aliexpress(tmp_path)
    (tmp_path / "fr" / "fr_user_test.csv").unlink()
    with pytest.raises(
        Mistake,
        match=r"fr_item_test\.csv has no table fr_user_test\.csv beside it.*https://tianchi",
    ):
        opened("aliexpress", tmp_path).prepare()


KUAIRAND = "2,5,{},900,{},{},0,0,0,0,0,{},9,9,0,0,0,0,{}\n"
USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range,"
    + ",".join(f"onehot_feat{k}" for k in range(18))
    + '\n2,full_active,0,-124,1,457,"(250,500]",20,"[10,100)",3,"[1,5)",1474,730+'
    + ",1" * 18
    + "\n"
)
VIDEO = """video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,\
server_height,music_id,music_type,tag
5,71,NORMAL,2022-04-10,Web,0.0,8000.0,720.0,1280.0,9155,9.0,"39,3"
6,72,AD,2022-04-10,Web,0.0,,720.0,1280.0,9156,4.0,
"""
KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


def test_kuairand(tmp_path: Path):
    later = [  # 2022-04-22 09:00 in Beijing is 1650589200000
        KUAIRAND.format(20220422, 1650589200000, 0, 1, 4),
        KUAIRAND.format(20220422, 1650589200001, 1, 0, 6),  # a tab that is not kept
        "3,6" + KUAIRAND.format(20220423, 1650643199000, 1, 1, 0)[3:],  # the minute before midnight
    ]
    earlier = [
        KUAIRAND.format(20220421, 1650502800001, 1, 0, 1),
        KUAIRAND.format(20220421, 1650502800000, 0, 0, 2),
    ]
    put(
        tmp_path,
        data__log_standard_4_08_to_4_21_pure_csv=KUAIRAND_LOG + "".join(earlier),
        data__log_standard_4_22_to_5_08_pure_csv=KUAIRAND_LOG + "".join(later),
        data__log_random_4_22_to_5_08_pure_csv=KUAIRAND_LOG + "".join(later),
        data__user_features_pure_csv=USER,
        data__video_features_basic_pure_csv=VIDEO,
    )
    source = opened("kuairand", tmp_path, "pretrain=1")
    fields = ("user_id", "video_id", "author_id", "follow_user_num_range", "hour")
    assert told(source, *fields) == {
        "2022-04-21": ("pretrain", ["2 5 71 (250,500] 9 2 0", "2 5 71 (250,500] 9 1 1"]),
        "2022-04-22": ("tune", ["2 5 71 (250,500] 9 4 0"]),
        "2022-04-23": ("test", ["3 6 72 - 23 0 1"]),
    }
    assert listed(source, source.read(0), "tag") == [["39", "3"], ["39", "3"]]
    assert listed(source, source.read(2), "tag") == [[]]


def test_tmall(tmp_path: Path):
    rows = """user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type
1,8,4,2,,930,0
1,8,4,2,,1003,0
1,9,5,2,3,1001,2
2,9,5,2,3,1001,0
3,9,5,2,3,1001,0
1,8,4,2,,1001,0
2,9,5,2,3,1003,0
1,7,6,2,3,1004,0
2,9,5,2,3,1031,0
2,9,5,2,3,1101,0
"""
    put(tmp_path, user_log_format1_csv=rows)
    changes = [
        "filters=[{top:user_id,n:2},{at_least:item_id,n:2}]",
        "pretrain=1",
        "tune=1",
        "test=1",
    ]
    source = opened("tmall", tmp_path, *changes)
    # 3 has one click and goes, then 7 has one and goes; whoever had 8 gets 9 beside it, and the reverse
    assert told(source, "user_id", "item_id", "cat_id") == {
        "2014-10-01": ("pretrain", ["2 9 5 all 1", "2 8 4 all 0", "1 8 4 all 1", "1 9 5 all 0"]),
        "2014-10-03": ("tune", ["1 8 4 all 1", "1 9 5 all 0", "2 9 5 all 1", "2 8 4 all 0"]),
        "2014-10-31": ("test", ["2 9 5 all 1", "2 8 4 all 0"]),
    }
    assert listed(source, source.read(0), "history") == [[]] * 4
    assert listed(source, source.read(2), "history") == [["9", "9"]] * 2
    assert listed(source, source.read(2), "history.cat_id") == [["5", "5"]] * 2


def test_sobazaar(tmp_path: Path):
    rows = """Action,Timestamp,ItemID,UserID
purchase:buy_clicked,2014-10-01T08:00:00.500Z,b,u
product_detail_clicked,2014-09-01T08:00:00.123Z,a,u
product_wanted,2014-09-01T08:00:00.122Z,b,v
product_detail_clicked,2014-12-01T10:00:00Z,a,v
content:interact:product_clicked,2014-12-01T10:00:01Z,a,v
"""
    (tmp_path / "Sobazaar-hashID.csv.gz").write_bytes(gzip.compress(rows.encode()))
    source = opened("sobazaar", tmp_path, "period_count=2", "pretrain=1", "tune=1", "test=0")
    # of five rows two are in each period, and the last one in none; u had both items by its second row
    assert told(source, "UserID", "ItemID") == {
        "1": ("pretrain", ["v b all 1", "v a all 0", "u a all 1", "u b all 0"]),
        "2": ("tune", ["u b all 1", "v a all 1"]),
    }
    assert listed(source, source.read(1), "history") == [["a"], ["b"]]


def test_movielens(tmp_path: Path):
    rows = """userId,movieId,rating,timestamp
1,296,5.0,1388534399
1,306,3.5,1388534400
2,306,4.0,1388534401
1,307,0.5,1400000000
2,307,4.5,1546300799
2,296,4.5,1546300800
"""
    movies = """movieId,title,genres
296,"Pulp Fiction, the (1994)",Comedy|Crime|Drama|Thriller
306,Red (1994),Drama
"""
    put(tmp_path, ratings_csv=rows, movies_csv=movies)
    days = ["start=2014-01-01", "end=2018-12-31"]
    changes = ["period_count=4", "pretrain=1", "tune=1"]
    source = opened("movielens", tmp_path, *days, *changes)
    assert told(source, "userId", "movieId") == {
        "1": ("pretrain", ["1 306 all 0"]),
        "2": ("tune", ["2 306 all 1"]),
        "3": ("test", ["1 307 all 0"]),
        "4": ("test", ["2 307 all 1"]),
    }
    assert [listed(source, source.read(t), "genres") for t in range(4)] == [
        *([[["Drama"]]] * 2),
        *([[[]]] * 2),
    ]
    assert listed(source, source.read(3), "history") == [["306"]]
    stricter = opened("movielens", tmp_path, *days, *changes, "label_threshold=3.5")
    assert told(stricter, "userId")["1"] == ("pretrain", ["1 all 1"])


def test_yelp(tmp_path: Path):
    row = (
        '{{"review_id":"r","user_id":"{}","business_id":"{}","stars":{},"useful":0,"funny":0,"cool":0,'
        '"text":"So \\"good\\",\\nagain","date":"{}"}}\n'
    )
    rows = [
        ("u", "a", 1.0, "2018-07-07 22:09:11"),
        ("v", "b", 5.0, "2017-07-07 22:09:11"),
        ("u", "b", 5.0, "2019-07-07 22:09:11"),
        ("v", "b", 2.0, "2019-07-07 22:09:12"),
        ("w", "b", 2.0, "2019-07-08 22:09:12"),
        ("v", "c", 2.0, "2019-07-08 22:09:12"),
    ]
    put(tmp_path, yelp_academic_dataset_review_json="".join(row.format(*one) for one in rows))
    filters = "filters=[{at_least:user_id,n:2},{at_least:business_id,n:1}]"
    changes = ["period_count=2", "pretrain=1", "tune=1", "test=0", filters]
    source = opened("yelp", tmp_path, *changes)
    # when b was reviewed first there was no other place; u had a and b, v not a
    assert told(source, "user_id", "business_id") == {
        "1": ("pretrain", ["v b all 1", "u a all 1", "u b all 0"]),
        "2": ("tune", ["u b all 1", "v b all 1", "v a all 0"]),
    }


def test_adressa(tmp_path: Path):
    row = '{{"eventId":1,"userId":"{}",{}"url":"http://adressa.no","time":{}{},"profile":[{{"item":"0"}}]}}\n'
    days: dict[str, list[tuple]] = {
        # 2017-01-01 begins in Norway at 1483225200
        "20170101": [
            ("u", '"id":"a",', 1483225200, ',"activeTime":12'),
            ("u", "", 1483225201, ',"activeTime":12'),  # a front page
            ("u", '"id":"b",', 1483225202, ""),  # no reading time
            ("v", '"id":"b",', 1483261199, ',"activeTime":1'),  # 09:59:59
            ("v", '"id":"b",', 1483261200, ',"activeTime":0'),
            ("w", '"id":"a",', 1483261200, ',"activeTime":3'),  # 10:00
        ],
        "20170102": [("w", '"id":"b",', 1483311600, ',"activeTime":3')],
    }
    for day, rows in days.items():
        (tmp_path / day).write_text("".join(row.format(*one) for one in rows))
    source = opened("adressa", tmp_path, "pretrain=1", "tune=1", "test=1")
    assert told(source, "userId", "id") == {
        "2017-01-01 00h": ("pretrain", ["u a all 1", "v b all 1", "v a all 0"]),
        "2017-01-01 10h": ("tune", ["w a all 1", "w b all 0"]),
        "2017-01-02 00h": ("test", ["w b all 1"]),
    }


def test_kuaisar(tmp_path: Path):
    recommended = """user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,\
search,search_item_related
1,5,0,0,2023-05-22 00:00:00,1684684800000,1,0,1,0,0,0
1,6,0,0,2023-05-21 23:59:59,1684684799999,1,0,1,0,0,0
2,6,0,0,2023-05-29 23:59:59,1685375999000,0,1,0,0,0,0
"""
    searched = """user_id,search_session_id,search_session_time,search_session_timestamp,keyword,\
search_source,item_id,click_cnt,item_type
1,9,2023-05-22 00:00:01,1684684801000,"[3, 4]",x,6,3,VIDEO
2,9,2023-05-29 23:59:58,1685375998000,"[3, 4]",x,5,0,VIDEO
"""
    put(tmp_path, rec_inter_csv=recommended, src_inter_csv=searched)
    source = opened("kuaisar", tmp_path, "pretrain=1", "tune=0", "test=1")
    assert told(source, "user_id", "item_id") == {
        "2023-05-22": ("pretrain", ["1 5 recommendation 1", "1 6 search 1"]),
        "2023-05-29": ("test", ["2 5 search 0", "2 6 recommendation 0"]),
    }
    assert source.read(0).rows.outcome.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]  # type: ignore[union-attr]
    assert listed(source, source.read(0), "history") == [[], ["5"]]
