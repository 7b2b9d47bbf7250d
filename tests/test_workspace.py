"""What a report sends to W&B, looked at before it is sent; and what is said where it cannot be."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from incrs import report, results, workspace
from incrs.errors import Mistake
from incrs.results import POOLED, Row
from incrs.runs import find_runs

pytest.importorskip("wandb_workspaces")


@pytest.fixture(autouse=True)
def without_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def write_run(folder: Path, updater: str, seed: int) -> None:
    about = ("0a1b2c3d", "log", "star", updater, seed)
    record = {
        "about": dict(zip(("run", "data", "model", "updater", "seed"), about, strict=True)),
        "config": {"logger": {"csv": {}}, "seed": seed},
        "overrides": [f"updater={updater}", f"seed={seed}"],
        "versions": {},
        "data": {
            "fingerprint": "f",
            "roles": ["pretrain", "test", "test"],
            "scenarios": ["0", "a b"],
        },
        "timings": [
            {"period": t, "name": str(t), "scored": str(t + 1), "fit_seconds": 1.0} for t in (0, 1)
        ],
        "finished": True,
    }
    rows = [
        Row(*about, t, "test", scenario, metric, 0.6 + t / 100 + seed / 50, 100, 50)
        for t in (1, 2)
        for scenario in (POOLED, "0", "a b")
        for metric in ("auc", "logloss")
    ]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    results.write(folder / results.FILE, rows)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "2026-01-31" / "10-00-00"
    for number, (updater, seed) in enumerate(
        [("finetune", 0), ("finetune", 1), ("incmsr", 0), ("incmsr", 1)]
    ):
        write_run(folder / str(number), updater, seed)
    (folder / "multirun.yaml").write_text("{}")
    return folder


def test_the_workspace_has_a_panel_for_every_scenario_on_the_period_axis(sweep: Path) -> None:
    runs = find_runs([sweep])
    groups = workspace.groups_of(runs)
    assert groups == ["2026-01-31_10-00-00"]
    keys = workspace.keys_of(runs, ("auc", "logloss"))
    view = workspace.workspace("me", "mine", groups, keys)
    sent = json.loads(view._to_model().model_dump_json(by_alias=True))["spec"]["section"]
    sections = {one["name"]: one["panels"] for one in sent["panelBankConfig"]["sections"]}
    assert list(sections) == ["AUC by period", "log loss by period", "cost", "summary"]
    panels = [one["config"] for one in sections["AUC by period"]]
    assert [(one["chartTitle"], one["metrics"]) for one in panels] == [
        ("AUC", ["auc/all"]),
        ("AUC, 0", ["auc/scenario_0"]),
        ("AUC, a b", ["auc/a_b"]),
    ]
    for one in panels:
        assert (one["xAxis"], one["groupAgg"], one["groupArea"]) == ("period", "mean", "stddev")
        assert one["groupBy"] == "about.value.updater"
    assert "2026-01-31_10-00-00" in json.dumps(sent["runSets"])
    assert workspace.TABLE in json.dumps(sections["summary"])
    logged = {"seconds/fit", "seconds/learn_next", "loss/train"}  # by dashboard.Wandb
    assert {one["config"]["metrics"][0] for one in sections["cost"]} == logged


def test_the_table_holds_the_summarys_numbers(sweep: Path) -> None:
    lines, baseline, _, metrics = report.summary_of(find_runs([sweep]))
    columns, data = workspace.table_of(lines, baseline, metrics)
    assert {len(line) for line in data} == {len(columns)}
    found = [dict(zip(columns, line, strict=True)) for line in data]
    assert {line["updater"] for line in found} == {"finetune", "incmsr"}
    for line, one in zip(lines, found, strict=True):
        assert one["auc"] == line.value == pytest.approx(0.625)
        assert one["auc_a b"] == line.by_scenario["a b"]
    assert next(one for one in found if one["updater"] == "incmsr")["minus_finetune"] == 0


def test_without_a_key_a_sentence_says_what_to_set(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.main([str(sweep), "--wandb"]) == 2
    said = capsys.readouterr()
    assert said.err == (
        "incrs: --wandb: there is no key of Weights & Biases; run `wandb login`, or set WANDB_API_KEY\n"
    )
    assert "incmsr" in said.out  # the table was printed all the same
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert report.main([str(sweep), "--wandb"]) == 2
    assert "pip install 'incrs[wandb]'" in capsys.readouterr().err


def test_a_key_is_found_where_wandb_login_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not workspace.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n login user\n password abc\n")
    assert workspace.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not workspace.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert workspace.has_key()


def test_with_a_key_summary_and_workspace_are_sent(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb, ws, _ = workspace.libraries()
    sent: dict[str, object] = {}

    class Told:
        url, entity = "https://wandb/run", "me"

        def log(self, values: dict[str, object]) -> None:
            sent.update(values)

        def finish(self) -> None:
            sent["finished"] = True

    def init(**given: object) -> Told:
        sent.update(given)
        return Told()

    def save(view: object) -> SimpleNamespace:
        sent["view"] = view
        return SimpleNamespace(url="https://wandb/view")

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(ws.Workspace, "save", save)
    assert report.main([str(sweep), "--wandb", "--project", "mine"]) == 0
    assert "W&B: https://wandb/run\nW&B: https://wandb/view\n" in capsys.readouterr().out
    assert (sent["project"], sent["group"]) == ("mine", "2026-01-31_10-00-00")
    assert sent["finished"]
    assert len(sent[workspace.TABLE].data) == 2
    assert (sent["view"].entity, sent["view"].project) == ("me", "mine")

    def refuse(**_: object) -> None:
        raise wandb.errors.CommError("no\nnetwork")

    monkeypatch.setattr(wandb, "init", refuse)
    runs = find_runs([sweep])
    summary = report.summary_of(runs)
    with pytest.raises(Mistake, match=r"^--wandb: Weights .* does not take it \(no network\)$"):
        workspace.push(runs, *summary)
