"""task=ranking from the command line: one process, two, killed and resumed; mistakes are a sentence."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from incrs import results
from tests.commands import command, forked, fresh, run_folders
from tests.test_processes import TWO, assert_same
from tests.test_train import wait_for

pytestmark = pytest.mark.slow

WHAT = [
    *("task=ranking", "task.candidates=50", "task.cutoffs=[5,10]", "updater=incctr", "model=dcn"),
    *("data.rows_per_period=1200", "data.users=200", "data.items=150", "data.periods=9"),
    *("batch_size=300", "trainer.precision=64-true"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a run by one process, and what it printed."""
    where = tmp_path_factory.mktemp("alone")
    done = forked(where, *WHAT)
    assert done.returncode == 0, done.stderr
    return run_folders(where)[0], done.stdout


def test_a_run_that_ranks_shows_ranks_and_beats_chance(alone: tuple[Path, str]) -> None:
    folder, printed = alone
    assert "Recall@10: synthetic · dcn · incctr" in printed
    assert "NDCG@10: synthetic · dcn · incctr" in printed
    rows = [row for row in results.read(folder / "results.csv") if row.scenario == results.POOLED]
    value = {(row.period, row.metric): row.value for row in rows}
    assert {"auc", "logloss", "recall_5", "ndcg_5_known_users"} <= {metric for _, metric in value}
    for t in range(7, 9):
        assert 10 / 51 < value[t, "recall_10"] < 1
        assert value[t, "ndcg_5"] < value[t, "ndcg_10"] < value[t, "recall_10"]
    assert json.loads((folder / "run.json").read_text())["config"]["task"]["candidates"] == 50


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_and_resumed_gives_the_same_ranks(
    processes: int, alone: tuple[Path, str], tmp_path: Path
) -> None:
    arguments = [*WHAT, *(TWO if processes > 1 else [])]
    process = subprocess.Popen(command(arguments), cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder = wait_for(tmp_path, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (forked if processes == 1 else fresh)(tmp_path, f"resume={folder}")
    assert done.returncode == 0, done.stderr
    ours, theirs = (results.read(one / "results.csv") for one in (alone[0], folder))
    assert any(row.metric == "recall_10" for row in ours)
    if processes == 1:
        assert [row[1:] for row in ours] == [row[1:] for row in theirs]
        return
    assert_same(alone[0], folder)
    for one, other in zip(ours, theirs, strict=True):
        if "recall" in one.metric and one.value is not None and other.value is not None:
            assert one.value == pytest.approx(other.value, abs=1e-6)


MISTAKES = {
    "task=rankings": "task=rankings: there is no such task (did you mean ranking?)",
    "task.cutoffs=5": "task.cutoffs=5: give a list of a whole number",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_sentence(arguments: str, tmp_path: Path) -> None:
    done = forked(tmp_path, "task=ranking", *arguments.split())
    assert done.returncode == 2
    assert MISTAKES[arguments] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("run.json"))
