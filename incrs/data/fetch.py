"""A declared log's public archive: fetched, checked, unpacked, and only then put in its place.

    <folder>                    the log: there when it is whole, and never fetched again while it is
    <folder>.tar.gz.partial     what has come so far; the next attempt goes on from its end
    .<folder>.unpacking         the archive's files on their way, removed whatever happens

The archive is deleted once it is unpacked. Nothing is ever written outside these.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from incrs.errors import Mistake

KINDS = (".tar.gz", ".tgz", ".zip")
TIMEOUT = 30.0  # seconds without a byte
RETRIES = 4  # in a row that bring nothing new
WAIT = 1.0  # seconds before the first of them, doubled for each other
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that another try may mend
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    *(EOFError, IndexError, RuntimeError, ValueError, OSError),
)
OF_THE_ARCHIVE = (None, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of the system that only a broken archive brings; the others are of the disk."""


@dataclass(frozen=True)
class Archive:
    """Where a log can be fetched.  kind: one of KINDS.  md5: 32 digits; None: it is not checked."""

    url: str
    kind: str
    md5: str | None = None


def choose(archives: Sequence[Mapping[str, Any]], variant: str | None) -> Archive | None:
    """Return the declared archive that is for `variant`, or None where there is none.

    Raises Mistake when a declaration is malformed.
    """
    chosen = []
    for one in archives:
        if not {"url"} <= set(one) <= {"url", "md5", "variant"}:
            raise Mistake(f"data.archives: {dict(one)} must have url, and may have md5 and variant")
        url, md5 = str(one["url"]), one.get("md5")
        try:
            parts = urlsplit(url)
            kind = next((k for k in KINDS if parts.path.lower().endswith(k)), None)
            reachable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            kind, reachable = None, False
        if kind is None or not reachable:
            raise Mistake(
                f"data.archives: {url} must begin with https:// or http:// and end with one of "
                f"{', '.join(KINDS)}"
            )
        if md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", str(md5)):
            raise Mistake(f"data.archives: md5 {md5} of {url} is not 32 hexadecimal digits")
        if one.get("variant") is None or str(one["variant"]) == str(variant):
            chosen.append(Archive(url, kind, None if md5 is None else str(md5).lower()))
    if len(chosen) > 1:
        raise Mistake(
            f"data.archives: {chosen[0].url} and {chosen[1].url} are both for data.variant={variant}; "
            "give each its own variant"
        )
    return chosen[0] if chosen else None


def fetch(archive: Archive, folder: Path) -> None:
    """Put what the archive holds into `folder`, unless something is there already.

    A folder that is alone at the archive's top is left out: what it holds lies in `folder` itself.
    Raises Mistake; what has come by then stays, unless it is wrong, and the next call goes on.
    """
    partial = folder.with_name(f"{folder.name}{archive.kind}.partial")
    try:
        if _holds_something(folder):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _holds_something(folder):  # by now another process may have put it there
                return
            with _bar(f"fetching {archive.url}") as bar:
                _Download(archive, partial, bar).finish()
                try:
                    unpack(partial, archive, folder, bar)
                except Mistake:
                    partial.unlink()
                    raise
            partial.unlink()
            lock.unlink()  # who waits for it finds the folder
    except OSError as error:
        raise Mistake(
            f"data.path={folder}: the archive cannot be written there: {error.strerror or error}"
        ) from error


def _holds_something(folder: Path) -> bool:
    return any(folder.iterdir()) if folder.is_dir() else folder.exists()


