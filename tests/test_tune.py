"""The search: what it tries, what it is judged by, and that a kill, a prune or a mistake leaves it whole."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from incrs import results, tune
from incrs.data.synthetic import SyntheticSource
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.judge import Judge, Stopped
from incrs.period import Role
from incrs.results import Row
from incrs.results import read as read_rows
from incrs.search import Choice, Range, flat, read, rounded, split
from tests.commands import command, forked, fresh
from tests.conftest import CONF

optuna = pytest.importorskip("optuna")

SMALL = [
    *("model=mf", "updater=finetune", "trainer=cpu"),
    *("data.rows_per_period=300", "data.users=60", "data.items=50"),
    *("data.pretrain=2", "data.tune=3", "batch_size=100", "warmup_epochs=1"),
]
RATE = {"optimizer.lr": "log(1e-4,1e-1)"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("log(1e-4, 1e-2)", Range(1e-4, 1e-2, True, False)),
        ("linear(0,0.5)", Range(0, 0.5, False, False)),
        ("int(1,6)", Range(1, 6, False, True)),
        ("logint(4,64)", Range(4, 64, True, True)),
        ("star,dcn", Choice(("star", "dcn"))),
        ("choice(star, dcn)", Choice(("star", "dcn"))),
        ("finetune,[incmsr,asmg]", Choice(("finetune", "[incmsr,asmg]"))),
        ([4, 8.5, None, True, "ple", [1, 2]], Choice(("4", "8.5", "null", "true", "ple", "[1,2]"))),
    ],
)
def test_what_to_try_is_read_from_text(given: object, meant: object) -> None:
    assert read("model.x", given) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("log(0,1)", "above 0"),
        ("log(1,0.1)", "lower end first"),
        ("linear(1,1)", "lower end first"),
        ("linear(0,inf)", "lower end first"),
        ("int(1.5,3)", "two whole numbers"),
        ("linear(1,2,3)", "two numbers"),
        ("log(a,b)", "two numbers"),
        ("normal(0,1)", "log\\(LOW,HIGH\\)"),
        ("log(1,2", "log\\(LOW,HIGH\\)"),
        ("star", "two choices or more"),
        ("star,star", "each once"),
        ("star,", "two choices"),
        ([], "two choices"),
        (3, "log\\(LOW,HIGH\\)"),
    ],
)
def test_a_bad_range_is_a_sentence(given: object, said: str) -> None:
    with pytest.raises(Mistake, match=rf"^search\.model\.x=.*{said}"):
        read("model.x", given)


def test_settings_may_be_nested_and_numbers_are_short() -> None:
    assert flat({"a": {"b": "1,2"}, "c.d": [1]}) == {"a.b": "1,2", "c.d": [1]}
    assert split("a,[b,{c: d,e: f}],'g,h'") == ["a", "[b,{c: d,e: f}]", "'g,h'"]
    assert rounded(0.00123456, Range(1e-4, 1e-2, True, False)) == 0.001235
    assert rounded(0.12347, Range(0.0, 0.12347, False, False)) == 0.12347
    assert rounded(7, Range(1, 9, False, True)) == 7


def test_the_command_line_gives_up_what_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "asked", {})
    rest = tune.take_search(["model=mf", "search.optimizer.lr=log(1,2)", "trials=3"])
    assert rest == ["model=mf", "trials=3"]
    assert tune.asked == {"optimizer.lr": "log(1,2)"}


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    """Stand where a job of Hydra's stands."""
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = before


def search(folder: Path, *changes: str, tried: dict[str, object] = RATE) -> list[dict[str, str]]:
    """Search in this process; return the lines of trials.csv."""
    folder.mkdir(exist_ok=True)
    tune.search(tune.composed([*SMALL, *changes]), folder, tried)
    return trials_of(folder)


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in csv.DictReader(file)]


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="incrs", storage=f"sqlite:///{folder}/study.db")


