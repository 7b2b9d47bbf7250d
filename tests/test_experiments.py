"""The experiment files: their settings are ones there are, and a missing log says where it can be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from incrs.door import check_settings, made
from incrs.errors import Mistake
from incrs.results import read
from incrs.train import drop_unchosen
from tests.commands import forked, run_folders
from tests.conftest import CONF
from tests.data.test_declared import PARTS, adressa, kuairand, sobazaar, tmall, yelp
from tests.data.test_originals import aliexpress, taobao

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
JOBS = {
    "incmsr_table2": 4 * 5 * 5,
    "incmsr_ablation": 4 * 5,
    "incmsr_lambda": 5 * 5,
    "asmg_table1": 6 * 5,
    "asmg_sequence_length": 6 * 5,
    "asmg_hidden_size": 4 * 5,
    "sml_variants": 6 * 5,
}
"""The experiments that are sweeps, and how many runs they are."""


def composed(name: str, *changes: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={name}", *changes])
    drop_unchosen(config.updater)
    return config


def check(config: DictConfig) -> None:
    for key in ("data", "model", "task", "optimizer"):
        check_settings(config[key], key)
    for updater in config.updater:
        made(config.updater[updater], f"updater.{updater}")


def jobs(name: str, *changes: str) -> list[list[str]]:
    """Return the overrides of every run of a sweep, as Hydra makes them with `-m`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={name}"], return_hydra_config=True)
    swept = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    overrides = OverridesParser.create().parse_overrides([*swept, *changes])
    (found,) = BasicSweeper.split_arguments(overrides, None)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_an_experiment_is_one_there_is(name: str):
    check(composed(name))
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    many = "-m " if name in JOBS else ""
    assert f"#   python -m incrs.train {many}experiment={name}" in lines
    assert ("hydra:" in lines) == (name in JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_an_experiment_that_is_a_sweep_has_its_runs_in_it(name: str):
    runs = jobs(name)
    assert len(runs) == len({tuple(run) for run in runs}) == JOBS[name]
    assert {run[-1] for run in runs} == {f"seed={seed}" for seed in range(5)}
    check(composed(name, *runs[-1]))
    assert len(jobs(name, "seed=0")) == JOBS[name] // 5  # what is given takes the place of the list


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_run_of_a_sweep_can_be_made_and_differs_from_the_others(name: str):
    configs = [composed(name, *run) for run in jobs(name, "seed=0")]
    for config in configs:
        check(config)
    assert len({OmegaConf.to_yaml(config) for config in configs}) == len(configs)


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
    done = forked(tmp_path, "-m", "experiment=asmg_tmall", "updater=finetune,asmg", *changes)
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
    done = forked(tmp_path, "experiment=sml_adressa", "trainer=cpu", *changes, *roles)
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(tmp_path)
    assert "recall_20" in {row.metric for row in read(folder / "results.csv")}


@pytest.mark.slow
def test_multifs_experiment_runs_in_the_programs_forms_and_the_posters(tmp_path: Path):
    aliexpress(tmp_path)
    changes = [f"data.path={tmp_path}", f"data.store={tmp_path}/s", "trainer=cpu"]
    forms = [f"selector.{form}_form=poster" for form in ("penalty", "shared", "final")]
    forms += ["selector.schedule_form=poster,program"]
    done = forked(tmp_path, "-m", "experiment=multifs_aliexpress", *changes, *forms)
    assert done.returncode == 0, done.stderr
    for folder in run_folders(tmp_path):
        rows = read(folder / "results.csv")
        assert {row.scenario for row in rows} >= {"NL", "FR"}
        assert {(row.period, row.role) for row in rows} == {(7, "tune"), (8, "test")}
        assert (folder / "selection.csv").is_file()


@pytest.mark.slow
def test_incmsrs_experiment_runs_on_taobao(tmp_path: Path):
    taobao(tmp_path)
    changes = [f"data.path={tmp_path}", f"data.store={tmp_path}/s", "trainer=cpu"]
    done = forked(tmp_path, "experiment=incmsr_taobao", *changes)
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(tmp_path)
    assert {row.period for row in read(folder / "results.csv")} == {3, 4, 5, 6, 7}


def test_multifs_and_its_baselines_differ_by_the_selector_alone():
    one = OmegaConf.to_container(composed("multifs_aliexpress"), resolve=True)
    two = OmegaConf.to_container(composed("multifs_baselines", "selector=multifs"), resolve=True)
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert one.pop("selector") != two.pop("selector")
    assert one == two
    other = composed("multifs_baselines", "selector=optfs", "data.variant=es_us")
    assert list(other.data.scenarios) == ["ES", "US"]
    check_settings(other.selector, "selector")


LOGS = {
    "incmsr_ablation": (
        lambda folder: kuairand(folder, "pure", PARTS["pure"]),
        ["data.start=2022-04-20", "data.end=2022-04-29", "model=shared_bottom"],
        4,
    ),
    "asmg_table1": (sobazaar, ["updater=batch,sml,asmg", "data.tune=4", "data.test=1"], 3),
    "sml_variants": (
        yelp,
        ["updater.sml={next_period:false},{forward:false}", "data.tune=2", "data.test=1"],
        2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
def test_a_sweep_of_an_experiment_runs_and_tells_its_runs_apart(name: str, tmp_path: Path):
    write, changes, runs = LOGS[name]
    write(tmp_path)
    changes = [f"data.path={tmp_path}", f"data.store={tmp_path}/s", "seed=0", *changes]
    done = forked(tmp_path, "-m", f"experiment={name}", "trainer=cpu", *changes)
    assert done.returncode == 0, done.stderr
    folders = run_folders(tmp_path)
    assert len(folders) == runs
    assert len({read(folder / "results.csv")[0].run for folder in folders}) == runs
