"""The experiment files: their settings are ones there are, and a missing log says where it can be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from incrs.door import check_settings, made
from incrs.errors import Mistake
from incrs.results import read
from incrs.train import drop_unchosen
from tests.conftest import CONF
from tests.data.test_declared import adressa, tmall
from tests.test_train import run_folders, train

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(name: str, *changes: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={name}", *changes])
    drop_unchosen(config.updater)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_an_experiment_is_one_there_is(name: str):
    config = composed(name)
    for key in ("data", "model", "task", "optimizer"):
        check_settings(config[key], key)
    for updater in config.updater:
        check_settings(config.updater[updater], f"updater.{updater}")
        made(config.updater[updater], f"updater.{updater}")
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"python -m incrs.train experiment={name}\n" in text


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_without_its_log_says_where_to_get_it(name: str, tmp_path: Path):
    source = made(composed(name, f"data.store={tmp_path}").data, "data")
    with pytest.raises(Mistake, match=r"^data\.path=.* is not a folder\. .*https://") as caught:
        source.prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("asmg")])
def test_asmgs_layers_are_a_half_and_a_quarter_of_their_input(name: str):
    config = composed(name)
    sizes = 3 if not config.data.history_of else 5  # user, history, item; and both's categories
    width = sizes * config.model.embedding_size
    assert list(config.model.hidden) == [width // 2, width // 4]
    assert (config.data.pretrain, config.data.tune, config.data.test) == (10, 14, 7)


def test_another_updater_takes_the_place_of_an_experiments():
    config = composed("asmg_sobazaar", "updater=[finetune,incctr]")
    assert list(config.updater) == ["finetune", "incctr"]
    both = composed("asmg_sobazaar", "updater=[incctr,asmg]", "updater.asmg.k=4")
    assert (both.updater.asmg.k, both.updater.asmg.output) == (4, "direct")
    mine = OmegaConf.create({"mine": {"rate": 1}, "asmg": {"k": 3}})
    drop_unchosen(mine)
    assert list(mine) == ["mine"]  # to be complained about


@pytest.mark.slow
def test_asmgs_experiment_runs_with_its_updater_and_with_another(tmp_path: Path):
    tmall(tmp_path)
    changes = [f"data.path={tmp_path}", f"data.store={tmp_path}/s", "data.end=2014-10-08"]
    changes += ["data.filters=[]", "data.pretrain=2", "data.tune=5", "data.test=1", "trainer=cpu"]
    done = train(tmp_path, "-m", "experiment=asmg_tmall", "updater=finetune,asmg", *changes)
    assert done.returncode == 0, done.stderr
    rows = [row for folder in run_folders(tmp_path) for row in read(folder / "results.csv")]
    assert {(row.model, row.updater) for row in rows} == {
        ("embedding_mlp", "finetune"),
        ("embedding_mlp", "asmg"),
    }


@pytest.mark.slow
def test_smls_experiment_runs(tmp_path: Path):
    adressa(tmp_path)
    changes = [f"data.path={tmp_path}", f"data.store={tmp_path}/s", "data.end=2017-01-02"]
    roles = ["data.pretrain=2", "data.tune=3", "data.test=1", "updater.sml.repetitions=2"]
    done = train(tmp_path, "experiment=sml_adressa", "trainer=cpu", *changes, *roles)
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(tmp_path)
    assert "recall_20" in {row.metric for row in read(folder / "results.csv")}