def test_no_trial_reads_beyond_the_tune_periods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()

    def tripwire(self: SyntheticSource, t: int, honest=SyntheticSource.read):
        assert t < 2 + 3, f"period {t} is a test period"
        seen.add(t)
        return honest(self, t)

    monkeypatch.setattr(SyntheticSource, "read", tripwire)
    lines = search(tmp_path / "a", "trials=2", "data.test=4")
    assert seen == set(range(5))
    study = study_of(tmp_path / "a")
    for line, trial in zip(lines, study.trials, strict=True):
        rows = read_rows(tmp_path / "a" / line["trial"] / "results.csv")
        aucs = [row.value for row in rows if (row.metric, row.scenario) == ("auc", "all")]
        assert {row.role for row in rows} == {Role.TUNE}
        assert len(aucs) == 3
        assert float(line["auc"]) == trial.value == pytest.approx(sum(aucs) / 3, abs=1e-12)
        means = [sum(aucs[: n + 1]) / (n + 1) for n in range(3)]
        assert list(trial.intermediate_values.values()) == pytest.approx(means)
    best = max(lines, key=lambda line: float(line["auc"]))
    printed = capsys.readouterr().out
    final = next(line for line in printed.splitlines() if "incrs.train -m" in line)
    assert f"optimizer.lr={best['optimizer.lr']} seed=0,1,2,3,4" in final
    assert "data.test=4" in shlex.split(final)
    assert (tmp_path / "a" / "trials.png").stat().st_size > 5000

    again = search(tmp_path / "b", "trials=2", "data.test=4")
    assert again == lines  # the same seed gives the same trials
    record = json.loads((tmp_path / "a" / "0" / "run.json").read_text())
    assert not {"search", "trials", "metric", "pruner", "sampler"} & set(record["config"])
    assert record["finished"]


@pytest.mark.slow
def test_a_hopeless_trial_is_pruned_and_keeps_what_it_had(tmp_path: Path) -> None:
    changes = ["trials=3", "pruner.n_startup_trials=1", "metric=logloss"]
    lines = search(tmp_path / "a", *changes, tried={"optimizer.lr": "1.0,0.001"})
    pruned = [line for line in lines if line["state"] == "pruned"]
    assert pruned
    for line in pruned:
        folder = tmp_path / "a" / line["trial"]
        assert not json.loads((folder / "run.json").read_text())["finished"]
        scored = {row.period for row in read_rows(folder / "results.csv")}
        assert len(scored) == int(line["periods"]) < 3
        assert study_of(tmp_path / "a").trials[int(line["trial"])].state.name == "PRUNED"
    never = search(tmp_path / "b", "trials=2", "pruner=null", tried={"optimizer.lr": "1.0,0.001"})
    assert {line["state"] for line in never} == {"whole"}


@pytest.mark.slow
def test_a_setting_that_a_choice_does_not_have_is_left_out(tmp_path: Path) -> None:
    tried = {"model": "mf,embedding_mlp", "model.hidden": [[4], [8]], "epochs": "int(1,2)"}
    lines = search(tmp_path / "a", "trials=4", "metric=logloss", tried=tried)
    assert {line["model"] for line in lines} == {"mf", "embedding_mlp"}
    for line in lines:
        assert (line["model.hidden"] == "") == (line["model"] == "mf")
        assert line["epochs"] in ("1", "2")
    losses = {line["trial"]: float(line["logloss"]) for line in lines if line["state"] == "whole"}
    assert min(losses, key=losses.get) == str(study_of(tmp_path / "a").best_trial.number)


@pytest.mark.parametrize(
    ("changes", "tried", "said"),
    [
        ([], {}, "^search: nothing to try"),
        ([], {"optimizer.lrr": "1,2"}, "no such setting; did you mean optimizer.lr?"),
        ([], {"data.tune": "1,2"}, "data must be the same in all trials"),
        ([], {"seed": "1,2"}, "seed must be the same"),
        ([], {"model": "log(1,2)"}, "model=A,B"),
        (["data.tune=0"], RATE, "^data.tune=0: settings are chosen by tune periods"),
        (["trials=0"], RATE, "^trials=0: give a whole number"),
        (["trainer.devices=2"], RATE, "^trainer.devices=2: a trial is trained by one process"),
        (["metric=auk"], RATE, "^metric=auk: the runs have no such number, they have auc,"),
        ([], {"batch_size": "0,-1"}, "^batch_size="),
    ],
)
def test_a_mistake_is_a_sentence(
    changes: list[str], tried: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(Mistake, match=said):
        search(tmp_path, *changes, tried=tried)


def test_without_optuna_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Mistake, match=r"pip install 'incrs\[optuna\]'"):
        search(tmp_path)


