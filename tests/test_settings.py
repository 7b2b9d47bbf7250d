"""Settings are checked against the signature of what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from incrs.errors import Mistake
from incrs.settings import check


@dataclass
class Declared:
    """A class with all types that settings have."""

    name: str
    size: int = 1
    rate: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    many: Sequence[str] = ()
    pairs: Mapping[str, int] | None = None
    either: str | int | None = None
    table: torch.Tensor | None = None
    anything: Any = None


GOOD: list[dict[str, Any]] = [
    {"name": "", "size": -3, "rate": 2, "on": True, "kind": "c", "many": ["x"]},
    {"pairs": None, "either": 3, "anything": object()},
    {"pairs": {"x": 1}, "either": None, "_target_": "here.Declared", "_convert_": "all"},
    {"size": {"_target_": "something.that.makes.it"}},
]


@pytest.mark.parametrize("settings", GOOD)
def test_what_fits_is_let_through(settings: dict[str, Any]) -> None:
    check(Declared, settings, "data")


BAD: list[tuple[str, Any, str]] = [
    ("name", None, "data.name=null: give text"),
    ("name", 3, "data.name=3: give text (in quotes"),
    ("size", "many", "data.size=many: give a whole number"),
    ("size", True, "data.size=True: give a whole number"),
    ("size", 0.5, "data.size=0.5: give a whole number"),
    ("rate", "x" * 99, f"data.rate={'x' * 60}...: give a number"),
    ("on", "yes", "data.on=yes: give true or false"),
    ("kind", 3, "data.kind=3: give a or b"),
    ("many", "x", "data.many=x: give a list of text"),
    ("many", ["x", 3], "data.many=['x', 3]: give a list of text"),
    ("pairs", {"x": "y"}, "give a mapping {key: value} or null"),
    ("either", [1], "data.either=[1]: give text or a whole number or null"),
    ("nmae", "x", "data.nmae: there is no such setting; did you mean data.name?"),
    ("_partial_", True, "data._partial_: there is no such setting"),
    ("name", "a\0b", "data.name: a NUL character"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_what_does_not_fit_is_said_with_what_does(name: str, value: Any, words: str) -> None:
    with pytest.raises(Mistake) as refused:
        check(Declared, {name: value}, "data")
    assert words in str(refused.value)


def test_other_peoples_classes_are_checked_as_far_as_they_say_types() -> None:
    check(torch.optim.Adam, {"lr": 0.1, "betas": [0.9, 0.99], "fused": None}, "optimizer")
    with pytest.raises(Mistake, match=r"optimizer.lr=fast: give a number"):
        check(torch.optim.Adam, {"lr": "fast"}, "optimizer")
