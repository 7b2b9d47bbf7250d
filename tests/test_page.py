"""The page holds the summary's numbers, shows names as text, and says what it does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from incrs import figures, page, results, sensitivity
from incrs.answer import answers
from incrs.report import main, summary_of
from incrs.results import POOLED, Row, Run
from incrs.runs import find_runs

EMPTY = {"meta", "link", "br", "input"}
UPDATERS = {"finetune": 0.0, "incctr": 0.0002, "incmsr": 0.004, "batch": -0.006}
"""What each adds to finetune's AUC."""


def write_sweep(
    folder: Path,
    seeds: int = 5,
    data: str = "log",
    model: str = "star",
    updaters: dict[str, float] | None = None,
    scenarios: Sequence[str] = ("home", "search"),
    roles: Sequence[str] = ("tune", *["test"] * 6),
    settings: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write the run folders of a sweep, as training leaves them."""
    random = np.random.default_rng(len(model))
    days = random.normal(0, 0.005, size=len(roles))
    own_seed = random.normal(0, 0.001, size=seeds)
    for place, (updater, more) in enumerate((updaters or UPDATERS).items()):
        for seed in range(seeds):
            config = {"seed": seed, "updater": {updater: settings or {}}}
            named = f"{data} {model} {updater} {json.dumps(settings)}"
            about = Run(named, data, model, updater, seed)
            rows = []
            for t, role in enumerate(roles, 1):
                for scenario in (POOLED, *scenarios):
                    auc = 0.7 + days[t - 1] + own_seed[seed] + more + random.normal(0, 0.0005)
                    rows += [
                        Row(*about, t, role, scenario, "auc", auc, 100, 50),
                        Row(*about, t, role, scenario, "logloss", 1.3 - auc, 100, 50),
                    ]
            rows.append(Row(*about, 1, roles[0], "rare", "auc", None, 1, 0))
            cost = {"fit_seconds": 0.5 * 2**place, "learn_next_seconds": 0.0}
            timings = [{"period": 0, "scored": "day 1", "fit_seconds": 9.0}]
            timings += [
                {"period": t, "scored": f"day {t + 1}", **cost} for t in range(1, len(roles))
            ]
            record = {
                "command": f"python -m incrs.train -m data={data}",
                "overrides": [f"updater={updater}", f"seed={seed}"],
                "about": about._asdict(),
                "config": config,
                "versions": {"incrs": "0.1.0"},
                "timings": timings,
                "finished": finished,
                "data": {"fingerprint": data, "roles": ["pretrain", *roles]},
            }
            at = folder / f"{len(list(folder.glob('*')))}"
            at.mkdir(parents=True)
            (at / "run.json").write_text(json.dumps(record))
            results.write(at / results.FILE, rows)
    return folder


class Read(HTMLParser):
    """Reads a page strictly: every tag closes where it should."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str | None]] = []
        self.text = self.json = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [str(found["id"])] if "id" in found else []
        assert not [name for name in found if name.startswith("on")]
        assert not str(found.get("src", found.get("href", "#"))).startswith(("http", "//"))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append(found.get("data-value"))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data
        elif data.startswith('{"metric"'):
            self.json = data


def read(folder: Path, *asked: Any) -> Read:
    runs = find_runs([folder])
    return Read(page.page(runs, *summary_of(runs, *asked)))


def said(folder: Path, role: str | None = None, metric: str | None = None) -> str:
    """Return headline, reason and cost of the one log and model of a sweep."""
    runs = find_runs([folder])
    lines, baseline, role, metrics = summary_of(runs, None, role, metric)
    tuned = figures.means(figures.of_metric(runs, metrics[0]), "tune") if role == "test" else {}
    (found,) = answers(lines, baseline, "AUC", metrics[0] == "auc", tuned)
    return f"{found.headline}. {found.because} {found.cost}"


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    found = read(write_sweep(tmp_path))
    assert len(found.ids) == len(set(found.ids)) and {"all", "curves", "cost", "made"} <= {
        *found.ids
    }
    assert found.tags.count("script") == 4 and not {"img", "iframe", "object"} & {*found.tags}
    assert "{{" not in found.text
    runs = find_runs([tmp_path])
    assert "default-src 'none'" in page.page(runs, *summary_of(runs))


def test_numbers_in_the_page_are_those_of_the_summary(tmp_path: Path) -> None:
    runs = find_runs([write_sweep(tmp_path)])
    lines, *by = summary_of(runs)
    found = Read(page.page(runs, lines, *by))
    for line, row in zip(lines, found.rows[1 : 1 + len(lines)], strict=True):
        gap = line.gap
        shown = [line.value, *([gap.difference, gap.difference, gap.effect, line.p] if gap else [])]
        shown += [line.seconds, line.second, *line.by_scenario.values(), line.seeds]
        assert [float(value) for value in row if value] == shown
    points = json.loads(found.json)["groups"][0]["points"]
    assert [p["value"] for p in points] == [round(line.value, 6) for line in lines]


def test_names_show_as_text_wherever_they_stand(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    names = {"finetune": 0.0, "</script><img src=x onerror=alert(2)>": 0.1, "{{data}}<!--": 0.2}
    write_sweep(tmp_path, 2, bad, '"><i>m&amp;', names, ("<u>home", "'"), settings={"<k>": 1})
    write_sweep(tmp_path, 2, bad, '"><i>m&amp;', names, ("<u>home", "'"), settings={"<k>": 2})
    runs = find_runs([tmp_path])
    found = Read(page.page(runs, *summary_of(runs)))
    assert found.tags.count("script") == 4 and not {"img", "i", "u", "k"} & {*found.tags}
    assert bad in found.text and '"><i>m&amp;' in found.text and "{{data}}<!--" in found.text
    data = json.loads(found.json)
    assert data["groups"][0]["name"] == f'{bad} · "><i>m&amp;'
    assert "scenario <u>home" in data["groups"][0]["scenarios"]
    assert not {"<", ">", "&"} & {*found.json}


def test_a_reliably_better_updater_is_the_answer_with_its_interval_and_cost(tmp_path: Path) -> None:
    words = said(write_sweep(tmp_path))
    assert words.startswith("Deploy incmsr. incmsr differs from finetune by +0.00")
    assert "95% interval +0.00" in words and "Holm-corrected p < 0.001" in words
    assert "incmsr takes 2.00 s a period, 4.0 times finetune's 0.50 s." in words
    assert "Deploy incmsr" in read(tmp_path).text


def test_without_a_better_one_the_baseline_stays(tmp_path: Path) -> None:
    words = said(write_sweep(tmp_path, updaters={"incctr": 0.0, "finetune": 0.0, "batch": -0.006}))
    assert words.startswith(
        "Deploy finetune. None of the other 2 is reliably better. The nearest, incctr,"
    )
    assert "incctr costs less and is not reliably worse." in words


def test_where_less_is_better_the_answer_turns_round(tmp_path: Path) -> None:
    gains = {name: -more for name, more in UPDATERS.items()}
    assert said(write_sweep(tmp_path, updaters=gains), metric="logloss").startswith("Deploy batch")


def test_one_seed_settles_nothing(tmp_path: Path) -> None:
    words = said(write_sweep(tmp_path, seeds=1))
    assert words.startswith(
        "Not settled: one seed. incmsr has the best AUC, but one seed cannot show"
    )
    assert "Not settled" in read(tmp_path).text


def test_without_a_baseline_nothing_is_claimed(tmp_path: Path) -> None:
    write_sweep(tmp_path, updaters={"incctr": 0.0, "batch": -0.1})
    assert "there are no runs of finetune to test it against" in said(tmp_path)
    assert "minus" not in "".join(re.findall("<th.*?</th>", "".join(read(tmp_path).text)))


def test_a_lone_run_has_a_page(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=1, updaters={"finetune": 0.0}, roles=("test",))
    assert "Only finetune was run" in read(tmp_path).text


def test_settings_are_chosen_on_tune_periods_not_by_what_is_reported(tmp_path: Path) -> None:
    runs = [("finetune", 0, 0.7, 0.7), ("asmg", 1, 0.73, 0.71), ("asmg", 2, 0.72, 0.75)]
    random = np.random.default_rng(0)
    for updater, k, tune, test in runs:
        write_sweep(tmp_path, 3, updaters={updater: 0.0}, settings={"k": k})
        for file in sorted(tmp_path.glob("*/results.csv"))[-3:]:
            rows = results.read(file)
            level = {"tune": tune, "test": test}
            results.write(
                file, [r._replace(value=level[r.role] + random.normal(0, 1e-3)) for r in rows]
            )
    assert said(tmp_path).startswith("Deploy asmg k=1")
    found = read(tmp_path)
    (sweep,) = json.loads(found.json)["sweeps"]
    assert (sweep["head"], sweep["lines"][0]["x"]) == ("k", ["1", "2"])
    assert "Settings are chosen on the tune periods" in found.text


def test_what_is_missing_and_what_is_for_tuning_is_said(tmp_path: Path) -> None:
    write_sweep(tmp_path, finished=False, roles=("tune", "tune"))
    found = read(tmp_path)
    assert (
        "What is missing" in found.text and "is not finished: 2 of 2 periods scored" in found.text
    )
    assert "only test periods decide" in found.text


def test_several_logs_and_models_have_an_answer_each(tmp_path: Path) -> None:
    write_sweep(tmp_path, model="star")
    write_sweep(tmp_path, model="ple", updaters={"finetune": 0.0, "batch": -0.01})
    found = read(tmp_path)
    assert "It depends on the model" in found.text
    assert [g["name"] for g in json.loads(found.json)["groups"]] == ["log · star", "log · ple"]


def test_differences_of_a_period_are_paired_over_seeds(tmp_path: Path) -> None:
    table = figures.of_metric(find_runs([write_sweep(tmp_path)]), "auc")
    drawn = figures.curves(table, {("log", "star", "batch"): "finetune"})
    values = {
        name: table.filter(label=name, scenario=POOLED, period=3).sort("seed")["value"].to_numpy()
        for name in ("batch", "finetune")
    }
    one = drawn.filter(label="batch", scenario=POOLED, period=3).row(0, named=True)
    test = stats.ttest_rel(values["batch"], values["finetune"]).confidence_interval(0.95)
    assert np.allclose([one["gapLow"], one["gapHigh"]], test)
    assert np.allclose([one["low"], one["high"]], [values["batch"].min(), values["batch"].max()])
    assert drawn.filter(label="finetune")["gap"].is_null().all()


def test_wide_settings_stand_on_a_log_scale_with_zero_at_its_left() -> None:
    tried = [({"w": w, "k": k}, float(w)) for w in ("0", "0.001", "1") for k in ("a", "b")]
    chart = sensitivity.chart_of("w", {"w": "weight", "k": "k"}, tried)
    assert chart and chart["ticks"] == [[-3.5, "0"], [-3.0, "0.001"], [0.0, "1"]] and chart["log"]
    assert [line["name"] for line in chart["lines"]] == ["k=a", "k=b"]
    even = [({"w": str(w)}, 0.5) for w in range(1, 21)]
    chart = sensitivity.chart_of("w", {"w": "w"}, even)
    assert chart and not chart["log"]


def test_many_other_settings_become_means_and_lone_points_no_chart() -> None:
    many = [({"w": w, "k": str(k)}, float(k)) for w in ("1", "2") for k in range(9)]
    chart = sensitivity.chart_of("w", {"w": "w", "k": "k"}, many)
    assert chart and chart["means"] and [line["value"] for line in chart["lines"]] == [[4.0, 4.0]]
    assert sensitivity.chart_of("w", {"w": "w"}, [({"w": "1"}, 0.5)]) is None


def test_two_settings_make_a_map_with_holes_where_nothing_was_run() -> None:
    tried = [
        ({"k": "2", "h": "10"}, 0.5),
        ({"k": "2", "h": "10"}, 0.7),
        ({"k": "10", "h": "4"}, 0.1),
    ]
    found = sensitivity.map_of("k", "h", {"k": "k", "h": "h"}, tried)
    assert (found["x"], found["y"]) == (["2", "10"], ["4", "10"])
    assert found["value"] == [[None, 0.1], [0.6, None]]


def test_papers_stand_beside_runs_of_their_log(tmp_path: Path) -> None:
    updaters = {"finetune": 0.0, "incmsr": 0.001, "frozen": -0.01}
    write_sweep(tmp_path, data="kuairand-pure", updaters=updaters, scenarios=("0", "7"))
    found = read(tmp_path)
    assert "What papers print" in found.text and "gap printed" in found.text
    shown = [row for row in found.rows if len(row) == 9 and row[4]]
    assert len(shown) == 2  # incmsr and frozen in scenario 0
    assert "paper" not in read(write_sweep(tmp_path / "own", data="mine")).ids


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