def _bar(text: str) -> Progress:
    """Return a bar for a terminal; where there is none, say what begins and return one not shown."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.print(text, markup=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Dropped(Exception):
    """The connection broke, or the server is busy: worth another try."""


class _Download:
    """A file that comes in one piece or in several; `size` bytes are there, with their digest."""

    def __init__(self, archive: Archive, file: Path, bar: Progress):
        self.url, self.md5, self.file, self.bar = archive.url, archive.md5, file, bar
        self.task = bar.add_task(f"fetching {file.stem}", total=None)
        self.etag: str | None = None
        self.contact = False
        self.size = file.stat().st_size if file.exists() else 0
        self.digest = _md5()
        if self.size:
            with file.open("rb") as old:
                self.digest = hashlib.file_digest(old, _md5)

    def finish(self) -> None:
        """Fetch what is missing and check the whole; raises Mistake when it does not come or is wrong."""
        failures, most = 0, self.size
        # an earlier call may have fetched it all and been stopped while unpacking
        complete = self.digest.hexdigest() == self.md5
        while not complete:
            try:
                self._go_on()
                complete = True
            except _Dropped as dropped:
                failures = 0 if self.size > most else failures + 1
                most = max(most, self.size)
                if failures > RETRIES:
                    raise self._gave_up(str(dropped)) from dropped
                time.sleep(WAIT * 2 ** max(failures - 1, 0))
        if self.md5 and (came := self.digest.hexdigest()) != self.md5:
            self.file.unlink()
            raise Mistake(
                f"{self.url}: the file that came has md5 {came}, but {self.md5} is expected; it was "
                "removed: try again, or see data.archives where the file has changed"
            )

    def _go_on(self) -> None:
        """Ask once for what is missing and keep what comes; returns only when all of it is there."""
        headers = {"User-Agent": "incrs"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            if self.etag:
                headers["If-Range"] = self.etag
        with self._ask(headers) as answer:
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            total = int(whole) if whole.isdecimal() else None
            if answer.status == 416:  # nothing lies behind what is there
                if total in (None, self.size):
                    return
                self._begin_again()
                raise _Dropped("what had come before is not of this file")
            length = answer.headers.get("Content-Length", "")
            if answer.status == 206:
                start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
                if not start or int(start.group(1)) != self.size:
                    self._begin_again()
                    raise _Dropped("the server sent another part of the file than asked for")
            else:
                self._begin_again()
                total = int(length) if length.isdecimal() else None
            etag = answer.headers.get("ETag", "")
            self.etag = etag if etag.startswith('"') else None
            self.bar.reset(self.task, total=total, completed=self.size)
            with self.file.open("ab") as file:
                for block in _blocks(answer):
                    file.write(block)
                    self.digest.update(block)
                    self.size += len(block)
                    self.bar.update(self.task, completed=self.size)
        if total is not None and self.size != total:
            raise _Dropped(f"the connection closed after {self.size} of {total} bytes")

    def _begin_again(self) -> None:
        self.file.unlink(missing_ok=True)
        self.size, self.digest = 0, _md5()

    def _ask(self, headers: Mapping[str, str]) -> HTTPResponse:
        """Send the request; returns an answer of status 200, 206 or 416."""
        opener = request.OpenerDirector()  # the usual one would follow links to ftp and files too
        for handler in (
            *(request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler),
            *(request.HTTPRedirectHandler, request.HTTPErrorProcessor),
            *(request.HTTPDefaultErrorHandler, request.UnknownHandler),
        ):
            opener.add_handler(handler())
        try:
            answer = opener.open(request.Request(self.url, headers=dict(headers)), timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == 416 and self.size:
                return error  # type: ignore[return-value]  # an answer like any other
            error.close()
            says = f"the server answers {error.code} {error.reason}"
            if error.code in PASSING:
                raise _Dropped(says) from error
            raise self._gave_up(says) from error
        except (URLError, InvalidURL) as error:
            reason = getattr(error, "reason", error)
            says = str(getattr(reason, "strerror", None) or reason)
            if self.contact:
                raise _Dropped(says) from error
            raise self._gave_up(says) from error
        except (OSError, HTTPException) as error:  # reached, but no answer
            raise _Dropped(str(error) or type(error).__name__) from error
        self.contact = True
        assert isinstance(answer, HTTPResponse)
        return answer

    def _gave_up(self, why: str) -> Mistake:
        kept = f"; {self.file} keeps what has come, and the next attempt goes on from there"
        return Mistake(f"{self.url} cannot be fetched: {why}{kept if self.size else ''}")


def _md5() -> Any:
    """Return md5 as a sum to compare, which systems that forbid it as a cipher allow."""
    return hashlib.md5(usedforsecurity=False)


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read1(1 << 16)
        except (OSError, HTTPException) as error:
            raise _Dropped(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def unpack(file: Path, archive: Archive, folder: Path, bar: Progress) -> None:
    """Unpack a complete file into `folder`, which must not exist or be empty, all or nothing.

    Raises Mistake when it is broken, or when any member is a link or device or would land elsewhere.
    """
    work = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)  # left behind by a killed process
    try:
        with bar.open(file, "rb", description=f"unpacking {file.stem}") as content:
            _extract(content, archive, work)
        tops = [top for top in work.iterdir() if top.name[0] != "." and top.name != "__MACOSX"]
        lone = len(tops) == 1 and tops[0].is_dir()
        (tops[0] if lone else work).rename(folder)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno not in OF_THE_ARCHIVE:
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise Mistake(
            f"{archive.url}: the archive is broken and was removed, so that another try fetches it "
            f"anew: {why}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(content: IO[bytes], archive: Archive, work: Path) -> None:
    if archive.kind == ".zip":
        with zipfile.ZipFile(content) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0: written where there are no kinds
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                _check(archive, info.filename, plain, kind == stat.S_IFLNK)
            work.mkdir()
            zipped.extractall(work)
        return
    with tarfile.open(fileobj=content, mode="r:gz") as tar:
        # not the argument `filter`, which the first releases of Python 3.11 do not know
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in tar.getmembers():
            plain = member.isfile() or member.isdir()
            _check(archive, member.name, plain, member.issym() or member.islnk())
        work.mkdir()
        tar.extractall(work)


def _check(archive: Archive, name: str, plain: bool, link: bool) -> None:
    """Raise Mistake unless a member is a file or folder inside of where it is unpacked."""
    path = PurePosixPath(name.replace("\\", "/"))
    why = ""
    if path.is_absolute() or ".." in path.parts:
        why = "would land outside of the log's folder"
    elif not plain:
        why = "is a link" if link else "is neither a file nor a folder"
    if why:
        raise Mistake(f"{archive.url} is refused, nothing was unpacked: its member {name!r} {why}")
