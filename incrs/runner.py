"""`run`: the protocol. Train on D_t, score D_{t+1}, only then let anything learn from it; repeat.

for history, following in stream.pairs(start):      # (D_0 .. D_t, D_{t+1})
...
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import lightning as L
import numpy as np
import torch

from incrs import findings, results, together
from incrs.dashboard import Timing, Watcher
from incrs.data.stream import AlignedLoader, BatchLoader, History, PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.module import ScenarioModule, clone
from incrs.next_item import Seeking, SoughtLoader, measure
from incrs.period import Period
from incrs.phases import Phase, Phases
from incrs.ranking import CandidateLoader, Ranker, Ranking
from incrs.results import Row, Run
from incrs.selection import Selection
from incrs.signals import uninterrupted
from incrs.updaters.base import Weights, overrides

log = logging.getLogger(__name__)

TrainerMaker = Callable[..., L.Trainer]


LEARN_NEXT = 1
"""Names the random numbers of what is learnt from D_{t+1}, apart from those of training on D_t."""


def seed_of(seed: int, period: int, *purpose: int) -> int:
    """Return the seed of everything random in a period; so resume needs no saved random state."""
    return int(np.random.SeedSequence([seed, period, *purpose]).generate_state(1)[0])


class _Steps(L.Callback):
    """Tells the watchers of every step."""

    def __init__(self, watchers: Sequence[Watcher]):
        self.watchers = watchers

    def on_train_batch_end(self, *_: object) -> None:
        for watcher in self.watchers:
            watcher.step_done()


class Fit:
    """`fit(module, *periods, epochs=1)` trains any LightningModule on periods' rows, shuffled.

    With `aligned=True` a step has a batch of each period, not of all of them together.
    A fresh Trainer each time: one that is fitted twice trains nothing the second time.
    """

    def __init__(self, trainer: TrainerMaker, stream: PeriodStream, watchers: Sequence[Watcher]):
        self._trainer, self._stream, self._steps = trainer, stream, _Steps(watchers)
        self.seed = 0

    def __call__(
        self, module: L.LightningModule, *periods: Period, epochs: int = 1, aligned: bool = False
    ) -> None:
        """Train the module; afterwards its weights and optimizer state are those of the last step."""
        callbacks: list[L.Callback] = [self._steps]
        if isinstance(module, ScenarioModule):
            callbacks += module.updaters.values()
        trainer = make_trainer(self._trainer, callbacks, epochs)
        loader: BatchLoader | AlignedLoader
        if aligned:
            loader = self._stream.aligned(periods, self.seed)
        else:
            loader = self._stream.loader(Period.concat(periods), self.seed)
        for watcher in self._steps.watchers:
            watcher.period_begins(periods[-1].index, periods[-1].name, epochs * len(loader))
        trainer.fit(module, loader)
        self.move_on()
        if trainer.global_step != epochs * len(loader):
            raise RuntimeError(f"trained {trainer.global_step} of {epochs * len(loader)} steps")

    def move_on(self) -> None:
        """Give the next fit a seed of its own, if none is set before it."""
        self.seed = seed_of(self.seed, 1)


def make_trainer(maker: TrainerMaker, callbacks: list[L.Callback], epochs: int) -> L.Trainer:
    """Return a Trainer that trains and nothing else: no files, no bars, no validation."""
    return maker(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def score(
    module: ScenarioModule, trainer: TrainerMaker, stream: PeriodStream, period: Period
) -> np.ndarray:
    """Return the logits of the period's rows in their order, (n,) float32."""
    return _predicted(module, trainer, stream.loader(period), len(period))


def rank(
    module: ScenarioModule, trainer: TrainerMaker, ranker: Ranker | Seeking, period: Period
) -> np.ndarray:
    """Return how many candidates are above, and level with, each positive that has an item, (n, 2)."""
    loader = ranker.loader(period)
    if not len(loader):
        return np.empty((0, 2), np.int64)
    return _predicted(module, trainer, loader, len(loader.period))


