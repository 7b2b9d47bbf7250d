"""Pictures drawn beside the next run are those drawn at once, and what follows them waits for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from incrs import drawing, results
from incrs.errors import Mistake
from tests.commands import forked
from tests.test_show import ROWS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    results.write(made / results.FILE, ROWS)
    return made


def test_pictures_drawn_beside_are_those_drawn_at_once(folder: Path, tmp_path: Path) -> None:
    then: list[bool] = []
    beside = drawing.Beside()
    beside.draw(folder, lambda: then.append((folder / "curves.png").exists()))
    beside.settle()
    assert then == [True]
    found = (folder / "curves.png").read_bytes()
    drawing.draw(folder)
    assert found == (folder / "curves.png").read_bytes()


def test_a_folder_that_is_gone_is_said_and_the_next_is_drawn(folder: Path, tmp_path: Path) -> None:
    then: list[str] = []
    beside = drawing.Beside()
    beside.draw(tmp_path / "gone", lambda: then.append("gone"))
    beside.draw(folder, lambda: then.append("run"))
    with pytest.raises(Mistake, match=r"gone: its pictures cannot be drawn: .*No such file"):
        beside.settle()
    beside.settle()
    assert then == ["run"]


def test_a_process_that_ended_is_noticed(folder: Path) -> None:
    beside = drawing.Beside()
    assert beside._process.pid is not None
    os.kill(beside._process.pid, signal.SIGKILL)
    beside._process.join()
    with pytest.raises(RuntimeError, match="has ended"):
        beside.draw(folder, lambda: pytest.fail("nothing was drawn"))


def test_ctrl_c_lets_it_finish_the_pictures(folder: Path) -> None:
    then: list[str] = []
    beside = drawing.Beside()
    assert beside._process.pid is not None
    beside.draw(folder, lambda: then.append("run"))
    os.kill(beside._process.pid, signal.SIGINT)
    beside._close()
    assert then == ["run"]
    assert (folder / "curves.png").exists()


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
