"""The answer in words: which updater to deploy, how sure that is, and what it costs.

An updater is better where both hold: its star, by the Holm-corrected t-test over all pairs, and the
cautious interval, which knows that pairs of one seed or one period go together, leaves out zero.
Without the second there is no answer that a new seed or a new week could not turn over.

Where an updater was tried with several settings, the one that did best on the tune periods stands for
it: the best of many on the test periods is better there than it will be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from incrs.summary import Line

CHEAPER = 0.8
"""The share of a cost below which another cost is worth a word."""


class Answer(NamedTuple):
    """What to deploy on one log with one model.

    name: the configuration to deploy.  headline: that in a few words.  because: how sure that is.  sure:
    whether the choice rests on a reliable difference.  cost: what it costs.
    """

    log: str
    model: str
    name: str
    headline: str
    because: str
    sure: bool
    cost: str


def is_better(line: Line, up: bool) -> bool:
    """Return whether a line is reliably better than its baseline.  up: whether more is better."""
    return line.star == "*" and line.gap is not None and (line.gap.difference > 0) == up


def is_worse(line: Line, up: bool) -> bool:
    """Return whether a line is reliably worse than its baseline.  up: whether more is better."""
    return line.star == "*" and line.gap is not None and (line.gap.difference > 0) != up


def answers(
    lines: Sequence[Line],
    baseline: str,
    metric: str,
    up: bool,
    tuned: Mapping[tuple[str, str, str], float],
) -> list[Answer]:
    """Return the answer for each log and model of the summary.

    metric: what people call it.  up: whether more of it is better.  tuned: (log, model, label) -> mean
    over the tune periods; empty where the lines themselves are of those.
    """
    found = []
    for log, model in dict.fromkeys((line.data, line.model) for line in lines):
        own = [line for line in lines if (line.data, line.model) == (log, model)]
        some = _one_each(own, baseline, tuned, up)
        base = next((line for line in some if _named(line) == baseline), None)
        name, headline, because, sure = _choice(some, base, baseline, metric, up)
        if len(some) < len(own) and tuned:
            because += " Of each updater this is the setting that did best on the tune periods."
        cost = _cost(name, some, base)
        found.append(Answer(log, model, name, headline, because, sure, cost))
    return found


def _named(line: Line) -> str:
    """Return the updater of a line without its settings."""
    return line.updater.split(" ")[0]


def _one_each(
    own: Sequence[Line], baseline: str, tuned: Mapping[tuple[str, str, str], float], up: bool
) -> list[Line]:
    """Return for each updater the setting that did best on the tune periods; all where none is known.

    Settings that tune periods cannot tell apart all stay. Of the baseline there is always one, and of the
    others those that were compared to it.
    """
    by_name: dict[str, list[Line]] = {}
    for line in own:
        by_name.setdefault(baseline if line.updater == baseline else _named(line), []).append(line)
    kept: list[Line] = []
    for name, some in by_name.items():
        scores = [tuned.get((line.data, line.model, line.updater)) for line in some]
        known = [score for score in scores if score is not None]
        if len(known) == len(some):
            top = max(known) if up else min(known)
            some = [line for line, score in zip(some, scores, strict=True) if score == top]
        kept += sorted(some, key=lambda line: line.updater)[:1] if name == baseline else some
    bases = {line.updater for line in kept if _named(line) == baseline}
    return [line for line in kept if line.baseline is None or line.baseline in bases]


def _choice(
    some: Sequence[Line], base: Line | None, baseline: str, metric: str, up: bool
) -> tuple[str, str, str, bool]:
    """Return the name to deploy, that in a few words, why, and whether it is sure."""
    ranked = sorted(some, key=lambda line: -line.value if up else line.value)
    best = ranked[0].updater
    tries = sum(_named(line) == _named(ranked[0]) for line in some)
    picked = (
        f" It is the best of {tries} settings on these very periods, and so looks better than it is."
        if tries > 1
        else ""
    )
    if base is None:
        why = f"It has the best {metric}, but there are no runs of {baseline} to test it against.{picked}"
        return best, f"{best} comes first", why, False
    others = [line for line in ranked if line is not base]
    if not others:
        return (
            base.updater,
            f"Only {base.updater} was run",
            "There is nothing to compare it with.",
            False,
        )
    if all(line.gap is None or line.gap.cautious is None for line in others):
        few = (
            "one seed"
            if base.seeds == 1
            else "one period"
            if base.periods == 1
            else "too few pairs"
        )
        why = f"{best} has the best {metric}, but {few} cannot show whether others would agree. "
        why += _gap(others[0], metric) + picked
        return best, f"Not settled: {few}", why, False
    better = [line for line in others if is_better(line, up)]
    if better:
        first, *rest = better
        why = _gap(first, metric)
        if rest:
            names = ", ".join(line.updater for line in rest)
            why += f" Reliably better, too: {names}; which of these is best was not tested."
        return first.updater, f"Deploy {first.updater}", why + picked, True
    count = "The other one is not" if len(others) == 1 else f"None of the other {len(others)} is"
    why = f"{count} reliably better. {_gap(others[0], metric, 'The nearest, ')}"
    limit = CHEAPER * (base.seconds or 0)
    cheap = [line for line in others if line.seconds is not None and line.seconds < limit]
    cheap = [line for line in cheap if not is_worse(line, up)]
    if cheap:
        why += f" {cheap[0].updater} costs less and is not reliably worse."
    return base.updater, f"Deploy {base.updater}", why, False


def _gap(line: Line, metric: str, lead: str = "") -> str:
    """Say by how much a line differs from its baseline, and how sure that is."""
    name = f"{lead}{line.updater}," if lead else line.updater
    found = line.gap
    if found is None:
        return f"{name} shares too few seeds and periods with the baseline for a test."
    if found.same:
        return f"{name} gives the same numbers as {line.baseline} in every period."
    half = found.half_width if found.cautious is None else found.cautious
    low, high = found.difference - half, found.difference + half
    return (
        f"{name} differs from {line.baseline} by {_signed(found.difference)} {metric} "
        f"(95% interval {_signed(low)} to {_signed(high)}, Holm-corrected p {_p(line.p)})."
    )


def _cost(name: str, some: Sequence[Line], base: Line | None) -> str:
    """Say what an update by `name` costs, beside the baseline or the others."""
    seconds = {line.updater: line.seconds for line in some if line.seconds is not None}
    if name not in seconds:
        return f"What an update by {name} costs was not timed."
    own = seconds.pop(name)
    says = f"{name} takes {own:.2f} s a period"
    if base is not None and base.seconds and base.updater != name:
        return f"{says}, {own / base.seconds:.1f} times {base.updater}'s {base.seconds:.2f} s."
    if not seconds:
        return f"{says}."
    low, high = f"{min(seconds.values()):.2f}", f"{max(seconds.values()):.2f}"
    return f"{says}, the others {low if low == high else f'{low} to {high}'} s."


def _signed(value: float) -> str:
    shown = f"{value:+.5f}"
    return shown.replace("-", "\u2212") if float(shown) else shown[1:]


def _p(p: float | None) -> str:
    return "unknown" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
