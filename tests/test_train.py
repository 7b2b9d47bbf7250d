"""The door as its users meet it: commands, exit statuses, sentences, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from tests.commands import command, forked, fresh, run_folders
from tests.conftest import CONF

BOTH = ("auc", "logloss")
SMALL = ["model=shared_bottom", "data.rows_per_period=400", "data.users=100", "data.items=80"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a small finished run, and what it printed."""
    where = tmp_path_factory.mktemp("run")
    done = fresh(where, *SMALL)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return run_folders(where)[0], done.stdout


def test_a_run_prints_a_line_per_period_and_a_table(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert sum("log loss" in line and "by scenario" in line for line in printed.splitlines()) == 7
    assert "AUC: synthetic · shared_bottom · incmsr" in printed
    assert "oracle" in printed
    for noise in ("Tip", "GPU available", "HYDRA", "Warning"):
        assert noise not in printed


def test_a_run_folder_says_all_it_takes_to_repeat_it(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = finished
    found = {path.name for path in folder.iterdir()}
    assert found == {"results.csv", "run.json", "losses.csv", "curves.png", "serving", "checkpoint"}
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    assert record["config"]["data"]["rows_per_period"] == 400
    assert set(record["versions"]) >= {"python", "torch", "incrs"}
    assert len(record["timings"]) == 8
    assert record["data"]["fingerprint"]
    again = forked(tmp_path, *record["overrides"])
    assert again.returncode == 0
    repeated = run_folders(tmp_path)[0]
    for name in ("results.csv", "serving/period=0014.safetensors"):
        assert (folder / name).read_bytes() == (repeated / name).read_bytes()


def test_results_are_tidy(finished: tuple[Path, str]) -> None:
    frame = pl.read_csv(finished[0] / "results.csv")
    assert frame.columns == [
        *("run", "data", "model", "updater", "seed", "period", "role", "scenario", "metric"),
        *("value", "rows", "positives"),
    ]
    auc = frame.filter(pl.col("metric") == "auc")
    assert auc.height == 7 * 5
    assert set(frame["metric"]) == {
        *("auc", "logloss", "gauc", "oracle_auc", "oracle_logloss", "collapsed"),
        *(f"{m}_{w}_{k}" for m in BOTH for w in ("new", "known") for k in ("users", "items")),
        *(
            f"{m}_{u}_users_{i}_items"
            for m in BOTH
            for u in ("new", "known")
            for i in ("new", "known")
        ),
    }


MISTAKES = {
    "updater=incmrs": "updater=incmrs: there is no such updater (did you mean incmsr?)",
    "updater.incmsr.wieght=1": "did you mean updater.incmsr.weight?",
    "-m selector=none,lpfs selector.every=1": "++selector.every=... sets it where it counts",
    "sede=1": "sede: there is no such setting; did you mean seed?",
    "data.pretrain=20": "the log has 14 periods but data.pretrain=20",
    "updater=[]": "updater=[]: give at least one updater",
    "updater=[frozen,incmsr]": "frozen never trains after the warm-up",
    "updater.incmsr.weight=-1": "updater.incmsr.weight=-1: give a number from 0",
    "optimizer.lr=-1": "Invalid learning rate: -1",
    "+model.depth=3": "model.depth: there is no such setting",
    "trainer=cpu trainer.devices=2 +trainer.strategy=ddp_spawn": "trainer.devices=2: several devices",
    "vocabulary=open": "vocabulary=open: give growing or fixed",
    "expiry=0": "expiry=0: give a whole number from 1, or null for never",
    "unknown_rate=1": "unknown_rate=1: give a number from 0 to below 1",
    "batch_size=0": "batch_size=0: give a whole number from 1",
    "data=log": "data.path has no value yet",
    "data=kuairand data.path=nowhere": "Download https://zenodo.org",
    "resume=nowhere": "there is no run.json in that folder",
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    arguments: str, tmp_path: Path
) -> None:
    done = forked(tmp_path, *arguments.split())
    assert done.returncode == 2
    assert MISTAKES[arguments] in done.stderr
    assert done.stderr.startswith("incrs: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.slow
def test_a_log_of_ones_own_is_a_few_lines_of_yaml_and_its_mistakes_are_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.yaml").write_text(
        "defaults: [log]\nname: shop\npath: raw\nstore: store\ntime: at\ntime_unit: iso\n"
        "label: click\nuser: user\nitem: item\npretrain: 2\n"
    )
    (tmp_path / "raw").mkdir()
    lines = [
        f"2026-01-{1 + i // 40:02d}T{i % 24:02d}:00:00,{i % 9},{i % 7},{int(i % 3 == 0)}"
        for i in range(200)
    ]
    log = tmp_path / "raw" / "log.csv"
    log.write_text("\n".join(["at,user,item,click", *lines]))
    shop = ["--config-dir", str(tmp_path), "data=shop", "model=dcn"]
    done = forked(tmp_path, *shop)
    assert done.returncode == 0, done.stderr
    assert "AUC: shop · dcn · incmsr" in done.stdout

    wrong = forked(tmp_path, *shop, "data.item=product")
    assert wrong.returncode == 2
    assert "'product'" in wrong.stderr
    assert "item" in wrong.stderr
    log.write_text("\n".join(["at,user,item,click", *lines, "2026-01-05T23:30:00,1,1,7"]))
    wrong = forked(tmp_path, *shop)
    assert wrong.returncode == 2
    assert "log.csv changed since it was prepared" in wrong.stderr
    wrong = forked(tmp_path, *shop, "data.store=other")
    assert wrong.returncode == 2
    assert "0 or 1" in wrong.stderr
    prepared = forked(tmp_path, *shop, "data.label_threshold=1", "data.store=other", door="prepare")
    assert prepared.returncode == 0, prepared.stderr
    assert "shop: 6 periods" in prepared.stdout or "shop: 5 periods" in prepared.stdout


def wait_for(folder: Path, periods: int, process: subprocess.Popen, within: str = "") -> Path:
    """Wait until a run below the folder, or one in it, has scored so many periods; return its folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for one in [folder / within] if within else run_folders(folder):
            if len(list((one / "serving").glob("period=*"))) >= periods:
                return one
        time.sleep(0.005)
    raise AssertionError(f"the run ended or hung before {periods} periods were scored")


SLOWER = [
    "model=shared_bottom",
    "data.rows_per_period=2000",
    "updater=[incmsr,incctr]",
    "batch_size=100",
]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert forked(whole, *SLOWER).returncode == 0
    process = subprocess.Popen(command(SLOWER), cwd=tmp_path, stdout=subprocess.DEVNULL)
    killed = wait_for(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads((killed / "run.json").read_text())["finished"]
    done = forked(tmp_path, f"resume={killed}")
    assert done.returncode == 0, done.stderr
    undisturbed = run_folders(whole)[0]
    for name in ("results.csv", "serving/period=0014.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert len(json.loads((killed / "run.json").read_text())["timings"]) == 8
    refused = forked(tmp_path, f"resume={killed}", "seed=4")
    assert refused.returncode == 2
    assert "leave out seed=4" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(SLOWER), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stopped = wait_for(tmp_path, 2, process)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"resume={stopped}" in printed
    assert "Traceback" not in errors
    assert not list(stopped.rglob("*.partial"))
    assert forked(tmp_path, f"resume={stopped}").returncode == 0


@pytest.mark.slow
def test_a_sweep_runs_every_combination_and_sums_up(tmp_path: Path) -> None:
    done = forked(tmp_path, "-m", "updater=finetune,[incmsr,incctr]", "seed=0,1", *SMALL)
    assert done.returncode == 0, done.stderr
    folders = run_folders(tmp_path)
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    assert "incmsr+incctr" in done.stdout
    assert "means over 2 seeds and" in done.stdout
    assert "AUC by scenario" in done.stdout
    table = forked(tmp_path, str(folders[0].parent), door="report")
    assert table.returncode == 0
    assert "AUC minus finetune's" in table.stdout and (folders[0].parent / "report.html").exists()


@pytest.mark.slow
def test_help_and_configuration_read_well(tmp_path: Path) -> None:
    helped = forked(tmp_path, "--help")
    assert helped.returncode == 0
    assert "python -m incrs.train -m updater=finetune,incmsr" in helped.stdout
    updaters = sorted(path.stem for path in (CONF / "updater").glob("*.yaml"))
    assert f"updater: {', '.join(updaters)}" in helped.stdout
    shown = forked(tmp_path, "--cfg", "job", "updater=[incmsr,incctr]", "updater.incmsr.weight=0.5")
    assert shown.returncode == 0
    assert "weight: 0.5" in shown.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_installed_wheel_works_from_any_folder(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        target,
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    assert (target / "incrs" / "conf" / "train.yaml").exists()
    assert (target / "incrs" / "published.csv").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        command(["--cfg", "job"]),
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where = "from incrs.environment import CONF; print(CONF)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(target / "incrs" / "conf")


def test_secrets_are_in_no_record() -> None:
    from incrs.record import without_secret, without_secrets

    config = {
        "logger": {"wandb": {"api_key": "abc", "project": "p"}},
        "joins": [{"key": "user_id"}],
    }
    assert without_secrets(config) == {
        "logger": {"wandb": {"api_key": "***", "project": "p"}},
        "joins": [{"key": "user_id"}],
    }
    assert without_secret("logger.wandb.api_key=abc") == "logger.wandb.api_key=***"
    assert without_secret("seed=3") == "seed=3"


def test_only_folders_made_for_a_run_are_taken_away(tmp_path: Path) -> None:
    from incrs.door import remove_empty

    run, own = tmp_path / "multirun" / "day" / "time", tmp_path / "mine" / "run"
    for folder in (run, own):
        folder.mkdir(parents=True)
        remove_empty(folder)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mine", "multirun"]
