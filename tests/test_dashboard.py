"""What W&B is told, read back from what it wrote; and that training goes on whatever happens to it."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from incrs import dashboard, results
from incrs.dashboard import Timing, Wandb
from incrs.errors import Mistake
from incrs.results import POOLED, Row, Run

wandb = pytest.importorskip("wandb")

CONF = Path(__file__).parent.parent / "conf" / "logger"
ABOUT = Run("0a1b2c3d", "log", "star", "incmsr", 3)
ROLES = {7: "tune", 8: "test", 9: "test"}


def rows_of(period: int) -> list[Row]:
    head = (*ABOUT, period, ROLES[period])
    return [
        Row(*head, POOLED, "auc", 0.7 + period / 100, 100, 50),
        Row(*head, POOLED, "logloss", 0.5, 100, 50),
        Row(*head, POOLED, "gauc", 0.6, 100, 50),
        Row(*head, POOLED, "auc_new_users", 0.55, 10, 5),
        Row(*head, "0", "auc", 0.6 + period / 100, 60, 30),
        Row(*head, "0", "logloss", 0.4, 60, 30),
        Row(*head, "0", "gauc", 0.6, 60, 30),
        Row(*head, "home page", "auc", None, 40, 40),
        Row(*head, "home page", "logloss", 0.3, 40, 40),
    ]


def timing_of(period: int) -> Timing:
    return Timing(period, f"day {period}", f"day {period + 1}", 1.5, 0.25, 1000, 100)


def open_folder(folder: Path) -> Path:
    """Make a run folder as it is when the watchers are told of the first period."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "about": ABOUT._asdict(),
        "config": {"seed": 3, "model": {"hidden": [8, 4]}},
        "versions": {"torch": "2"},
        "timings": [],
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def tell(watcher: Wandb, folder: Path, periods: tuple[int, ...] = (6, 7, 8)) -> None:
    """Tell a watcher what a run tells: a period learnt, then the next one scored."""
    record = json.loads((folder / "run.json").read_text())
    kept = folder / results.FILE
    rows = results.read(kept) if kept.exists() else []
    watcher.run_begins()
    for period in periods:
        timing = timing_of(period)
        watcher.period_begins(period, timing.name, 2)
        watcher.step_done()
        watcher.period_learnt([0.5, 0.25], timing)
        watcher.period_scored(rows_of(period + 1), timing)
        rows = [row for row in rows if row.period <= period] + rows_of(period + 1)
        record["timings"].append(timing._asdict())
        (folder / "run.json").write_text(json.dumps(record))
        results.write(kept, rows)


BLOCK, HEADER = 32768, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Read a `.wandb` file: blocks of 32 KiB, in them pieces of records, each with its checksum."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        piece = data[at + HEADER.size : at + HEADER.size + length]
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        at += HEADER.size + length
        whole += piece
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


class Log:
    """What a `.wandb` file says."""

    def __init__(self, path: Path):
        self.history: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.axis: dict[str, str] = {}
        self.exits: list[int] = []
        self.run: Any = None
        self.everything = path.read_bytes()
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= self.values(record.run.config.update)
            elif kind == "history":
                self.history.append(self.values(record.history.item))
            elif kind == "summary":
                self.summary |= self.values(record.summary.update)
            elif kind == "metric":
                self.axis[record.metric.name] = record.metric.step_metric
            elif kind == "exit":
                self.exits.append(record.exit.exit_code)

    @staticmethod
    def values(items: Any) -> dict[str, Any]:
        return {
            item.key or "|".join(item.nested_key): json.loads(item.value_json) for item in items
        }


