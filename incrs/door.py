"""How a command begins and ends: Hydra composes, a user's mistake is one sentence and exit status 2."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from incrs import settings
from incrs.environment import CONF
from incrs.errors import Mistake
from incrs.explaining import TOLD, explain
from incrs.signals import Interrupted, listen, silence

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
FIRST = not any(int(os.environ.get(name, "0")) for name in RANKS)
"""Whether this process speaks for all those that train together, by what its launcher says."""


PARENT = os.getppid()


class _Stop(BaseException):
    """Ends the command from inside a job; Hydra lets it pass."""

    def __init__(self, status: int):
        self.status = status


class JobsFailed(BaseException):
    """Ends a sweep whose jobs had processes of their own, where some failed; each has been told of.

    numbers: of those that failed.  jobs: how many there were.
    """

    def __init__(self, numbers: Sequence[int], jobs: int):
        self.numbers, self.jobs = numbers, jobs


COMPOSED = 200
"""So many jobs' configurations are kept for a second use."""


def composed_once(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Return what composes a job's configuration for two: the sweeper, which checks it, and the launcher."""
    waiting: dict[tuple[str, ...], DictConfig] = {}
    launching = False

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        nonlocal launching
        found = waiting.pop(tuple(sweep_overrides), None)
        if found is not None:
            launching = True
            return found
        found = compose(master_config, sweep_overrides)
        if not launching and len(waiting) < COMPOSED:
            waiting[tuple(sweep_overrides)] = found
        return found

    return load_sweep_config


def read_once(source: Any) -> None:
    """Have one of Hydra's sources of configuration read each file once for all jobs of a sweep."""
    read, kept = source.load_config, {}

    def load_config(config_path: str) -> Any:
        if config_path not in kept:
            kept[config_path] = read(config_path)
        return deepcopy(kept[config_path])  # whoever gets it changes it

    source.load_config = load_config


class Sweeping(Callback):
    """Is told by Hydra, by conf/train.yaml, that a sweep begins, and keeps its folder."""

    folder: ClassVar[Path | None] = None
    pid: ClassVar[int | None] = None

    def on_multirun_start(self, config: DictConfig, **others: Any) -> None:
        """Keep the folder; where jobs run here, or are forked, compose each once, of files read once."""
        Sweeping.folder, Sweeping.pid = Path(str(config.hydra.sweep.dir)), os.getpid()
        if config.hydra.runtime.choices["hydra/launcher"] in ("basic", "gpu_queue"):
            loader: Any = GlobalHydra.instance().config_loader()
            loader.load_sweep_config = composed_once(loader.load_sweep_config)
            for source in loader.repository.get_sources():
                read_once(source)

    @staticmethod
    def here() -> bool:
        """Return whether this process is a sweep's command: so its jobs run here, one after the other."""
        return Sweeping.pid == os.getpid()


class Job:
    """A job as Hydra calls it: in the command's process, or in one that a launcher starts for it.

    Such a process may be on another machine, so this is pickled, and what it holds is found by its name.
    """

    def __init__(self, job: Callable[[DictConfig], None]):
        self.job, self.argv, self.pid = job, sys.argv, os.getpid()

    def __call__(self, config: DictConfig) -> None:
        """Run the job; tell a mistake and end the command, or hand it to the process that tells it."""
        sys.argv = self.argv
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            self.job(config)
        except Interrupted:
            remove_empty(folder)
            raise
        except TOLD as error:
            sentence = explain(error)
            if sentence is None:
                raise
            remove_empty(folder)
            if os.getpid() != self.pid:
                raise Mistake(sentence) from None
            tell(sentence)
            raise _Stop(2) from None
        except Exception:
            if FIRST or not _orphaned():
                raise
            raise _Stop(1) from None


def run_folder(resume: str | None, fresh: str) -> str:
    """Return the folder a single run writes to: the one it goes on in, or a new one of its own.

    Runs that start in the same second get `fresh`, `fresh-2`, ...: making the folder is the claim.
    """
    if resume is not None:
        if (Path(str(resume)) / "run.json").is_file():
            return str(resume)
        raise Mistake(
            f"resume={resume}: there is no run.json in that folder, so no run to go on with"
        )

    def claim() -> str:
        folder, number = Path(fresh), 1
        while True:
            try:
                folder.mkdir(parents=True)
                return str(folder)
            except FileExistsError:
                number += 1
                folder = Path(f"{fresh}-{number}")
            except OSError as error:
                raise Mistake(
                    f"{folder}: the run's folder cannot be made ({error.strerror}): start in a folder "
                    "that can be written to, or give another one with hydra.run.dir=FOLDER"
                ) from error

    return agreed(claim, "run")


def agreed(choose: Callable[[], str], what: str) -> str:
    """Return what the first of the processes that torchrun started chooses, in all of them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return choose()
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"incrs/{os.environ['TORCHELASTIC_RUN_ID']}/{what}"
    if FIRST:
        store.set(key, choose())
    return str(store.get(key).decode())


def sweep_folder(fresh: str) -> str:
    """Return the folder of a sweep, the same in all processes."""
    return agreed(lambda: fresh, "sweep")


# conf/hydra/launcher holds whole settings for launchers that bring a schema of the same name
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated")
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True, use_cache=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)


def enter(
    job: Callable[[DictConfig], None],
    sum_up: Callable[[Path], None] | None = None,
    name: str = "train",
) -> None:
    """Compose the configuration from the command line and run the job, once or as a sweep.

    sum_up: called with a sweep's folder at its end, also where some of its jobs failed.  name: of the
    yaml that the configuration begins with.
    Exit status: 0, 1 where jobs of a queue failed, 2 for a user's mistake, 128 + the signal's number
    (130 for Ctrl-C).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; told below
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    gc.enable()  # see incrs/__init__.py
    gc.freeze()  # what was imported stays: no collection after a run needs to look through it
    check_flags()
    listen()

    def command() -> None:
        failed: JobsFailed | None = None
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(Job(job))()
        except JobsFailed as error:
            failed = error
        except Interrupted:
            if Sweeping.folder and FIRST:
                print(f"to go on with the sweep: {again()}")
            raise
        if Sweeping.folder and sum_up and FIRST:
            sum_up(Sweeping.folder)
        if failed:
            which = ", ".join(f"#{number}" for number in failed.numbers)
            tell(
                f"{len(failed.numbers)} of {failed.jobs} jobs failed ({which}); to run what is missing: "
                f"{again()}"
            )
            raise _Stop(1)

    try:
        status = status_of(command)
    finally:
        silence()
    if status:
        sys.exit(status)


def again() -> str:
    """Say which command runs what is missing of the sweep."""
    given = any(argument.startswith("hydra.sweep.dir=") for argument in sys.argv)
    return "the same command" + ("" if given else f" with hydra.sweep.dir={Sweeping.folder}")


def status_of(command: Callable[[], None]) -> int:
    """Run a command and return its exit status, after telling the user's mistake that ended it, if any."""
    try:
        command()
    except _Stop as stop:
        return stop.status
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except RuntimeError as error:
        name = re.search(r"Unknown plugin class : '(.*)'", str(error))
        if name is None:
            raise
        extra = next((e for e in ("submitit", "ray") if e in name[1]), None)
        extra = {"submitit": "slurm"}.get(extra or "", extra)
        tell(f"hydra/launcher: {name[1]} is not installed: pip install 'incrs[{extra or 'NAME'}]'")
        return 2
    except (*TOLD, ValueError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        tell(sentence)
        return 2
    return 0


def check_flags() -> None:
    """End the command with a sentence where Hydra would print its usage, as for `--nonsense`."""

    def refuse(message: str) -> NoReturn:
        tell(f"{message}; --help lists what there is")
        sys.exit(2)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def _orphaned() -> bool:
    """Return whether the process that started this one ends within seconds; it has told why."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if os.getppid() != PARENT:
            return True
        time.sleep(0.1)
    return False


def remove_empty(folder: Path) -> None:
    """Remove the folder made for a run that never began and, below multirun, what held only it."""
    while folder.is_dir() and folder.name != "multirun" and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
        if "multirun" not in folder.parts:
            return


def maker(config: DictConfig, key: str) -> Callable[..., Any]:
    """Return what makes the object that `config[key]` declares, once called with what is missing.

    Raises Mistake where a setting is none that the class takes.
    """
    check_settings(config[key], key)
    return cast("Callable[..., Any]", instantiate(config[key], _partial_=True, _convert_="all"))


def made(config: DictConfig, key: str, **others: Any) -> Any:
    """Return the object that the settings below `key` declare.

    others: arguments beside those declared.  Raises Mistake where a setting is none that the class takes.
    """
    check_settings(config, key)
    return instantiate(config, **others, _convert_="all")


def check_settings(config: DictConfig, key: str) -> None:
    """Raise Mistake where the settings below `key` name no class, or are none that it takes."""
    given = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(given, dict) or not isinstance(given.get("_target_"), str):
        raise Mistake(
            f"{key}: nothing says which class it is: give its yaml a `_target_`, or begin it with "
            "`defaults: [NAME]`, the name of another yaml beside it that has one"
        )
    try:
        target = get_object(given["_target_"])
    except (ImportError, ValueError) as error:
        raise Mistake(
            f"{key}._target_={given['_target_']}: there is no such class: "
            f"{' '.join(str(error.__cause__ or error).split())}"
        ) from error
    settings.check(target, {str(name): value for name, value in given.items()}, key)


def tell(sentence: str) -> None:
    """Print a mistake to standard error, once where several processes train together."""
    if not FIRST:
        return
    print(f"incrs: {sentence}", file=sys.stderr, flush=True)
