"""Selectors by the command: files in the run folder, a resume, and two processes that search as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from incrs import selection
from tests.test_processes import assert_same, one_thread  # noqa: F401
from tests.test_train import run_folders, train

LOG = [
    "data.rows_per_period=1500",
    "data.users=200",
    "data.items=100",
    "data.periods=4",
    "data.pretrain=2",
    "data.tune=0",
    "batch_size=500",
    "trainer.precision=64-true",
    "model=dcn",
    "updater=finetune",
    "selector=multifs",
    "selector.learning_rate=0.1",
    "selector.epochs=2",
    "selector.every=1",
]

pytestmark = pytest.mark.slow


def test_two_processes_search_as_one_and_the_folder_says_what_was_kept(tmp_path: Path) -> None:
    folders = []
    for name, more in (("one", []), ("two", ["trainer=ddp", "trainer.accelerator=cpu"])):
        (tmp_path / name).mkdir()
        done = train(tmp_path / name, *LOG, *more)
        assert done.returncode == 0, done.stderr
        folders += run_folders(tmp_path / name)
    assert_same(*folders, metric=1e-5)
    kept = selection.read(folders[0])
    assert kept == selection.read(folders[1])
    assert {row.period for row in kept} == {1, 2, 3}
    assert 0 < sum(row.kept for row in kept) < sum(row.values for row in kept)
    assert (folders[0] / "selection.png").exists()
    assert "dcn-multifs" in (folders[0] / "results.csv").read_text()
    small, whole = (
        load_file(folders[0] / kind / "period=0004.safetensors") for kind in ("pruned", "serving")
    )
    tables = [name for name in whole if ".tables." in name]
    assert sum(len(small[n]) for n in tables) < sum(len(whole[n]) for n in tables)


def test_a_model_that_cannot_be_gated_is_told(tmp_path: Path) -> None:
    done = train(tmp_path, *LOG, "model=gru4rec")
    assert done.returncode == 2
    assert done.stderr.startswith("incrs: selector: model=gru4rec does not read every id")