def _predicted(
    module: ScenarioModule,
    trainer: TrainerMaker,
    loader: BatchLoader | CandidateLoader | SoughtLoader,
    rows: int,
) -> np.ndarray:
    """Return what `predict_step` says of all rows of a loader, in their order, whichever process said it."""
    parts = make_trainer(trainer, [], 1).predict(module, loader)
    found = torch.cat(cast("list[torch.Tensor]", parts))
    if not together.alone():
        mine, found = found, found.new_zeros(rows, *found.shape[1:])
        found[loader.positions().to(found.device)] = mine
        (found,) = together.summed(found)
    return found.cpu().numpy()


class Update(NamedTuple):
    """What an update was: the rows trained on, over all epochs, and the phase, where runs share them."""

    rows: int
    phase: Phase = Phase()


def update(
    stream: PeriodStream,
    module: ScenarioModule,
    history: History,
    fit: Fit,
    warmup_epochs: int,
    epochs: int,
    incremental_lr: float | None,
    phases: Phases | None = None,
    selection: Selection | None = None,
) -> Update:
    """Train the module on D_t as its updaters say, or take the same training from another run."""
    warming_up = len(history) == stream.warmup
    news = history[:] if warming_up else history[-1:]
    for one in news:
        stream.roster.see(one)
    period = Period.concat(news)
    for updater in module.updaters.values():
        period = updater.training_period(module, history, period)
    if not len(period):
        return Update(0)
    if not warming_up:
        module.remember()
    module.follow(stream.roster.admit())
    if selection is not None and selection.due(len(history), stream.warmup):
        module.learning_rate = None
        searched = selection.rows(history, period, warming_up)
        selection.search(module, searched, warming_up, fit)
    present: Weights = module.backbone.state_dict()
    weights = present
    for updater in module.updaters.values():
        weights = updater.starting_weights(module, weights)
    anew = warming_up or weights is not present
    if anew:
        module.start_from(weights)
    module.learning_rate = None if anew else incremental_lr
    times = warmup_epochs if anew else epochs
    rows = len(period) * times
    if phases is None:
        fit(module, period, epochs=times)
        return Update(rows)
    train = partial(fit, module, period, epochs=times)
    beside = stream.supply and stream.supply.inputs()
    phase = phases.fit(train, module, period, fit.seed, times, warming_up, beside)
    if phase.shared:
        fit.move_on()
    return Update(rows, phase)


def losses_of(module: ScenarioModule, period: Period, updaters: Sequence[str]) -> list[float]:
    """Return the loss of every step of the last fit.  Raises Mistake where one is not finite."""
    (losses,) = together.summed(torch.stack(module.losses))
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise Mistake(
            f"the training loss is not finite in period {period.index} ({period.name}), from step "
            f"{broken[0] + 1} of {len(losses)} on, with updater {'+'.join(updaters)}: a smaller "
            "optimizer.lr may prevent it; the periods before are kept"
        )
    found: list[float] = losses.tolist()
    return found


def rates_of(module: ScenarioModule) -> str:
    """Return the settings of learning rates that the scores may have collapsed by."""
    own = [
        f"updater.{name}.learning_rate"
        for name, updater in module.updaters.items()
        if overrides(updater, "serving_weights") and hasattr(updater, "learning_rate")
    ]
    return " (or ".join(["optimizer.lr", *own]) + ")" * len(own)


def recorded(
    notes: list[findings.Finding], selection: Selection | None, period: int
) -> list[findings.Finding]:
    """Return the notes with the drift of the gates that were searched in this period, if any."""
    if selection is None:
        return notes
    name = selection.selector.name
    drift = selection.drift if selection.searched == period else {}
    kept = [note for note in notes if (note.period, note.updater) != (period, name)]
    return [*kept, *findings.of(period, name, drift)]


