"""What computes: the code that a process runs, and the libraries and the machine that it runs on.

Results that were computed with the same of both, from the same inputs, are the same to the last bit.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
import uuid
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration: inside the package once installed, beside it in a checkout."""


def digest_now(file: Path) -> str:
    """Return the digest of a source file; empty where it cannot be read, as one within an archive."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


@cache
def digest_of(file: Path) -> str:
    """Return the digest of a source file as this process met it first."""
    return digest_now(file)


def code() -> dict[str, str]:
    """Return digests of the package's sources and of whatever else was loaded that no library has."""
    folders = (str(PACKAGE), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
    found = {str(file.relative_to(PACKAGE)): digest_of(file) for file in SOURCES}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.endswith(".py") and not file.startswith(folders) and Path(file).is_absolute():
            found[name] = digest_of(Path(file))
    if any(touched(file) and digest_now(file) != digest_of(file) for file in SOURCES):
        found["changed"] = MIXED  # who knows which of the two this process runs
    return found


def touched(file: Path) -> bool:
    """Return whether a source file may be another one than this process met first."""
    return mark_of(file) != MARKS[file]


def mark_of(file: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from another in its place; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def machine() -> dict[str, Any]:
    """Return what of the libraries and the machine can move the last digit of a number."""
    return {
        "versions": {one: version_of(one) for one in ("incrs", "torch", "lightning", "numba")},
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "precision": [str(torch.get_default_dtype()), torch.get_float32_matmul_precision()],
    }


version_of = cache(version)


MIXED = uuid.uuid4().hex
SOURCES = sorted(PACKAGE.rglob("*.py"))
MARKS = {file: mark_of(file) for file in SOURCES}
for _file in SOURCES:
    digest_of(_file)  # now, as they are loaded; later they may be others
