"""The papers' figures are all there, once each, and as printed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from incrs import report, results
from incrs.console import terminal
from incrs.errors import Mistake
from incrs.published import FILE, Figure, base, cells_of_published, published, same_logs
from incrs.published import show_published as show
from incrs.results import Row, Run

COUNTS = {
    ("asmg", "1"): 11 * 4 * 2 * 2,  # methods, logs, metrics, mean and deviation
    ("asmg", "2"): 5 * 4 * 2,
    ("asmg", "3"): 2 * 4,
    ("sml", "1"): 6 * 2 * 6,
    ("sml", "2"): 4 * 7,
    ("multifs", "1"): 26 * 2 * 2 * 2,  # the poster's last line repeats its eighth
    ("incmsr", "2"): 4 * 4 * 2 * 13,  # models, scenarios, metrics, Batch-0 to -6 and Incre-1 to -6
    ("incmsr", "3"): 4 * 4 * 2 * 11,
    ("incmsr", "4"): 5 * 4 * 6,
    ("ruie", "1"): 7 * 4,
    ("ruie", "2"): 4 * 4,
}

SPOTS = [
    ("asmg,1,sobazaar,embedding_mlp,asmg-multi,auc,all,", "0.8108"),
    ("asmg,1,tmall,embedding_mlp,spmf,logloss,all,", "0.5220"),
    ("asmg,1,lazada,mf,sml,auc_std,all,", "0.0016"),
    ("asmg,2,movielens,embedding_mlp,asmg-full,auc,all,", "0.7565"),
    ("asmg,3,tmall,embedding_mlp,asmg-full,minutes,all,30", "93.6"),
    ("sml,1,yelp,mf,sml,ndcg_20,all,", "0.2194"),
    ("sml,1,adressa,mf,batch-all,recall_5,all,", "0.0495"),
    ("sml,2,yelp,mf,batch-all,seconds,all,6", "1749"),
    ("multifs,1,aliexpress-1,deepfm-multifs,once,auc,nl,", "0.7437"),
    ("multifs,1,aliexpress-2,dcn-multifs,once,logloss,us,", "0.0758"),
    ("multifs,1,aliexpress-2,hmoe,once,auc,es,", "0.7328"),
    ("incmsr,2,kuairand,star,incmsr,auc,4,6", "0.6565"),
    ("incmsr,2,kuairand,dcn-single,frozen,auc,0,0", "0.6801"),
    ("incmsr,2,kuairand,ple,incmsr,logloss,2,3", "0.6102"),
    ("incmsr,3,taobao,shared_bottom,incmsr,auc,1,5", "0.6273"),
    ("incmsr,4,kuairand,star,incctr,auc,2,3", "0.7435"),
    ("ruie,1,kuaisar,ruie,once,hr_20,all,", "14.6784"),
    ("ruie,2,kuaisar,ruie-wo-mha,once,hr_5,all,", "3.5098"),
]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_width", 80)


def test_every_cell_of_every_table_is_there_once() -> None:
    figures = published()
    assert Counter((f.paper, f.table) for f in figures) == COUNTS
    assert len({f[:-1] for f in figures}) == len(figures)


@pytest.mark.parametrize(("key", "value"), SPOTS)
def test_figures_keep_the_digits_that_were_printed(key: str, value: str) -> None:
    with FILE.open(newline="", encoding="utf-8") as file:
        found = [row[-1] for row in csv.reader(file) if ",".join(row[:-1]) == key]
    assert found == [value]


def test_figures_are_in_the_range_of_their_metric() -> None:
    ranges = {"auc": (0.5, 0.9), "logloss": (0.05, 0.8), "minutes": (3, 100), "seconds": (8, 1750)}
    ranges |= {"auc_std": (0, 0.002), "logloss_std": (0, 0.0025)}
    ranges |= {f"{m}_{k}": (0, 0.5) for m in ("recall", "ndcg") for k in (5, 10, 15, 20)}
    ranges |= {f"hr_{k}": (0, 50) for k in (5, 10, 15, 20)}
    for f in published():
        low, high = ranges[f.metric]
        assert low <= f.value <= high, f


def test_a_list_that_grows_finds_more() -> None:
    for paper in ("sml", "ruie"):
        lists: dict[tuple[str, ...], dict[int, float]] = {}
        for f in published(paper=paper):
            name, _, k = f.metric.partition("_")
            if k:
                key = (f.table, f.data, f.model, f.updater, name)
                lists.setdefault(key, {})[int(k)] = f.value
        for found in lists.values():
            assert [found[k] for k in sorted(found)] == sorted(found.values())


def by_name(figures: list[Figure]) -> dict[tuple[object, ...], float]:
    return {(f.data, f.model, f.updater, f.metric, f.scenario, f.period): f.value for f in figures}


@pytest.mark.parametrize(
    ("paper", "tables", "shared"),
    [("asmg", ("1", "2"), 16), ("incmsr", ("2", "4"), 24), ("ruie", ("1", "2"), 4)],
)
def test_two_tables_of_a_paper_agree(paper: str, tables: tuple[str, str], shared: int) -> None:
    first, second = (by_name(published(paper=paper, table=table)) for table in tables)
    both = first.keys() & second.keys()
    assert len(both) == shared
    assert {key: first[key] for key in both} == {key: second[key] for key in both}


@pytest.mark.parametrize(("scenario", "gain"), [("0", 4.38), ("2", 3.42), ("4", 1.83)])
def test_incmsr_gains_over_its_frozen_batch_model_as_its_text_says(
    scenario: str, gain: float
) -> None:
    cells = {(c["model"], c["updater"]): c for c in cells_of_published("kuairand")}
    means = [float(cells["star", u][f"AUC {scenario}"]) for u in ("incmsr", "frozen")]
    assert 100 * (means[0] - means[1]) == pytest.approx(gain, abs=0.011)


def test_the_reader_filters_and_refuses_a_name_that_is_not_there() -> None:
    (found,) = published("sobazaar", "auc", table="1", updater="finetune")
    assert found == Figure(
        "asmg", "1", "sobazaar", "embedding_mlp", "finetune", "auc", "all", None, 0.7998
    )
    assert len(published("kuairand", "auc", table="4", scenario="0", updater="incmsr")) == 6
    assert published("kuaisar", "auc") == []
    with pytest.raises(Mistake, match=r"metric=acu: published\.csv holds auc, "):
        published(metric="acu")


def test_a_log_is_known_by_its_base_name() -> None:
    assert base("kuairand-pure") == "kuairand" == base("kuairand_27k")
    assert same_logs("kuairand-1k") == ["kuairand"]
    assert same_logs("aliexpress-2") == ["aliexpress-2"]
    assert same_logs("aliexpress") == ["aliexpress-1", "aliexpress-2"]
    assert same_logs("synthetic") == []


@pytest.mark.parametrize("markdown", [False, True])
def test_the_table_names_its_source_and_warns(
    capsys: pytest.CaptureFixture, markdown: bool
) -> None:
    show(["kuairand-pure", "synthetic"], markdown)
    printed = capsys.readouterr().out
    assert "incmsr 2" in printed and "shared_bottom" in printed and "0.7287" in printed
    assert "may differ from those of kuairand-pure" in printed
    assert "no paper has figures on synthetic" in printed
    assert ("| from | model |" in printed) is markdown


@pytest.mark.parametrize("log", dict.fromkeys(f.data for f in published()))
def test_a_table_fits_eighty_columns(log: str, capsys: pytest.CaptureFixture) -> None:
    show([log])
    assert "…" not in capsys.readouterr().out


def test_the_report_adds_them_to_the_runs_own_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    about = Run("r0", "kuairand-pure", "star", "finetune", 0)
    results.write(tmp_path / results.FILE, [Row(*about, 7, "test", "all", "auc", 0.7, 9, 4)])
    record = {"about": about._asdict(), "overrides": [], "timings": [], "finished": True}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert report.main([str(tmp_path), "--published"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("kuairand-pure, star: means over") < printed.index(
        "the papers print for kuai"
    )
    assert report.main([str(tmp_path)]) == 0
    assert "papers" not in capsys.readouterr().out