def run(
    stream: PeriodStream,
    module: ScenarioModule,
    trainer: TrainerMaker,
    folder: RunFolder,
    about: Run,
    watchers: Sequence[Watcher] = (),
    warmup_epochs: int = 2,
    epochs: int = 1,
    incremental_lr: float | None = None,
    ranking: Ranking | None = None,
    phases: Phases | None = None,
    selection: Selection | None = None,
    seeking: Seeking | None = None,
) -> list[Row]:
    """Run the protocol over the stream, or go on where the folder's checkpoint stands.

    about: names the run and holds the seed.  warmup_epochs: of the first fit, and of every fit that
    starts from the initial weights; epochs: of the others.  incremental_lr: learning rate of those
    others, None for the optimizer's own.  ranking: what to ask beyond AUC and log loss, if anything.
    phases: what other runs have trained already, None to train all anew; the results are the same.
    selection: searches which values count in which scenario; None where all do.
    seeking: says where the next items stand, which is then all that is asked; None where clicks are.
    Returns all rows of results.csv.
    """
    ranker = None if ranking is None else Ranker(ranking, stream, about.seed)
    done = folder.restore(module, stream.roster)
    rows = [] if done is None else folder.rows_until(done.period + done.scored)
    learners = {n: u for n, u in module.updaters.items() if overrides(u, "learn_next")}
    notes = [] if done is None else findings.read(folder.path, done.period + done.scored)
    fit = Fit(trainer, stream, watchers)
    if selection is not None and done is not None:
        selection.go_on(folder.path, done.period)
    for history, following in stream.pairs(None if done is None else done.period + done.scored):
        t = len(history) - 1
        learnt = done is not None and t == done.period
        if learnt and following is None:
            break  # no day has come since
        timing = Timing(period=t, name=history[-1].name)
        if seeking is not None:
            seeking.supply.catch_up(len(history))
        if learnt:
            timing = folder.timing(t) or timing
            module.serve(folder.read_serving(t + 1))
        else:
            began = time.perf_counter()
            fit.seed = seed_of(about.seed, t)
            L.seed_everything(fit.seed, verbose=False)
            trained, phase = update(
                stream,
                module,
                history,
                fit,
                warmup_epochs,
                epochs,
                incremental_lr,
                phases,
                selection,
            )
            notes = recorded(notes, selection, t)
            losses = losses_of(module, history[-1], list(module.updaters)) if trained else []
            own: Weights = module.backbone.state_dict()
            weights = own
            for updater in module.updaters.values():
                weights = updater.serving_weights(module, weights)
            module.serve(None if weights is own else weights)
            served = clone(weights)
            own_seconds = time.perf_counter() - began - phase.elapsed
            timing = timing._replace(
                fit_seconds=own_seconds + phase.seconds,
                rows_trained=trained,
                phase=phase.key,
                shared=phase.shared,
                phase_seconds=phase.seconds,
            )
            for watcher in watchers:
                watcher.period_learnt(losses, timing)
        found: list[Row] = []
        if following is not None:
            began = time.perf_counter()
            known = stream.roster.known
            places = None
            if seeking is not None:
                places = rank(module, trainer, seeking, following)
                cutoffs = seeking.task.cutoffs
                found = measure(about, stream.schema, following, places, known, cutoffs)
            else:
                logit = score(module, trainer, stream, following)
                if ranker is not None:
                    ranker.catch_up(history)
                    places = rank(module, trainer, ranker, following)
                found = results.measure(
                    about,
                    stream.schema,
                    following,
                    logit,
                    known,
                    places,
                    [] if ranking is None else ranking.cutoffs,
                )
            timing = timing._replace(
                scored=following.name,
                score_seconds=time.perf_counter() - began,
                rows_scored=len(following),
            )
            if any(row.metric == "collapsed" and row.value for row in found):
                log.warning(
                    "the model has collapsed: its scores of period %d (%s) are all equal or not "
                    "finite; results.csv marks it, and a smaller %s may prevent it",
                    following.index,
                    following.name,
                    rates_of(module),
                )
        module.serve(None)
        if following is not None:
            fit.seed = seed_of(about.seed, t, LEARN_NEXT)
            L.seed_everything(fit.seed, verbose=False)
            began = time.perf_counter()
            module.learning_rate = incremental_lr
            for updater in learners.values():
                updater.learn_next(module, history, following, fit)
            if learners:
                timing = timing._replace(learn_next_seconds=time.perf_counter() - began)
            for name, updater in learners.items():
                notes += findings.of(following.index, name, updater.findings())
            for watcher in watchers:
                watcher.period_scored(found, timing)
        rows += found
        if not together.first():
            continue
        with uninterrupted():
            if not learnt:
                folder.write_serving(t + 1, served, stream.roster)
            folder.write_results(rows)
            findings.write(folder.path, notes)
            if selection is not None:
                selection.write(folder.path)
            folder.add_timing(timing)
            if following is None or folder.due:
                folder.save(t, following is not None, module, stream.roster)
    return rows