def logs(folder: Path) -> list[Log]:
    dashboard.within(20, wandb.teardown)  # its service writes the end of a file when it stops
    return [Log(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep W&B out of the home folder and away from settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(dashboard, "GRACE", 2.0)
    yield
    dashboard.within(20, wandb.teardown)


def service() -> subprocess.Popen[bytes]:
    """Return the process that wandb talks to."""
    for one in gc.get_objects():
        if type(one) is subprocess.Popen and "wandb-core" in str(one.args) and one.poll() is None:
            return one
    raise AssertionError("there is no wandb-core")


def states() -> tuple[object, ...]:
    return (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


def test_everything_told_is_in_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = open_folder(tmp_path / "run")
    before = states()
    watcher = Wandb(str(folder), mode="offline", group="mine", tags=["one", "two"])
    tell(watcher, folder)
    watcher.run_ends(finished=True)
    assert states() == before

    (log,) = logs(folder)
    assert log.run.project == "incrs"
    assert log.run.run_group == "mine"
    assert list(log.run.tags) == ["one", "two"]
    assert log.run.display_name == "star incmsr log seed 3"
    assert log.config["model"] == {"hidden": [8, 4]}
    assert log.config["about"]["run"] == ABOUT.run
    learnt = [line for line in log.history if "loss/train" in line]
    scored = [line for line in log.history if "auc/all" in line]
    assert [(line["period"], line["loss/train"]) for line in learnt] == [
        (6, 0.375),
        (7, 0.375),
        (8, 0.375),
    ]
    assert {line["seconds/fit"] for line in learnt} == {1.5}
    for period, line in zip((7, 8, 9), scored, strict=True):
        told = {key: value for key, value in line.items() if not key.startswith("_")}
        assert told == pytest.approx(
            {
                "period": period,
                "auc/all": 0.7 + period / 100,
                "logloss/all": 0.5,
                "gauc/all": 0.6,
                "auc_new_users/all": 0.55,
                "auc/scenario_0": 0.6 + period / 100,
                "logloss/scenario_0": 0.4,
                "logloss/home_page": 0.3,
                "seconds/score": 0.25,
            }
        )
    keys = {key for line in learnt + scored for key in line if not key.startswith("_")}
    assert log.axis == {key: "" if key == "period" else "period" for key in keys}
    assert log.summary["test_auc/all"] == pytest.approx(0.785)
    assert log.summary["test_logloss/home_page"] == pytest.approx(0.3)
    assert "test_auc/home_page" not in log.summary
    assert log.exits == [0]

    assert log.history[-1]["results/periods|nrows"] == 3
    table = json.loads(next(folder.glob("wandb/off*/files/media/table/*/*.json")).read_text())
    assert table["columns"] == [
        *("period", "name", "role", "auc_all", "auc_scenario_0", "auc_home_page"),
        *("logloss_all", "logloss_scenario_0", "logloss_home_page"),
    ]
    assert table["data"][1] == [8, "day 8", "test", 0.7 + 0.08, 0.6 + 0.08, None, 0.5, 0.4, 0.3]

    printed = capfd.readouterr()
    run_folder = next(folder.glob("wandb/offline-run-*"))
    assert printed.out == f"W&B: wandb sync {run_folder}\n"
    assert printed.err == ""


def test_runs_of_one_process_are_runs_apart_and_a_failed_one_says_so(tmp_path: Path) -> None:
    folders = [open_folder(tmp_path / name) for name in ("0", "1")]
    for folder, finished in zip(folders, (False, True), strict=True):
        watcher = Wandb(str(folder), mode="offline")
        tell(watcher, folder, (6,))
        watcher.run_ends(finished)
    failed, well = (logs(folder)[0] for folder in folders)
    assert (failed.exits, well.exits) == ([1], [0])
    assert failed.run.run_id != well.run.run_id
    assert "test_auc/all" not in failed.summary
    assert len(failed.history) == 2
    assert len(well.history) == 3


def test_runs_of_a_sweep_are_a_group(tmp_path: Path) -> None:
    sweep = tmp_path / "2026-01-31" / "10-00-00"
    folder = open_folder(sweep / "0")
    assert dashboard.group_of(folder) is None
    (sweep / "multirun.yaml").write_text("")
    assert dashboard.group_of(folder) == "2026-01-31_10-00-00"
    watcher = Wandb(str(folder), mode="offline")
    tell(watcher, folder, (6,))
    watcher.run_ends(finished=True)
    assert logs(folder)[0].run.run_group == "2026-01-31_10-00-00"


def test_a_run_that_goes_on_is_the_same_run_and_tells_the_period_again(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    killed = Wandb(str(folder), mode="offline")
    tell(killed, folder, (6, 7))
    killed.run_ends(finished=False)
    again = Wandb(str(folder), mode="offline")
    tell(again, folder, (7, 8))
    again.run_ends(finished=True)
    first, second = logs(folder)
    assert first.run.run_id == second.run.run_id
    assert second.run.resume
    assert [line["period"] for line in second.history if "auc/all" in line] == [8, 9]
    assert second.summary["test_auc/all"] == pytest.approx(0.785)


def test_the_command_line_is_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "data.token=hunter2"])
    folder = open_folder(tmp_path / "run")
    watcher = Wandb(str(folder), mode="offline")
    tell(watcher, folder, (6,))
    watcher.run_ends(finished=True)
    assert b"hunter2" not in logs(folder)[0].everything
    assert not [
        path for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()
    ]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what a person is shown; wandb writes its own into a file."""
    ours = [one for one in caplog.records if not one.name.startswith("wandb")]
    return [one.getMessage() for one in ours if one.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hanging"])
def test_a_service_that_is_gone_is_said_once_and_the_next_run_is_logged(
    number: signal.Signals,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = open_folder(tmp_path / "lost")
    watcher = Wandb(str(folder), mode="offline")  # starting the service may take seconds
    tell(watcher, folder, (6,))
    watcher._timeout = 1
    process = service()
    process.send_signal(number)
    time.sleep(0.2)
    began = time.monotonic()
    before = states()
    tell(watcher, folder, (7, 8))
    watcher.run_ends(finished=True)
    assert time.monotonic() - began < 20
    assert states() == before
    (sentence,) = warnings_of(caplog)
    assert "W&B is lost" in sentence
    assert f"wandb sync {folder}" in sentence

    if number == signal.SIGSTOP:
        process.kill()
    other = open_folder(tmp_path / "next")
    watcher = Wandb(str(other), mode="offline")
    tell(watcher, other, (6,))
    watcher.run_ends(finished=True)
    assert logs(other)[0].exits == [0]
    assert len(warnings_of(caplog)) == 1
    assert capfd.readouterr().err == ""
    process.wait(20)  # wandb never waits for a service it lost, and Popen warns of that


def test_an_error_out_of_wandb_is_said_once_and_the_run_is_still_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_folder(tmp_path / "run")
    watcher = Wandb(str(folder), mode="offline")
    tell(watcher, folder, (6,))

    def fail(*_: object, **__: object) -> None:
        raise wandb.errors.CommError("no\nline")

    with monkeypatch.context() as patched:
        patched.setattr(type(watcher._run), "log", fail)
        tell(watcher, folder, (7, 8))
    watcher.run_ends(finished=False)
    (sentence,) = warnings_of(caplog)
    assert sentence.startswith("W&B is lost (no line): the run goes on without it; ")
    assert logs(folder)[0].exits == [1]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["a" * 40, None], ids=["unreachable", "never-logged-in"])
def test_without_a_network_a_run_is_logged_offline(
    key: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    folder = open_folder(tmp_path / "run")
    began = time.monotonic()
    watcher = Wandb(str(folder), timeout=5)
    tell(watcher, folder)
    watcher.run_ends(finished=True)
    assert time.monotonic() - began < 40
    (sentence,) = warnings_of(caplog)
    assert sentence.startswith("W&B cannot be reached (")
    assert sentence.endswith("): logging offline")
    assert ("wandb login" in sentence) == (key is None)
    (log,) = logs(folder)
    assert log.exits == [0]
    assert [line["period"] for line in log.history if "auc/all" in line] == [7, 8, 9]
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1
    assert "wandb sync" in printed.out
    assert printed.err == ""


def test_disabled_says_nothing_and_writes_nothing_to_sync(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_folder(tmp_path / "run")
    watcher = Wandb(str(folder), mode="disabled")
    tell(watcher, folder)
    watcher.run_ends(finished=True)
    assert not logs(folder)
    assert capfd.readouterr() == ("", "")
    assert not warnings_of(caplog)


def test_a_run_that_tells_nothing_opens_nothing(tmp_path: Path) -> None:
    Wandb(str(tmp_path), mode="offline").run_ends(finished=True)
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_missing_wandb_is_one_sentence_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Mistake, match="pip install wandb"):
        Wandb(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "onlin"}, "give online, offline, disabled or null"),
        ({"project": "a/b"}, "Invalid project name"),
        ({"tags": "one"}, r"give a list: \[one\]"),
        ({"tags": ["x" * 70]}, "between 1 and 64 characters"),
        ({"timeout": 0}, "give seconds, more than 0"),
    ],
)
def test_a_setting_that_wandb_refuses_is_a_mistake(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(Mistake, match=said) as caught:
        Wandb(str(tmp_path), **settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_labels_are_letters_digits_and_underscores_and_no_two_the_same() -> None:
    assert dashboard.labels_of(["all", "0", "a-b", "a b", "首页", "推荐", "4"]) == {
        "all": "all",
        "0": "scenario_0",
        "a-b": "a_b",
        "a b": "a_b_",
        "首页": "scenario_4",
        "推荐": "scenario_5",
        "4": "scenario_4_",
    }


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_logger_yaml_holds_one_key_of_its_own_name(path: Path) -> None:
    (name,) = yaml.safe_load(path.read_text())
    assert name == path.stem


TRAIN = [sys.executable, "-m", "incrs.train"]
SMALL = ["trainer=cpu", "data.rows_per_period=400", "model=shared_bottom", "updater=finetune"]


@pytest.mark.slow
def test_a_sweep_is_logged_run_by_run_and_its_numbers_are_those_without(tmp_path: Path) -> None:
    for name, logger in (("plain", "csv"), ("told", "[csv,wandb]")):
        (tmp_path / name).mkdir()
        own = ["logger.wandb.mode=offline"] if name == "told" else []
        command = [*TRAIN, "-m", *SMALL, "seed=0,1", f"logger={logger}", *own]
        done = subprocess.run(command, cwd=tmp_path / name, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    for seed in ("0", "1"):
        plain, told = (
            next((tmp_path / name).glob(f"multirun/*/*/{seed}")) for name in ("plain", "told")
        )
        assert (plain / "results.csv").read_bytes() == (told / "results.csv").read_bytes()
        assert (plain / "losses.csv").read_bytes() == (told / "losses.csv").read_bytes()
        (log,) = logs(told)
        assert log.exits == [0]
        assert log.config["seed"] == int(seed)
        periods = {row.period for row in results.read(told / "results.csv")}
        assert {line["period"] for line in log.history if "auc/all" in line} == periods
        assert log.summary["results/periods|nrows"] == len(periods)
