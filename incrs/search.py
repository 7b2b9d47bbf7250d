"""What a search may try: settings and their ranges, read from text.

log(1e-4, 1e-2)   a number, evenly by its order of magnitude     linear(0, 0.5)   a number, evenly
logint(4, 64)     a whole one                                    int(1, 6)        a whole one
star, dcn, ple    one of these; in yaml a list of them
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from incrs.errors import Mistake

ALLOWED = "log(LOW,HIGH), linear(LOW,HIGH), int(LOW,HIGH), logint(LOW,HIGH) or choices A,B,C"
DIGITS = 4
"""Digits of a number that is tried: what a person would write."""


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included.  log: by order of magnitude.  whole: integers."""

    low: float
    high: float
    log: bool
    whole: bool


class Choice(NamedTuple):
    """One of these, as they are written on a command line."""

    options: tuple[str, ...]


def flat(search: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return setting -> what to try, of a mapping whose keys may be nested or have dots in them."""
    found: dict[str, Any] = {}
    for key, value in search.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def read(setting: str, given: object) -> Range | Choice:
    """Return what to try for a setting.  Raises Mistake where it is none of the forms above."""
    said = f"search.{setting}={given if isinstance(given, str) else shown(given)}"
    if isinstance(given, Sequence) and not isinstance(given, str):
        return _choice(said, [shown(one) for one in given])
    if not isinstance(given, str):
        raise Mistake(f"{said}: give {ALLOWED}")
    word, bracket, rest = given.strip().partition("(")
    if not bracket or not word.strip().isalnum():
        return _choice(said, split(given))
    if word.strip() == "choice" and rest.rstrip().endswith(")"):
        return _choice(said, split(rest.rstrip()[:-1]))
    if word.strip() not in ("log", "linear", "int", "logint") or not rest.rstrip().endswith(")"):
        raise Mistake(f"{said}: give {ALLOWED}")
    return _range(said, word.strip(), split(rest.rstrip()[:-1]))


def _range(said: str, word: str, ends: Sequence[str]) -> Range:
    log, whole = word.startswith("log"), word.endswith("int")
    try:
        low, high = (int(end) if whole else float(end) for end in ends)
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise Mistake(f"{said}: give two {kind}, {word}(LOW,HIGH)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Mistake(f"{said}: give the lower end first and a higher one behind it")
    if log and low <= 0:
        raise Mistake(f"{said}: orders of magnitude begin above 0; give a lower end above 0")
    return Range(low, high, log, whole)


def _choice(said: str, options: Sequence[str]) -> Choice:
    if len(set(options)) < max(2, len(options)) or not all(options):
        raise Mistake(f"{said}: give two choices or more, each once, or {ALLOWED.split(' or ')[0]}")
    return Choice(tuple(options))


def split(text: str) -> list[str]:
    """Return the parts between commas that are inside of no bracket or quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def shown(value: object) -> str:
    """Return a value as it is written on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(shown, value))}]"
    return str(value)


def rounded(value: float, within: Range) -> float:
    """Return a number with the digits that a person would write, still inside its range."""
    if within.whole:
        return int(value)
    return min(max(float(f"{value:.{DIGITS}g}"), within.low), within.high)
