"""Tables and curves say what results.csv says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from incrs import report, results
from incrs.errors import Mistake
from incrs.results import POOLED, Row, Run

DRAWN = np.random.default_rng(0).normal(0.7, 0.01, size=(3, 2, 4))  # updater, seed, period


def write_run(
    folder: Path, updater: str, seed: int, values: np.ndarray, overrides: list[str]
) -> None:
    about = Run(updater[:2] + "0", "log", "star", updater, seed)
    rows = []
    for t, value in enumerate(values):
        role = "tune" if t == 0 else "test"
        for scenario in (POOLED, "home"):
            rows.append(Row(*about, t + 7, role, scenario, "auc", float(value), 100, 50))
            rows.append(Row(*about, t + 7, role, scenario, "logloss", 1 - float(value), 100, 50))
    folder.mkdir(parents=True)
    results.write(folder / "results.csv", rows)
    timings = [{"period": t, "fit_seconds": 9.0 if t == 6 else 0.5} for t in range(6, 11)]
    record = {
        "about": about._asdict(),
        "overrides": overrides,
        "timings": timings,
        "finished": True,
    }
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for u, updater in enumerate(("finetune", "incmsr", "frozen")):
        for seed in range(2):
            write_run(tmp_path / f"{u}{seed}", updater, seed, DRAWN[u, seed], [f"seed={seed}"])
    return tmp_path


def lines_of(folder: Path, role: str = "test") -> dict[str, report.Line]:
    lines = report.summarise(report.find_runs([folder]), "finetune", role, ("auc", "logloss"))
    assert [line.value for line in lines] == sorted((line.value for line in lines), reverse=True)
    return {line.updater: line for line in lines}


def test_a_line_is_the_mean_over_seeds_and_periods_of_a_role(sweep: Path) -> None:
    tested, tuned = lines_of(sweep), lines_of(sweep, "tune")
    for u, updater in enumerate(("finetune", "incmsr", "frozen")):
        assert tested[updater].value == pytest.approx(DRAWN[u, :, 1:].mean())
        assert tested[updater].by_scenario == {"home": pytest.approx(DRAWN[u, :, 1:].mean())}
        assert tuned[updater].value == pytest.approx(DRAWN[u, :, 0].mean())
    assert tested["finetune"].seeds == 2
    assert tested["finetune"].seconds == 0.5


def test_differences_are_paired_over_seed_and_period(sweep: Path) -> None:
    line = lines_of(sweep)["incmsr"]
    gaps = (DRAWN[1] - DRAWN[0])[:, 1:].ravel()
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert line.difference == pytest.approx(gaps.mean())
    assert line.half_width == pytest.approx((high - low) / 2)


def test_settings_tell_runs_of_one_updater_apart(tmp_path: Path) -> None:
    for i, weight in enumerate((0.1, 0.01)):
        overrides = ["data=log", f"updater.incmsr.weight={weight}", "seed=0"]
        write_run(tmp_path / str(i), "incmsr", 0, DRAWN[i, 0], overrides)
        record = json.loads((tmp_path / str(i) / "run.json").read_text())
        record["about"]["run"] = str(i)
        (tmp_path / str(i) / "run.json").write_text(json.dumps(record))
    assert set(lines_of(tmp_path)) == {
        "incmsr weight=0.1",
        "incmsr weight=0.01",
    }


def test_the_command_prints_a_table_and_markdown(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    assert report.main([str(sweep)]) == 0
    assert "incmsr" in capsys.readouterr().out
    assert report.main([str(sweep), "--markdown", "--baseline", "frozen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | updater | seeds | AUC | minus frozen (95%)")
    assert len(lines) == 5


def test_runs_that_rank_are_compared_by_recall_unless_asked_otherwise(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in sweep.rglob("results.csv"):
        rows = results.read(file)
        ranks = [("recall_20", "auc"), ("ndcg_20", "logloss")]
        rows += [r._replace(metric=new) for new, old in ranks for r in rows if r.metric == old]
        results.write(file, rows)
    assert report.main([str(sweep), "--markdown"]) == 0
    heads = capsys.readouterr().out.splitlines()[0]
    assert heads.startswith(
        "| model | updater | seeds | Recall@20 | minus finetune (95%) | NDCG@20"
    )
    assert heads.endswith("| Recall@20 home |")
    assert report.main([str(sweep), "--markdown", "--metric", "logloss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "| model | updater | seeds | log loss | minus finetune (95%) | AUC |"
    )
    values = [float(line.split(" | ")[3]) for line in lines[2:]]
    assert values == sorted(values)
    assert report.main([str(sweep), "--metric", "recall_7"]) == 2
    assert "no such number, they have auc, logloss, recall_20, ndcg_20" in capsys.readouterr().err


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "no run with results" in capsys.readouterr().err
    with pytest.raises(Mistake):
        report.find_runs([tmp_path / "nowhere"])
