"""Selectors by the command: files in the run folder, pruned tables, two processes that search as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.func import functional_call

from incrs import findings, selection
from incrs.door import made, maker
from incrs.folder import RunFolder
from incrs.period import Batch
from incrs.selectors.search import open_gates
from tests.commands import forked, run_folders
from tests.test_processes import assert_same, one_thread  # noqa: F401

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
]
SETTINGS = {"learning_rate": 0.1, "epochs": 2, "every": 1}
NAMES = ["autofield", "multifs"]  # all of them without the command: see test_together.py
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


def known(batch: Batch, vocabularies: list[str], sizes: dict[str, int]) -> Batch:
    """Return the rows as a model reads them: ids that it has no rows for are unknown."""
    fields = [x * (x < sizes[v]) for x, v in zip(batch.fields.t(), vocabularies, strict=False)]
    lists = zip(batch.lists.items(), vocabularies[len(fields) :], strict=True)
    return batch._replace(
        fields=torch.stack(fields, 1),
        lists={name: x * (x < sizes[v]) for (name, x), v in lists},
        numbers=batch.numbers.double(),
    )


def assert_pruned_is_smaller_and_scores_the_same(folder: Path) -> None:
    config = OmegaConf.create(RunFolder(folder).record["config"])
    source = made(config.data, "data")
    source.prepare()
    backbone = maker(config, "model")(schema=source.schema, seed=0)
    open_gates(backbone, source.schema, "dcn")
    files = [folder / kind / "period=0004.safetensors" for kind in ("serving", "pruned")]
    rows = files[1].with_suffix(".rows.safetensors")
    assert files[1].stat().st_size + rows.stat().st_size < files[0].stat().st_size
    whole, small = map(load_file, files)
    values, tables = selection.values_of(backbone), backbone.tables()
    sizes = {vocabulary: len(whole[name]) for name, (_, vocabulary) in tables.items()}
    assert any(len(small[name]) < len(whole[name]) for name in tables)
    batch = known(source.read(3).rows, list(values.vocabularies), sizes)
    moved = selection.translate(batch, values, load_file(rows))
    backbone.double().eval()
    scores = functional_call(backbone, whole, (batch,)).logit
    assert torch.equal(functional_call(backbone, small, (moved,)).logit, scores)
    assert scores.std() > 0


def test_two_processes_search_as_one_and_the_folder_says_what_was_kept(tmp_path: Path) -> None:
    sweep = ["-m", f"selector={','.join(NAMES)}", *LOG]
    sweep += [f"++selector.{key}={value}" for key, value in SETTINGS.items()]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    done = forked(tmp_path / "one", *sweep)
    assert done.returncode == 0, done.stderr
    both = [*TORCHRUN, "-m", "incrs.train", *sweep, "trainer=ddp", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, *both], cwd=tmp_path / "two", capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    folders = [run_folders(tmp_path / name) for name in ("one", "two")]
    for name, one, two in zip(NAMES, *folders, strict=True):
        kept = selection.read(one)
        assert kept == selection.read(two)
        assert {row.period for row in kept} == {1, 2, 3}
        assert (one / "selection.png").exists()
        assert f"dcn-{name}" in (one / "results.csv").read_text()
        drift = findings.read(one)
        assert {(note.period, note.updater) for note in drift} == {(2, name), (3, name)}
        assert {note.name.split(".")[0] for note in drift} == {"drift"}
        assert [note[:3] for note in drift] == [note[:3] for note in findings.read(two)]
        assert 0 < sum(row.kept for row in kept) < sum(row.values for row in kept)
        assert_same(
            one, two, metric=1e-4
        )  # closed gates make rows level, and the last digit breaks it
        assert_pruned_is_smaller_and_scores_the_same(one)


def test_a_model_that_cannot_be_gated_is_told(tmp_path: Path) -> None:
    done = forked(tmp_path, *LOG, "selector=multifs", "model=gru4rec")
    assert done.returncode == 2
    assert done.stderr.startswith("incrs: selector: model=gru4rec does not read every id")
