"""What watches a run: the contract of a watcher, and the ones that write for other tools.

Watchers are told what happened; nothing they do changes a number.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import statistics
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from incrs import results
from incrs.errors import Mistake
from incrs.period import Role
from incrs.results import POOLED, Row, headline, replace_text

log = logging.getLogger(__name__)

T = TypeVar("T")


class Timing(NamedTuple):
    """What one period cost.

    period, name: the period trained on.  scored: the name of the one scored, empty until there is one.
    fit_seconds, score_seconds, learn_next_seconds: wall clock, the last of what updaters learnt from
    the period scored.  rows_trained: summed over epochs.  rows_scored: rows.
    phase: the key of the training, empty where none is shared.  shared: whether another run did it.
    phase_seconds: of fit_seconds, what the training took where it was done.
    """

    period: int
    name: str
    scored: str = ""
    fit_seconds: float = 0.0
    score_seconds: float = 0.0
    rows_trained: int = 0
    rows_scored: int = 0
    learn_next_seconds: float = 0.0
    phase: str = ""
    shared: bool = False
    phase_seconds: float = 0.0


class Watcher:
    """Is told what happens in a run; every default does nothing.

    A run that was stopped tells of a period again when it goes on with it: what was told of that
    period and of later ones before no longer holds.
    """

    def run_begins(self) -> None:
        """The run begins; its folder holds run.json."""

    def period_begins(self, period: int, name: str, steps: int) -> None:
        """Training on `period` begins; it takes `steps` optimizer steps."""

    def step_done(self) -> None:
        """One optimizer step was taken."""

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        """A period was trained on; its model serves the next.  losses: of every step."""

    def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
        """The period after it has come and was scored.  rows: what the scores gave."""

    def run_ends(self, finished: bool) -> None:
        """The run is over: finished, or stopped before its end by a signal or an error."""


class LossCsv(Watcher):
    """Writes `losses.csv` into the run folder: the training loss of every `every`-th step.

    folder: the run folder.  every: steps, at least 1.
    """

    def __init__(self, folder: str, every: int = 10):
        self.path, self.every = Path(folder) / "losses.csv", every

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        """Write the period's losses behind those of the periods before it."""
        kept = self.path.read_text().splitlines() if self.path.exists() else ["period,step,loss"]
        kept = [kept[0], *(line for line in kept[1:] if int(line.split(",")[0]) < timing.period)]
        steps = range(0, len(losses), self.every)
        kept += [f"{timing.period},{step},{losses[step]}" for step in steps]
        replace_text(self.path, "\n".join(kept) + "\n")


