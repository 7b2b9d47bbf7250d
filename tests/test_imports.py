"""Who may import whom: read from the source, so that a broken rule is a sentence."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "incrs"
ROOMS = ("data", "models", "updaters", "selectors")
DOORS = {"door", "explaining", "train", "prepare", "report", "tune", "plan"}
ONLY_IN = {
    "hydra": DOORS | {"runs"},  # which reads what Hydra wrote of a sweep
    "omegaconf": DOORS,
    "wandb": {"dashboard", "workspace"},
    "lightning": {"module", "runner", "data.stream", "train"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


TARGETS = {
    target.group(1)
    for room in ("data", "model", "updater", "selector")
    for yaml in (PACKAGE.parent / "conf" / room).glob("*.yaml")
    for target in re.finditer(r"_target_: incrs\.([a-z_.]+)\.\w+", yaml.read_text())
}
"""The leaves: what a yaml names. Everything else in a room is its contract or its furniture."""

BORROWED = {"dnn": "embedding_mlp"}
"""A yaml that is another leaf's class with other values, for want of a difference."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, without the package's name."""
    known = {name_of(file) for file in FILES}
    return {name.removeprefix("incrs.") for name in imports_of(path)} & known


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_are_met_only_where_they_belong(path: Path) -> None:
    name = name_of(path)
    for library, allowed in ONLY_IN.items():
        met = any(i == library or i.startswith(f"{library}.") for i in imports_of(path))
        if met and not (library == "lightning" and name.startswith(("updaters.", "selectors."))):
            assert name in allowed, f"{name} imports {library}; only {sorted(allowed)} may"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_knows_only_itself_and_what_it_is_handed(path: Path) -> None:
    room, _, leaf = name_of(path).partition(".")
    if room not in ROOMS:
        return
    handed = {"period", "errors", "data.base", "together"} | (
        {"module", "models.base"} if room == "updaters" else set()
    )
    if room == "selectors":
        handed |= {"models.base", "models.gates", "models.layers"}
    if name_of(path) == "data.stream":
        handed.add("roster")
    own = {name for name in ours(path) if name.startswith(f"{room}.")} - TARGETS
    strange = ours(path) - handed - own
    assert not strange, (
        f"{room}.{leaf} imports {sorted(strange)}: a leaf knows no other leaf or room"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_yaml_names_leaves(path: Path) -> None:
    name = name_of(path)
    if name not in TARGETS:
        named = ours(path) & TARGETS
        assert not named, f"{name} imports {sorted(named)}; only yaml names leaves"


def test_period_imports_torch_only() -> None:
    assert not ours(PACKAGE / "period.py")
    outside = {i.split(".")[0] for i in imports_of(PACKAGE / "period.py")}
    assert outside <= {
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "typing",
        "torch",
    }


def test_every_yaml_has_the_name_of_its_leaf() -> None:
    for room in ("model", "updater", "selector"):
        for path in (PACKAGE.parent / "conf" / room).glob("*.yaml"):
            if path.stem == "none":
                continue
            leaf = BORROWED.get(path.stem, path.stem)
            assert f"incrs.{room}s.{leaf}." in path.read_text(), f"{path} names another leaf"


def test_what_can_be_started_collects_garbage() -> None:
    feet = {name_of(f): f.read_text().partition('if __name__ == "__main__":')[2] for f in FILES}
    doors = {name: foot for name, foot in feet.items() if foot}
    assert doors.keys() == {"train", "prepare", "report", "tune"}
    assert [
        n for n, foot in doors.items() if "enter(" not in foot and "gc.enable()" not in foot
    ] == []
