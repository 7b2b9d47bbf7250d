"""Tables and curves say what results.csv says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from incrs import report, results, tables
from incrs.console import terminal
from incrs.errors import Mistake
from incrs.report import main
from incrs.results import POOLED, Row, Run
from incrs.runs import find_runs
from incrs.significance import compare, holm
from incrs.summary import Line, metrics_of, summarise
from tests.conftest import CONF

DRAWN = np.random.default_rng(0).normal(0.7, 0.01, size=(3, 2, 4))  # updater, seed, period


def write_run(
    folder: Path,
    updater: str,
    seed: int,
    values: np.ndarray,
    overrides: list[str],
    run: str | None = None,
) -> None:
    about = Run(run or updater[:2] + "0", "log", "star", updater, seed)
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


def lines_of(folder: Path, role: str = "test") -> dict[str, Line]:
    lines = summarise(find_runs([folder]), "finetune", role, ("auc", "logloss"))
    assert [line.value for line in lines] == sorted((line.value for line in lines), reverse=True)
    return {line.updater: line for line in lines}


def test_a_line_is_the_mean_over_seeds_and_periods_of_a_role(sweep: Path) -> None:
    tested, tuned = lines_of(sweep), lines_of(sweep, "tune")
    for u, updater in enumerate(("finetune", "incmsr", "frozen")):
        values = DRAWN[u, :, 1:]
        assert tested[updater].value == pytest.approx(values.mean())
        assert tested[updater].deviation == pytest.approx(values.mean(axis=1).std(ddof=1))
        assert tested[updater].second == pytest.approx(1 - values.mean())
        assert tested[updater].by_scenario == {"home": pytest.approx(values.mean())}
        assert tuned[updater].value == pytest.approx(DRAWN[u, :, 0].mean())
    assert (tested["finetune"].seeds, tested["finetune"].periods) == (2, 3)
    assert tested["finetune"].seconds == 0.5


def test_differences_are_paired_over_seed_and_period(sweep: Path) -> None:
    lines = lines_of(sweep)
    gaps = (DRAWN[1] - DRAWN[0])[:, 1:]
    assert lines["incmsr"].gap == compare(gaps)
    assert lines["incmsr"].relative == pytest.approx(gaps.mean() / DRAWN[0, :, 1:].mean())
    p = [compare((DRAWN[u] - DRAWN[0])[:, 1:]).t_p for u in (1, 2)]  # type: ignore[union-attr]
    assert [lines["incmsr"].p, lines["frozen"].p] == holm(p)
    assert lines["finetune"].gap is None and lines["finetune"].baseline == "finetune"


def test_less_log_loss_is_an_improvement(sweep: Path) -> None:
    lines = summarise(find_runs([sweep]), "finetune", "test", ("logloss", "auc"))
    assert [line.value for line in lines] == sorted(line.value for line in lines)
    for line in lines:
        if line.gap is not None and line.relative is not None:
            assert (line.gap.difference < 0) == (line.relative > 0)


def test_a_run_that_is_not_finished_is_compared_over_what_it_has(sweep: Path) -> None:
    rows = results.read(sweep / "10" / "results.csv")
    results.write(sweep / "10" / "results.csv", [row for row in rows if row.period < 9])
    line = lines_of(sweep)["incmsr"]
    gaps = (DRAWN[1] - DRAWN[0])[:, 1:]
    gaps[0, 1:] = np.nan
    assert line.gap == compare(gaps)
    assert line.gap is not None and line.gap.pairs == 4


def test_settings_tell_runs_of_one_updater_apart(tmp_path: Path) -> None:
    for i, weight in enumerate((0.1, 0.01)):
        overrides = ["data=log", f"updater.incmsr.weight={weight}", "seed=0"]
        write_run(tmp_path / str(i), "incmsr", 0, DRAWN[i, 0], overrides, str(i))
    assert set(lines_of(tmp_path)) == {
        "incmsr weight=0.1",
        "incmsr weight=0.01",
    }


def test_a_line_is_compared_to_the_baseline_of_its_own_learning_rate(tmp_path: Path) -> None:
    for i, (updater, rate) in enumerate(
        [("finetune", 0.1), ("finetune", 0.2), ("incmsr", 0.2), ("batch", 0.3)]
    ):
        overrides = [f"updater={updater}", f"optimizer.lr={rate}"]
        write_run(tmp_path / str(i), updater, 0, DRAWN[i % 3, 0], overrides, str(i))
    lines = lines_of(tmp_path)
    assert lines["incmsr"].baseline == "finetune optimizer.lr=0.2"
    assert lines["finetune optimizer.lr=0.1"].baseline == "finetune optimizer.lr=0.1"
    assert lines["batch"].baseline is None
    (sentence,) = (
        one for one in report.sentences_of(list(lines.values()), "finetune") if "log" in one
    )
    assert sentence.startswith(
        "log, star: no differences of batch, for no finetune alone has their"
    )


def test_the_command_prints_tables_of_eighty_columns(
    sweep: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_width", 80)
    for seed in range(2):
        for i, k in enumerate((1, 2)):
            overrides = [f"updater.asmg.k={k}", "updater.asmg.learning_rate=0.0001"]
            values = DRAWN[i, seed] + 0.01
            write_run(sweep / f"asmg{k}{seed}", "asmg", seed, values, overrides, str(k))
            overrides = [f"optimizer.learning_rate={k}e-10", f"updater.spmf.fraction={k}e-10"]
            write_run(sweep / f"spmf{k}{seed}", "spmf", seed, values, overrides, f"s{k}")
    assert main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    shown, _, said = printed.partition("Pairs are over")
    assert max(map(len, shown.splitlines())) <= 80
    assert "fraction=1e-10" in shown and "asmg k=2" in shown and "d_z" in said
    assert shown.index("effect") < shown.index("rank p")


def test_the_page_lies_beside_the_runs_unless_told_otherwise(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(sweep)]) == 0
    assert f"for a browser: {sweep / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    assert main([str(sweep), "--out", str(sweep / "mine.html"), "--markdown"]) == 0
    assert (sweep / "mine.html").read_bytes()[:15] == (sweep / "report.html").read_bytes()[:15]
    picture = sweep / "mine.png"
    assert main([str(sweep), "--out", str(sweep / "mine.html"), "--picture", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([str(sweep), "--picture", "mine.doc"]) == 2
    assert "give a file that ends in .png, .svg or .pdf" in capsys.readouterr().err
    assert main([str(sweep), "--out", str(sweep / "nowhere" / "mine.html")]) == 2
    assert "mine.html cannot be written (No such file" in capsys.readouterr().err


def test_markdown_and_latex_hold_a_line_for_each_updater(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(sweep), "--markdown", "--baseline", "frozen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | updater | seeds | AUC | % | minus frozen (95%) |")
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert main([str(sweep), "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"\begin{tabular}{ll" + "r" * (lines[2].count("&") - 1) + "}"
    assert lines[2].startswith(r"model & updater & seeds & AUC & \% & minus finetune (95\%) &")
    assert len({line.count("&") for line in lines if "&" in line}) == 1


def test_a_star_stands_behind_p_and_in_brackets_where_pairs_go_together(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    rival = dice.normal(0.7, 0.01, size=(5, 1)) + np.zeros((5, 4))
    noise = dice.normal(scale=1e-4, size=(5, 4))
    better = rival + 0.01 + noise
    by_seed = rival + np.array([[0.03], [-0.01], [0.01], [0.02], [-0.001]]) + noise
    for updater, values in {"finetune": rival, "incmsr": better, "sml": by_seed}.items():
        for seed in range(5):
            write_run(tmp_path / f"{updater}{seed}", updater, seed, values[seed], [])
    lines = lines_of(tmp_path)
    assert (lines["incmsr"].star, lines["sml"].star, lines["finetune"].star) == ("*", "(*)", "")
    cells = tables.cells_of([lines["incmsr"]], "finetune", ("auc", "logloss"))[0]
    assert cells["p"] == "<.001*"
    (tex,) = tables.as_latex(["p"], [[cells["p"]]])[4:5]
    assert tex == r"$<$.001$^{*}$ \\"


def test_a_difference_of_a_hundred_thousandth_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(scale=1e-5, size=(5, 4))
    for updater, more in {"finetune": 0.0 * noise, "incmsr": noise - noise.mean() + 3e-5}.items():
        for seed in range(5):
            write_run(tmp_path / f"{updater}{seed}", updater, seed, 0.7 + more[seed], [])
    line = lines_of(tmp_path)["incmsr"]
    (cells,) = tables.cells_of([line], "finetune", ("auc", "logloss"))
    assert re.fullmatch(r"\+0\.0000[2-4] ± 0\.0000[01]", cells["minus finetune (95%)"])
    assert float(cells["cautious ±"]) > 0


def test_identical_runs_and_single_seeds_say_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for updater in ("finetune", "incmsr"):
        write_run(tmp_path / updater, updater, 0, DRAWN[0, 0], [])
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "no difference" in printed and "nan" not in printed
    assert "do not tell how another seed would come out" in " ".join(printed.split())


def test_without_its_baseline_a_report_says_so(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(sweep), "--baseline", "sml"]) == 2
    assert "--baseline sml: there is no such line; there are " in capsys.readouterr().err
    for seed in range(2):
        shutil.rmtree(sweep / f"0{seed}")
    assert main([str(sweep)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "log, star: no differences, for there is no finetune; --baseline takes one of" in printed


def test_periods_of_runs_on_other_rows_are_not_averaged(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    file = sweep / "01" / "run.json"
    record = json.loads(file.read_text()) | {"data": {"fingerprint": "other", "roles": []}}
    file.write_text(json.dumps(record))
    lines = summarise(find_runs([sweep]), "finetune", "test", ("auc", "logloss"))
    assert {(one.data, one.updater): one.seeds for one in lines} == {
        ("log #1", "finetune"): 1,
        ("log #1", "incmsr"): 2,
        ("log #1", "frozen"): 2,
        ("log #2", "finetune"): 1,
    }
    assert main([str(sweep)]) == 0
    assert "other rows than #1, so they are not compared" in " ".join(
        capsys.readouterr().out.split()
    )


def commands_of(text: str) -> list[str]:
    """Return the commands that a text prints, whole where they go over lines, without comments."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^ {4}(python -m incrs\.\w+.*)$", joined, re.MULTILINE)
    return [re.split(r"\s+#", one)[0] for one in found]


