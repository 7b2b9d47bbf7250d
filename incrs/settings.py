"""Whether settings are what a class takes: their names and types, as its signature says.

What values are allowed within a type, the class itself says.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from incrs.errors import Mistake

PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    types.NoneType: ("null", (types.NoneType,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
}


def check(target: Callable[..., Any], given: Mapping[str, Any], key: str) -> None:
    """Raise Mistake where `given`, the settings below `key`, are not what `target` takes."""
    known = [name for name in inspect.signature(target).parameters if name != "self"]
    hints = _hints(target)
    for name, value in given.items():
        if name in ("_target_", "_convert_"):
            continue
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {key}.{near[0]}?" if near else f"{key} has {', '.join(known)}"
            raise Mistake(f"{key}.{name}: there is no such setting; {hint}")
        if "\\x00" in repr(value):
            raise Mistake(f"{key}.{name}: a NUL character is no part of any setting; leave it out")
        words = _words(hints.get(name, Any))
        if words and not _fits(value, hints[name]):
            quote = " (in quotes, where it reads as something else)" if words == ["text"] else ""
            raise Mistake(
                f"{key}.{name}={_shown(value)}: give {' or '.join(dict.fromkeys(words))}{quote}"
            )


@cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    plain = is_dataclass(target) or not inspect.isclass(target)
    try:
        return get_type_hints(target if plain else target.__init__)
    except (NameError, TypeError):  # of names that are for type checkers alone
        return {}


def _shown(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _arms(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _words(hint: Any) -> list[str]:
    """Return what may be given, in words; nothing where anything may."""
    found: list[str] = []
    for arm in _arms(hint):
        base = get_origin(arm) or arm
        if base in PLAIN:
            found.append(PLAIN[base][0])
        elif base is Literal:
            found += [str(value) for value in get_args(arm)]
        elif base is Any:
            return []
        elif inspect.isclass(base) and issubclass(base, Mapping):
            found.append("a mapping {key: value}")
        elif inspect.isclass(base) and issubclass(base, Sequence):
            items = [word for one in get_args(arm)[:1] for word in _words(one)]
            found.append(f"a list of {' or '.join(items)}" if items else "a list")
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type, or made by a class of its own."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    for arm in _arms(hint):
        base, inner = get_origin(arm) or arm, get_args(arm)
        if base is Any or (base is Literal and type(value) in map(type, inner)):
            return True
        if base in PLAIN:
            if isinstance(value, PLAIN[base][1]) and (base is bool or not isinstance(value, bool)):
                return True
        elif not inspect.isclass(base):
            continue
        elif issubclass(base, Mapping):
            if isinstance(value, Mapping) and all(_fits(v, inner[-1]) for v in value.values()):
                return True
        elif (
            issubclass(base, Sequence)
            and isinstance(value, list | tuple)
            and (not inner or all(_fits(one, inner[0]) for one in value))
        ):
            return True
    return False
