"""Pictures drawn beside the next run are those drawn at once, and what follows them waits for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from incrs import drawing
from incrs.door import COMPOSED, composed_once, read_once
from incrs.errors import Mistake
from incrs.folder import RunFolder
from tests.commands import forked
from tests.test_show import ROWS


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.write_record({"finished": False})
    made.write_results(ROWS)
    return made


def test_pictures_drawn_beside_are_those_drawn_at_once(folder: RunFolder) -> None:
    beside = drawing.Beside()
    beside.finish(folder, None)
    beside.settle()
    found = (folder.path / "curves.png").read_bytes()
    assert folder.record["finished"]
    drawing.draw(folder.path)
    assert found == (folder.path / "curves.png").read_bytes()


def test_a_folder_that_is_gone_is_said_and_the_next_run_is_finished(
    folder: RunFolder, tmp_path: Path
) -> None:
    beside = drawing.Beside()
    beside.finish(RunFolder(tmp_path / "gone"), None)
    with pytest.raises(Mistake, match="gone: the folder was removed"):
        beside.settle()
    beside.finish(folder, None)
    beside.settle()
    assert folder.record["finished"]


def test_a_process_that_ended_is_noticed(folder: RunFolder) -> None:
    beside = drawing.Beside()
    assert beside._process.pid is not None
    os.kill(beside._process.pid, signal.SIGKILL)
    beside._process.join()
    beside.finish(folder, None)
    with pytest.raises(RuntimeError, match="has ended"):
        beside.settle()
    assert not folder.record["finished"]


def test_ctrl_c_lets_it_finish(folder: RunFolder) -> None:
    beside = drawing.Beside()
    assert beside._process.pid is not None
    beside.finish(folder, None)
    os.kill(beside._process.pid, signal.SIGINT)
    beside._close()
    assert folder.record["finished"]


def test_runs_of_a_sweep_have_the_pictures_of_single_ones(tmp_path: Path) -> None:
    small = ["model=dcn", "updater=asmg", "updater.asmg.k=1", "updater.asmg.share=per_output"]
    small += ["data.rows_per_period=200", "data.users=40", "data.items=30", "share=false"]
    done = forked(tmp_path, "-m", "hydra.sweep.dir=sweep", "seed=0,1", *small)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        one = forked(tmp_path, f"hydra.run.dir=one{seed}", f"seed={seed}", *small)
        assert one.returncode == 0, one.stderr
        for name in ("curves.png", "findings_asmg.png"):
            ours, theirs = (tmp_path / folder / name for folder in (f"sweep/{seed}", f"one{seed}"))
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_file_is_read_once_and_whoever_changes_it_changes_his_own() -> None:
    class Source:
        reads = 0

        def load_config(self, config_path: str) -> list[str]:
            self.reads += 1
            return [config_path]

    source = Source()
    read_once(source)
    source.load_config(config_path="model/star").append("changed")
    assert source.load_config(config_path="model/star") == ["model/star"]
    assert source.load_config(config_path="model/mf") == ["model/mf"]
    assert source.reads == 2


def test_a_job_is_composed_once_for_the_two_that_ask() -> None:
    asked: list[str] = []

    def compose(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        asked.append(sweep_overrides[0])
        return OmegaConf.create({"seed": sweep_overrides[0]})

    once = composed_once(compose)
    jobs = [str(n) for n in range(COMPOSED + 2)]
    checked = [once(OmegaConf.create(), [job]) for job in jobs]
    launched = [once(OmegaConf.create(), [job]) for job in jobs]
    assert asked == [*jobs, *jobs[COMPOSED:]]
    assert [one["seed"] for one in launched] == jobs
    assert all(a is b for a, b in zip(checked[:COMPOSED], launched, strict=False))
    assert once(OmegaConf.create(), ["0"]) is not launched[0]