COMMANDS = dict.fromkeys(commands_of((Path(__file__).parent.parent / "README.md").read_text()))


@pytest.mark.parametrize("command", [one for one in COMMANDS if "incrs.report" in one])
def test_every_report_that_the_readme_prints_parses(command: str) -> None:
    given = report.parser().parse_args(shlex.split(command)[3:])
    assert all(folder.parts[0] == "multirun" for folder in given.folders)


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if "incrs.train" in one and "--config-dir" not in one]
)
def test_every_run_that_the_readme_prints_composes(command: str) -> None:
    given = get_args_parser().parse_args(shlex.split(command)[3:])
    parsed = OverridesParser.create().parse_overrides(given.overrides)
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for i in range(max(map(len, values), default=1)):  # every value once, not every combination
            compose("train", [some[i % len(some)] for some in values])


def test_the_readme_prints_commands() -> None:
    assert len([one for one in COMMANDS if "incrs.report" in one]) >= 2
    assert len([one for one in COMMANDS if "incrs.train" in one]) >= 5


def test_runs_that_rank_are_compared_by_recall_unless_asked_otherwise(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in sweep.rglob("results.csv"):
        rows = results.read(file)
        ranks = [("recall_20", "auc"), ("ndcg_20", "logloss")]
        rows += [r._replace(metric=new) for new, old in ranks for r in rows if r.metric == old]
        results.write(file, rows)
    assert main([str(sweep), "--markdown"]) == 0
    heads = capsys.readouterr().out.splitlines()[0]
    assert heads.startswith("| model | updater | seeds | Recall@20 | % | minus finetune (95%) |")
    assert "| NDCG@20 | s/period |" in heads and heads.endswith("| Recall@20 home |")
    assert main([str(sweep), "--markdown", "--metric", "logloss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | updater | seeds | log loss | % | minus finetune (95%) |")
    values = [float(line.split(" | ")[3].split()[0]) for line in lines[2:]]
    assert values == sorted(values)
    assert main([str(sweep), "--metric", "recall_7"]) == 2
    assert "no such number, they have auc, logloss, recall_20, ndcg_20" in capsys.readouterr().err


def test_runs_that_seek_are_compared_by_the_widest_hit_rate(sweep: Path) -> None:
    for file in sweep.rglob("results.csv"):
        rows = results.read(file)
        for name in ("hr_5", "hr_20", "ndcg_20"):
            rows += [r._replace(metric=name) for r in rows if r.metric == "auc"]
        results.write(file, rows)
    assert metrics_of(find_runs([sweep])) == ("hr_20", "ndcg_20")
    assert metrics_of(find_runs([sweep]), "ndcg_20") == ("ndcg_20", "hr_20")
    results.write(file, [row for row in rows if row.metric in ("auc", "logloss")])
    assert metrics_of(find_runs([sweep])) == ("auc", "logloss")


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run with results" in capsys.readouterr().err
    with pytest.raises(Mistake):
        find_runs([tmp_path / "nowhere"])
