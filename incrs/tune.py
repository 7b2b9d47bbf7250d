"""The door that searches settings: `python -m incrs.tune data=kuairand 'search.optimizer.lr=log(1e-4,1e-2)'`

python -m incrs.tune 'search.model=star,dcn' 'search.model.embedding_size=int(4,32)' trials=20
python -m incrs.tune resume=multirun/2026-01-31/10-00-00       go on after a kill; trials=40 for more

A trial is a run in a folder of its own, the same as `python -m incrs.train` makes with the trial's settings
and `data.test=0`: what it is judged by, and all that it reads, ends with the tune periods. After each of
them Optuna may stop it. `study.db` holds what was found; the same command in a second terminal, with
`resume=`, works on the same search.  conf/tune.yaml has the settings; incrs/search.py what can be tried.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from incrs import console
from incrs.door import enter, made, run_folder
from incrs.errors import Mistake, is_full
from incrs.explaining import TOLD, explain
from incrs.folder import RunFolder
from incrs.found import draw, show, write
from incrs.judge import Judge, NoSuchMetric, Stopped
from incrs.plan import OWN, Plan, composed, groups_of, has, key_of, of_run, planned
from incrs.record import without_secret
from incrs.results import title
from incrs.search import Choice, Range, rounded, shown
from incrs.signals import Interrupted, uninterrupted
from incrs.train import begin, execute, quiet

if TYPE_CHECKING:
    import optuna

SEEDS = "seed=0,1,2,3,4"

asked: dict[str, str] = {}
"""`search.SETTING=...` of the command line, which Hydra's grammar would not let pass."""


def main(config: DictConfig) -> None:
    """Search in the folder that Hydra made, or in that of `resume`."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise Mistake(
            "-m: incrs.tune goes through settings by itself: leave out -m, and search them"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Mistake("incrs.tune runs a trial in one process: start it without torchrun")
    search(config, Path(HydraConfig.get().runtime.output_dir), asked)


def search(config: DictConfig, folder: Path, asked: Mapping[str, Any]) -> None:
    """Run trials until there are as many as the configuration says; print what was found.

    asked: setting -> what to try, beside those of the configuration.  Raises Mistake where the search
    makes no sense, or none of the trials finished.
    """
    try:
        import optuna
    except ImportError:
        raise Mistake(
            "incrs.tune: optuna is not installed; pip install 'incrs[optuna]', or pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    quiet()
    plan = planned(config, folder, asked)
    settings = plan.config
    study = optuna.create_study(
        study_name="incrs",
        storage=f"sqlite:///{folder.resolve()}/study.db?timeout=60",
        direction="minimize" if str(settings.metric).startswith("logloss") else "maximize",
        pruner=made(settings.pruner, "pruner") if settings.pruner else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    say(f"{plan.trials} trials, {plan.periods} tune periods each, in {folder}")
    try:
        while (taken := take(plan, study)) is not None:
            trial, claim = taken
            with claim:
                attempt(plan, trial)
            gc.collect()
    except Interrupted:
        say(f"stopped; to go on: {again(folder)}")
        raise
    conclude(plan, study)


def say(text: str) -> None:
    """Print one line; the console's own lines about runs are for single ones."""
    print(text, flush=True)