class Wandb(Watcher):
    """Logs a run to Weights & Biases, one W&B run for each run folder.

    folder: the run folder.  project, entity, group, tags: W&B's; group None: a sweep's is the name of
    its folder, a single run has none.  mode: online, offline or disabled;
    None leaves it to W&B's own settings.  timeout: seconds to wait for W&B at most: at the start, then
    for each call; above 0.

    Charts are over `period`: the one scored, and for `loss/train` and `seconds/fit` the one trained on.
    A run that goes on continues its W&B run; periods told again are logged again, and the later point
    holds. The table `results/periods` and the means over test periods (`test_auc/all`, ...) are read
    from results.csv when the run finishes.

    Where W&B cannot be reached a run is logged offline, and where it is lost later the run goes on
    without it; either is said once. Raises Mistake where wandb is missing or refuses a setting.
    """

    def __init__(
        self,
        folder: str,
        project: str = "incrs",
        entity: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        timeout: float = 30,
    ):
        try:
            import wandb
        except ImportError:
            raise Mistake(
                "logger=wandb: wandb is not installed; pip install wandb, or leave the logger out"
            ) from None
        if mode not in (None, "online", "offline", "disabled"):
            raise Mistake(f"logger.wandb.mode={mode}: give online, offline, disabled or null")
        if isinstance(tags, str):
            raise Mistake(f"logger.wandb.tags={tags}: give a list: [{tags}]")
        if not 0 < timeout < math.inf:
            raise Mistake(f"logger.wandb.timeout={timeout}: give seconds, more than 0")
        self._wandb: Any = wandb
        self._folder, self._timeout = Path(folder), timeout
        group = group_of(Path(folder)) if group is None else group
        given = {"project": project, "entity": entity, "mode": mode, "run_group": group}
        self._options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        self._options |= {
            "run_tags": [str(tag) for tag in tags],
            "root_dir": folder,
            "resume": "allow",
            "reinit": "create_new",
            "init_timeout": timeout,
            "silent": True,
            "console": "off",
            "x_disable_meta": True,  # it would log the command line, with any secret in it
        }
        try:
            self._wandb.Settings(**self._options)
        except (ValueError, wandb.errors.UsageError) as error:
            raise Mistake(f"logger.wandb: {_refusal(error)}") from None
        self._run: Any = None
        self._lost = False
        self._keys: set[str] = set()

    def run_begins(self) -> None:
        """Open the W&B run, offline where W&B cannot be reached; say where it can be seen."""
        if self._run is not None or self._lost:
            return
        try:
            self._run = self._open()
        except Exception as error:
            self._abandon()
            try:
                self._run = self._open(mode="offline")
            except Exception as worse:
                self._give_up(worse)
                return
            log.warning("W&B cannot be reached (%s): logging offline", self._reason(error))
        if not self._run.disabled:
            print(f"W&B: {self._sync if self._run.offline else self._run.url}", flush=True)

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        """Log the mean loss and the seconds of the period."""
        values = {"seconds/fit": timing.fit_seconds}
        if losses:
            values["loss/train"] = statistics.fmean(losses)
        self._log(timing.period, values)

    def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
        """Log the metrics of the period scored, by scenario and of all together."""
        keys = keys_of(rows)
        values = {key: row.value for key, row in zip(keys, rows, strict=True) if key is not None}
        found = {key: value for key, value in values.items() if value is not None}
        found["seconds/score"] = timing.score_seconds
        if timing.learn_next_seconds:
            found["seconds/learn_next"] = timing.learn_next_seconds
        self._log(rows[0].period, found)

    def run_ends(self, finished: bool) -> None:
        """Log the table and the means of a finished run, and finish the W&B run."""
        if self._run is None:
            return
        if finished and (self._folder / results.FILE).exists():
            rows = results.read(self._folder / results.FILE)
            self._try(lambda: self._conclude(rows))
        try:
            within(self._timeout, lambda: self._run.finish(exit_code=0 if finished else 1))
        except Exception as error:
            self._give_up(error)
            self._abandon()
        self._run = None

    def _open(self, **options: str) -> Any:
        record = json.loads((self._folder / "run.json").read_text())
        about = record["about"]
        settings = self._options | options
        settings["run_id"] = self._id()
        settings["run_name"] = "{model} {updater} {data} seed {seed}".format(**about)
        config = record["config"] | {"about": about, "versions": record["versions"]}

        def start() -> Any:
            self._wandb.setup(settings=self._wandb.Settings(silent=True))
            return self._wandb.init(config=config, settings=self._wandb.Settings(**settings))

        return within(self._timeout + GRACE, start)

    def _id(self) -> str:
        """Return the W&B run's id, kept in the folder so that a run that goes on continues it."""
        path = self._folder / "wandb.json"
        if not path.exists():
            replace_text(path, json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
        return str(json.loads(path.read_text())["id"])

    def _log(self, period: int, values: dict[str, float]) -> None:
        self.run_begins()
        self._try(lambda: self._send({"period": period} | values))

    def _send(self, values: dict[str, float]) -> None:
        for key in values.keys() - self._keys:
            self._run.define_metric(key, step_metric=None if key == "period" else "period")
        self._keys |= values.keys()
        self._run.log(values)

    def _conclude(self, rows: Sequence[Row]) -> None:
        record = json.loads((self._folder / "run.json").read_text())
        names = {one["period"] + 1: one["scored"] for one in record.get("timings", [])}
        columns, lines = table_of(rows, names)
        self._run.log({"results/periods": self._wandb.Table(columns=columns, data=lines)})
        self._run.summary.update(means_of(rows))

    def _try(self, call: Callable[[], None]) -> None:
        """Call W&B in bounded time; the first failure is said, and nothing is logged after it."""
        if self._lost:
            return
        try:
            within(self._timeout + GRACE, call)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._lost:
            self._lost = True
            kept = "" if self._run is None else f"; for what it was told: {self._sync}"
            log.warning("W&B is lost (%s): the run goes on without it%s", self._reason(error), kept)

    def _abandon(self) -> None:
        """Leave W&B's service, which may hang or be dead, so that the next run starts a new one."""
        try:
            within(GRACE, self._wandb.teardown)
        except Exception as error:
            log.debug("wandb.teardown: %s", error)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer within {self._timeout:g} s"
        return " ".join((str(error) or type(error).__name__).split())[:200]

    @property
    def _sync(self) -> str:
        return f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"


SWEEPS = ("multirun.yaml", "study.json")
"""What is beside the runs of a sweep, or of a search."""


def group_of(folder: Path) -> str | None:
    """Return the W&B group of a run: its sweep's folder, as 2026-01-31_10-00-00; None of a single run."""
    sweep = folder.resolve().parent
    return "_".join(sweep.parts[-2:]) if any((sweep / name).exists() for name in SWEEPS) else None


GRACE = 5.0
"""Seconds that wandb gets on top of a time limit of its own, and to shut down."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns; raise TimeoutError where it takes longer, and leave it behind."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)
        except BaseException as error:  # wandb.teardown may call sys.exit
            answer.set_exception(RuntimeError(repr(error)))

    threading.Thread(target=work, daemon=True).start()
    return answer.result(seconds)


OF_SCENARIO = re.compile(r"auc|logloss|(recall|hr|ndcg)_\d+")
"""What is charted by scenario, too."""


def labels_of(scenarios: Sequence[str]) -> dict[str, str]:
    """Return names of letters, digits and `_` for scenarios, each beginning with a letter or `_`."""
    found: dict[str, str] = {}
    for index, name in enumerate(scenarios):
        label = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not label.strip("_"):
            label = f"scenario_{index}"
        elif label[0].isdigit():
            label = f"scenario_{label}"
        while label in found.values():
            label += "_"
        found[name] = label
    return found


def keys_of(rows: Sequence[Row]) -> list[str | None]:
    """Return each row's key, `auc/home`: every pooled metric, some by scenario, else None."""
    labels = labels_of(list(dict.fromkeys(row.scenario for row in rows)))
    return [
        f"{row.metric}/{labels[row.scenario]}"
        if row.scenario == POOLED or OF_SCENARIO.fullmatch(row.metric)
        else None
        for row in rows
    ]


def means_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean over test periods of every key, as `test_auc/home`."""
    found: dict[str, list[float]] = {}
    for key, row in zip(keys_of(rows), rows, strict=True):
        if key is not None and row.role == Role.TEST and row.value is not None:
            found.setdefault(f"test_{key}", []).append(row.value)
    return {key: statistics.fmean(values) for key, values in found.items()}


def table_of(rows: Sequence[Row], names: dict[int, str]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and lines of the table of a run: a line for each period, two metrics by scenario.

    These are AUC and log loss, or Recall and NDCG of the largest cutoff where the run ranks.
    names: what people call the periods, by index.
    """
    labels = labels_of(list(dict.fromkeys(row.scenario for row in rows)))
    wanted = [(metric, scenario) for metric in headline(rows) for scenario in labels]
    value = {(row.period, row.metric, row.scenario): row.value for row in rows}
    columns = ["period", "name", "role", *(f"{metric}_{labels[s]}" for metric, s in wanted)]
    lines = [
        [period, names.get(period, ""), role, *(value.get((period, *one)) for one in wanted)]
        for period, role in {row.period: row.role for row in rows}.items()
    ]
    return columns, lines


def _refusal(error: Exception) -> str:
    """Return what wandb has against a setting, in one sentence."""
    if isinstance(error, ValueError):  # pydantic's, several lines long
        found = [f"{one['loc'][0]}: {one['msg']}" for one in getattr(error, "errors", list)()]
        return "; ".join(found) or str(error)
    return str(error)
