"""`Shelf`: results on disk that several processes share; whole or not there, and bounded in size.

    <folder>/<name>/        one entry: its files, and whole.json, which lists them with their digests
    <folder>/<name>.lock    somebody is making it; left behind by a kill, it hinders nobody

An entry is made beside its place and moved there whole. What does not read as it was written is taken
away: to whom it was of use, it was never there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from incrs.signals import uninterrupted

log = logging.getLogger(__name__)

LISTED = "whole.json"
STALE = 24 * 3600
"""Seconds until what a killed process left half made is taken away."""


class Shelf:
    """Entries by name.  folder: where they lie; made when first written to.  gib: the most they take.

    Beyond that the entries go that were not used for longest. A file that has a hard link elsewhere
    counts in part. Where the folder cannot be written to, nothing is kept, and that is said once.
    """

    def __init__(self, folder: Path, gib: float):
        self.folder, self._most = folder, gib * 2**30
        self._taken: float | None = None  # bytes, as far as this process knows
        self._lost = False

    def find(self, name: str) -> Path | None:
        """Return the folder of an entry whose files all are as they were written, None if there is none.

        It may go at any moment: what reads in it must take an error as there being none.
        """
        entry = self.folder / name
        try:
            listed = json.loads((entry / LISTED).read_text())
            whole = all(digest(entry / file) == found for file, found in listed.items())
            with suppress(PermissionError):
                os.utime(entry)  # used now
        except FileNotFoundError:
            if not entry.exists():
                return None
            whole = False
        except (OSError, ValueError, AttributeError):
            whole = False
        if not whole:
            self.drop(name)
        return entry if whole else None

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Keep a name for this process while inside; wait where another one has it."""
        file = self.folder / f"{name}.lock"
        handle = self._lock(file)
        try:
            yield
        finally:
            if handle is not None:
                file.unlink(missing_ok=True)
                handle.close()

    def _lock(self, file: Path) -> IO[str] | None:
        """Return the file, open and locked; None where that cannot be done here."""
        try:
            while True:
                file.parent.mkdir(parents=True, exist_ok=True)
                handle = file.open("w")
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    if file.exists() and file.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                        return handle
                except BaseException:
                    handle.close()
                    raise
                handle.close()  # its last owner has taken it away
        except OSError as error:
            self._give_up(error)
            return None

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Keep what `write` writes into the folder that it is given; its name should be claimed."""
        if self._lost:
            return
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            with uninterrupted():
                for old in self.folder.glob(f".{name}.*.partial"):  # of one that was killed
                    shutil.rmtree(old, ignore_errors=True)
                partial.mkdir(parents=True)
                write(partial)
                files = sorted(file for file in partial.rglob("*") if file.is_file())
                listed = {str(file.relative_to(partial)): digest(file) for file in files}
                (partial / LISTED).write_text(json.dumps(listed))
                self.drop(name)
                partial.rename(self.folder / name)
                self._bound(name)
        except (OSError, SafetensorError) as error:
            self._give_up(error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def drop(self, name: str) -> None:
        """Take an entry away, at once for whoever looks for it."""
        aside = self.folder / f".{name}.{os.getpid()}.dropped"
        with suppress(OSError):
            (self.folder / name).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _give_up(self, error: Exception) -> None:
        if not self._lost:
            self._lost = True
            said = " ".join(str(error).split())
            log.warning("%s: nothing more is kept there (%s); the run goes on", self.folder, said)

    def _bound(self, newest: str) -> None:
        """Let entries go, the one used longest ago first, where all together take too much."""
        if self._taken is not None:
            with suppress(FileNotFoundError):
                self._taken += size(self.folder / newest)
        if self._taken is not None and self._taken <= self._most:
            return
        entries: list[tuple[float, str, float]] = []
        for one in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process lets entries go, too
                used = one.stat().st_mtime
                if one.name[0] == "." or one.name.endswith(".lock"):
                    if used < time.time() - STALE:
                        _remove(Path(one.path))
                else:
                    entries.append((used, one.name, size(Path(one.path))))
        self._taken = sum(taken for *_, taken in entries)
        least = 0.9 * self._most if self._taken > self._most else self._most
        for _, name, taken in sorted(entries):
            if self._taken <= least:
                break
            self.drop(name)
            self._taken -= taken


def digest(file: Path) -> str:
    """Return a digest of a file's content."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def size(folder: Path) -> float:
    """Return the bytes of a folder's files, of one with n names an n-th."""
    found = [file.stat() for file in folder.rglob("*")]
    return sum(one.st_size / one.st_nlink for one in found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