@pytest.mark.slow
def test_a_combination_that_cannot_be_run_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = {"unknown_rate": [0.1, 0.2, 2, 0.3]}
    lines = search(tmp_path, "trials=3", tried=tried)
    failed = [line for line in lines if line["state"] == "failed"]
    assert failed
    assert {line["unknown_rate"] for line in failed} == {"2"}
    assert "failed: unknown_rate=2" in capsys.readouterr().out


@pytest.mark.parametrize("known", [0, 1])
def test_a_trial_that_was_stopped_when_it_was_hopeless_is_so_when_it_goes_on(
    known: int, tmp_path: Path
) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=2)
    )
    for _ in range(2):
        earlier = study.ask()
        for step in range(3):
            earlier.report(0.7, step)
        study.tell(earlier, 0.7)
    trial = study.ask()
    for step in range(known + 1):  # what Optuna was told may be a period ahead of the files
        trial.report(0.6, step)
    row = Row("r", "log", "mf", "finetune", 0, 4, "tune", "all", "auc", 0.6, 90, 9)
    results.write(tmp_path / results.FILE, [row])
    judge = Judge(RunFolder(tmp_path), trial, "auc", periods=3)
    judge.run_begins()
    if not known:
        with pytest.raises(Stopped):
            judge.period_begins(5, "day 5", 1)
    else:
        judge.period_begins(5, "day 5", 1)


SLOWER = [
    *SMALL,
    "model=shared_bottom",
    "data.rows_per_period=1500",
    "pruner.n_startup_trials=2",
    "trials=5",
    "search.optimizer.lr=log(1e-4,1e-1)",
]


def until(folder: Path, pattern: str, process: subprocess.Popen) -> Path:
    """Wait until there is such a file below the folder of the search; return that folder."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        if list(folder.glob(f"multirun/*/*/{pattern}")):
            return next(folder.glob("multirun/*/*"))
        time.sleep(0.005)
    raise AssertionError(f"the search ended or hung before there was {pattern}")


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_trials(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    done = forked(whole, *SLOWER, door="tune")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    (undisturbed,) = whole.glob("multirun/*/*")

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(SLOWER, "incrs.tune"), cwd=tmp_path, **pipes)
    folder = until(tmp_path, "1/serving/period=0002*", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = subprocess.Popen(command([f"resume={folder}"], "incrs.tune"), cwd=tmp_path, **pipes)
    until(tmp_path, "3/serving/period=0002*", process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"to go on: python -m incrs.tune resume={folder}" in printed
    assert "Traceback" not in errors
    refused = forked(tmp_path, f"resume={folder}", "model=mf", door="tune")
    assert refused.returncode == 2
    assert "takes no other setting but trials=" in refused.stderr
    done = fresh(tmp_path, f"resume={folder}", module="incrs.tune")
    assert done.returncode == 0, done.stderr
    assert trials_of(folder) == trials_of(undisturbed)
    for number in range(5):
        mine, other = (place / str(number) / "results.csv" for place in (folder, undisturbed))
        assert mine.read_bytes() == other.read_bytes()

    line = next(one for one in trials_of(folder) if one["state"] == "whole")
    record = json.loads((folder / line["trial"] / "run.json").read_text())
    single = forked(tmp_path / "whole", *shlex.split(record["command"])[3:])
    assert single.returncode == 0, single.stderr
    (same,) = (file for file in whole.glob("multirun/*/*/results.csv"))
    assert same.read_bytes() == (folder / line["trial"] / "results.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    few = [*SMALL, "trials=2", "search.optimizer.lr=log(1e-4,1e-1)"]
    assert forked(tmp_path, *few, door="tune").returncode == 0
    (folder,) = tmp_path.glob("multirun/*/*")
    more = command([f"resume={folder}", "trials=9"], "incrs.tune")
    both = [subprocess.Popen(more, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(timeout=200) for one in both] == [0, 0]
    trials = study_of(folder).trials
    assert len(trials) == 9
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 9