def again(folder: Path) -> str:
    """Return the command that goes on with a search."""
    flags = [arg for arg in sys.argv[1:] if arg.startswith("--config-dir=")]
    if "--config-dir" in sys.argv[:-1]:
        flags = ["--config-dir", sys.argv[sys.argv.index("--config-dir") + 1]]
    return shlex.join(["python", "-m", "incrs.tune", *flags, f"resume={folder}"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from choosing a trial while inside."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def take(plan: Plan, study: optuna.Study) -> tuple[optuna.Trial, ExitStack] | None:
    """Return the next trial and the hold on its folder, which others respect; None where all are taken.

    A trial that a process left behind comes first: its run goes on where it stopped.
    """
    import optuna

    with uninterrupted(), locked(plan.folder):
        begun = study.get_trials(deepcopy=False)
        for one in begun:
            if one.state == optuna.trial.TrialState.RUNNING:
                try:
                    claim = claimed(plan, one.number)
                except Mistake:
                    continue  # another process is at it
                return optuna.Trial(study, one._trial_id), claim
        if len(begun) >= plan.trials:
            return None
        trial = study.ask()
        return trial, claimed(plan, trial.number)


def claimed(plan: Plan, number: int) -> ExitStack:
    """Return a hold on a trial's folder.  Raises Mistake where another process has it."""
    with ExitStack() as stack:
        stack.enter_context(RunFolder(plan.folder / str(number)).claimed())
        return stack.pop_all()


def settings_of(plan: Plan, trial: optuna.Trial) -> dict[str, str]:
    """Return what the trial tries, as text; what its choices have no such setting of is left out."""
    words = np.random.SeedSequence([plan.config.seed, trial.number]).generate_state(1)
    trial.study.sampler = made(plan.config.sampler, "sampler", seed=int(words[0]))
    groups = groups_of(plan)
    found = {name: suggested(trial, name, plan.search[name]) for name in groups}
    config = composed(of_run(plan, found))
    for name, values in plan.search.items():
        if name not in groups and has(config, name):
            found[name] = suggested(trial, name, values)
    return found


def suggested(trial: optuna.Trial, name: str, values: Range | Choice) -> str:
    """Return what Optuna suggests for one setting."""
    if isinstance(values, Choice):
        return str(trial.suggest_categorical(name, values.options))
    if values.whole:
        whole = trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
        return shown(rounded(whole, values))
    number = trial.suggest_float(name, values.low, values.high, log=values.log)
    return shown(rounded(number, values))


def attempt(plan: Plan, trial: optuna.Trial) -> None:
    """Run a trial, or go on with it; tell Optuna what came out, and the person, in one line."""
    from optuna.trial import TrialState

    began = time.perf_counter()
    with uninterrupted():
        settings = settings_of(plan, trial)
        trial.set_user_attr("settings", settings)
    folder = RunFolder(plan.folder / str(trial.number))
    overrides = of_run(plan, settings)
    config = composed(overrides)
    judge = Judge(folder, trial, config.metric, plan.periods)
    for key in OWN:
        if key != "resume":
            with open_dict(config):
                del config[key]
    of_train = [without_secret(one) for one in overrides if key_of(one).split(".")[0] not in OWN]
    state, said = TrialState.COMPLETE, ""
    try:
        record = folder.record or begin(config, folder) | {
            "command": shlex.join(["python", "-m", "incrs.train", *of_train]),
            "overrides": of_train,
        }
        with folder.written():
            execute(config, folder, record, [judge])
    except Stopped:
        state, said = (
            TrialState.PRUNED,
            f"pruned after {judge.scored} of {plan.periods} tune periods",
        )
    except TOLD as error:
        sentence = explain(error)
        first = not any(one.value is not None for one in trial.study.trials)
        if sentence is None or is_full(error.__cause__ or error):
            raise
        if isinstance(error, NoSuchMetric) or (first and not folder.record):
            trial.study.tell(trial.number, state=TrialState.FAIL)
            raise
        state, said = TrialState.FAIL, f"failed: {sentence}"
    if state == TrialState.COMPLETE and judge.value is None:
        state, said = TrialState.FAIL, f"failed: no tune period has a value of {judge.metric}"
    with uninterrupted():
        seconds = trial.user_attrs.get("seconds", 0.0) + time.perf_counter() - began
        trial.set_user_attr("seconds", seconds)
        trial.set_user_attr("metric", judge.metric)
        value = judge.value if state == TrialState.COMPLETE else None
        trial.study.tell(trial.number, value, state)
    number = "" if judge.value is None else f"{title(str(judge.metric))} {judge.value:.4f}"
    tried = " ".join(f"{name}={value}" for name, value in settings.items())
    line = [f"trial {trial.number:>3}", number, tried, f"{seconds:.1f} s", said]
    say("  ".join(part for part in line if part))


def conclude(plan: Plan, study: optuna.Study) -> None:
    """Write and draw what was found, print the best trials and the command of the best."""
    from optuna.trial import TrialState

    trials = study.get_trials()
    whole = [one for one in trials if one.state == TrialState.COMPLETE]
    write(trials, list(plan.search), plan.folder / "trials.csv")
    if not whole:
        raise Mistake(
            f"none of the {len(trials)} trials has finished: see what they said above; other ranges "
            "may help"
        )
    minimal = study.direction.name == "MINIMIZE"
    draw(trials, plan.search, minimal, plan.folder / "trials.png")
    show(trials, minimal)
    running = sum(one.state == TrialState.RUNNING for one in trials)
    if running:
        say(f"{running} trials are still running in other processes")
    settings = study.best_trial.user_attrs["settings"]
    own = {"seed", *settings}
    base = [
        o for o in plan.overrides if key_of(o) not in own and key_of(o).split(".")[0] not in OWN
    ]
    best = [*base, *(f"{name}={value}" for name, value in settings.items())]
    say("the best settings, on the test periods:")
    say("  " + shlex.join(["python", "-m", "incrs.train", "-m", *best, SEEDS]))
    say(f"everything is in {plan.folder}")


def study_folder(resume: str | None, fresh: str) -> str:
    """Return the folder of a search: the one it goes on in, or a new one of its own."""
    if resume is None:
        return run_folder(None, fresh)
    if (Path(str(resume)) / "study.json").is_file():
        return str(resume)
    raise Mistake(
        f"resume={resume}: there is no study.json in that folder, so no search to go on with"
    )


def take_search(arguments: Sequence[str]) -> list[str]:
    """Take `search.SETTING=...` out of a command line into `asked`; return the rest."""
    rest = []
    for one in arguments:
        name, equals, value = one.partition("=")
        if name.startswith("search.") and equals:
            asked[name.removeprefix("search.")] = value
        else:
            rest.append(one)
    return rest


if __name__ == "__main__":
    sys.argv[1:] = take_search(sys.argv[1:])
    OmegaConf.register_new_resolver("run_folder", study_folder, replace=True, use_cache=True)
    console.terminal.quiet = True
    enter(main, name="tune")
