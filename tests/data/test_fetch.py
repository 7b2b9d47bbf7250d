"""Public archives, fetched from a server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from incrs.data import fetch as fetching
from incrs.data.fetch import Archive, choose, fetch
from incrs.errors import Mistake
from incrs.signals import Interrupted, listen
from tests.data.shop import declare, made_up, read_all, same, write
from tests.data.test_declared import PARTS, kuairand, load, movielens


class Server(HTTPServer):
    """Serves `files`, and keeps what was asked and what was sent.

    ranges: whether Range requests are understood.  stop_at: for each request, in turn, the byte of the
    file before which the connection is dropped.  refuse: for each, in turn, a status to answer.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.etag = '"one"'
        self.stop_at: list[int] = []
        self.refuse: list[int] = []
        self.at_half: Callable[[], None] | None = None
        self.asked: list[Mapping[str, str]] = []
        self.sent: list[tuple[int, int]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def archive(self, name: str, content: bytes) -> Archive:
        self.files[f"/{name}"] = content
        kind = next(kind for kind in fetching.KINDS if name.endswith(kind))
        return Archive(self.url(name), kind, hashlib.md5(content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers))
        content = server.files.get(self.path)
        if server.refuse:
            self.answer(server.refuse.pop(0), Content_Length=0, Location="ftp://127.0.0.1/x.zip")
            return
        if content is None:
            self.answer(404, Content_Length=0)
            return
        begin, size, asked = 0, len(content), self.headers.get("Range")
        fresh = self.headers.get("If-Range", server.etag) == server.etag
        if asked and server.ranges and fresh:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= size:
                self.answer(416, Content_Range=f"bytes */{size}", Content_Length=0)
                return
            part = f"bytes {begin}-{size - 1}/{size}"
            self.answer(206, Content_Range=part, Content_Length=size - begin, ETag=server.etag)
        else:
            self.answer(200, Content_Length=size, ETag=server.etag)
        end = server.stop_at.pop(0) if server.stop_at else size
        if server.at_half:
            self.wfile.write(content[begin : size // 2])
            server.at_half()
            begin = size // 2
        self.wfile.write(content[begin:end])
        server.sent.append((begin, max(begin, end)))
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    before = threading.active_count()
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert threading.active_count() == before


NOISE = random.Random(0).randbytes(300_000)


def packed(files: Mapping[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    """Return a .tar.gz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for member in odd:
            tar.addfile(member)
    return out.getvalue()


def zipped(files: Mapping[str, bytes], mode: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)  # stored as it is
    return out.getvalue()


LOG = packed({"top/data/log.csv": b"a\n1\n", "top/noise": NOISE})


def kept(folder: Path) -> list[str]:
    """Return what lies below a folder, but for locks."""
    found = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return sorted(str(path.relative_to(folder)) for path in found)


def check_whole(folder: Path) -> None:
    assert not list(folder.parent.glob(".*"))
    assert kept(folder.parent) == [
        folder.name,
        *(f"{folder.name}/{name}" for name in ("data", "data/log.csv", "noise")),
    ]
    assert (folder / "noise").read_bytes() == NOISE


@pytest.mark.parametrize("name", ["log.tar.gz", "log.tgz", "log.zip"])
@pytest.mark.parametrize("top", ["", "top/", "./top/"])
def test_an_archive_is_fetched_unpacked_and_deleted(
    name: str, top: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{top}data/log.csv": b"a\n1\n", f"{top}noise": NOISE, "._top": b"of a Macintosh"}
    if top == "":
        del files["._top"]
    content = zipped(files) if name.endswith("zip") else packed(files)
    archive = server.archive(name, content)
    fetch(archive, tmp_path / "raw" / "log")
    check_whole(tmp_path / "raw" / "log")
    assert capsys.readouterr().err == f"fetching {archive.url}\n"
    fetch(archive, tmp_path / "raw" / "log")
    assert len(server.asked) == 1
    assert capsys.readouterr().err == ""


def test_nothing_is_fetched_into_a_folder_that_holds_something(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    archive = server.archive("log.tar.gz", LOG)
    (tmp_path / "log" / "mine").touch()
    fetch(archive, tmp_path / "log")
    assert kept(tmp_path) == ["log", "log/mine"]
    assert not server.asked
    (tmp_path / "log" / "mine").unlink()
    fetch(archive, tmp_path / "log")
    check_whole(tmp_path / "log")


def test_a_dropped_connection_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    half, size = len(LOG) // 2, len(LOG)
    server.stop_at = [half]
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")
    assert [asked.get("Range") for asked in server.asked] == [None, f"bytes={half}-"]
    assert server.asked[1]["If-Range"] == '"one"'
    assert server.sent == [(0, half), (half, size)]


def test_a_connection_that_always_drops_leaves_its_part_for_the_next_attempt(
    server: Server, tmp_path: Path
) -> None:
    half = len(LOG) // 2
    archive = server.archive("log.tar.gz", LOG)
    server.stop_at = [half] * (2 + fetching.RETRIES)
    with pytest.raises(Mistake, match=r"closed after .*log\.tar\.gz\.partial keeps what has come"):
        fetch(archive, tmp_path / "log")
    assert not server.stop_at
    assert kept(tmp_path) == ["log.tar.gz.partial"]
    assert (tmp_path / "log.tar.gz.partial").read_bytes() == LOG[:half]
    fetch(archive, tmp_path / "log")
    check_whole(tmp_path / "log")
    assert server.sent[-1] == (half, len(LOG))


def test_slow_progress_over_many_drops_is_not_given_up(server: Server, tmp_path: Path) -> None:
    pieces = 3 * fetching.RETRIES
    server.stop_at = [len(LOG) * k // pieces for k in range(1, pieces)]
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")
    assert sum(end - begin for begin, end in server.sent) == len(LOG)


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.stop_at = [len(LOG) // 2]
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")
    assert server.sent == [(0, len(LOG) // 2), (0, len(LOG))]

    server.stop_at = [len(LOG) // 2] * 9
    with pytest.raises(Mistake, match="closed after"):
        fetch(server.archive("log.tar.gz", LOG), tmp_path / "other")
    assert len(server.stop_at) == 9 - fetching.RETRIES - 2


def test_a_file_that_changes_between_two_parts_is_begun_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = server.archive("log.tar.gz", LOG)
    server.files["/log.tar.gz"] = NOISE
    server.stop_at = [1000]

    def change(_: float) -> None:
        server.files["/log.tar.gz"], server.etag = LOG, '"two"'

    monkeypatch.setattr(fetching.time, "sleep", change)
    fetch(archive, tmp_path / "log")
    check_whole(tmp_path / "log")
    assert server.sent == [(0, 1000), (0, len(LOG))]


@pytest.mark.parametrize("left", [LOG, LOG[:1000], LOG + b"more", NOISE * 2], ids=len)
def test_what_an_earlier_process_left_is_gone_on_with_or_dropped(
    left: bytes, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "log.tar.gz.partial").write_bytes(left)
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")
    if left == LOG:
        assert not server.asked  # all of it was there, and is the right one
    elif left == LOG[:1000]:
        assert server.sent == [(1000, len(LOG))]


def test_a_whole_file_of_no_known_digest_is_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    archive = server.archive("log.tar.gz", LOG)
    (tmp_path / "log.tar.gz.partial").write_bytes(LOG)
    fetch(Archive(archive.url, archive.kind), tmp_path / "log")
    check_whole(tmp_path / "log")
    assert not server.sent


def test_a_wrong_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    archive = server.archive("log.tar.gz", LOG)
    server.files["/log.tar.gz"] = NOISE
    came = hashlib.md5(NOISE).hexdigest()
    with pytest.raises(Mistake, match=f"md5 {came}, but {archive.md5} is expected"):
        fetch(archive, tmp_path / "log")
    assert kept(tmp_path) == []
    server.files["/log.tar.gz"] = LOG
    fetch(archive, tmp_path / "log")
    check_whole(tmp_path / "log")


def test_a_file_that_is_not_there_is_said_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "log.zip.partial").write_bytes(b"begun")
    with pytest.raises(Mistake, match=r"404 Not Found; .*partial keeps what has come"):
        fetch(Archive(server.url("log.zip"), ".zip"), tmp_path / "log")
    assert len(server.asked) == 1
    assert kept(tmp_path) == ["log.zip.partial"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.refuse = [503, 429]
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")


def test_no_server_at_all_is_a_sentence(server: Server, tmp_path: Path) -> None:
    other = HTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{other.server_port}/log.zip"
    other.server_close()
    with pytest.raises(Mistake, match=r"log\.zip cannot be fetched: Connection refused$"):
        fetch(Archive(url, ".zip"), tmp_path / "log")
    assert kept(tmp_path) == []


def test_a_redirection_leads_to_http_only(server: Server, tmp_path: Path) -> None:
    server.refuse = [302]
    with pytest.raises(Mistake, match="unknown url type: ftp"):
        fetch(server.archive("log.zip", LOG), tmp_path / "log")


def test_ctrl_c_leaves_the_part_that_came(server: Server, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    listen()
    partial, half = tmp_path / "log.tar.gz.partial", len(LOG) // 2

    def interrupt() -> None:
        while not (partial.exists() and partial.stat().st_size):
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    server.at_half = interrupt
    archive = server.archive("log.tar.gz", LOG)
    try:
        with pytest.raises(Interrupted):
            fetch(archive, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert kept(tmp_path) == [partial.name]
    came = len(partial.read_bytes())
    assert 0 < came <= half
    assert partial.read_bytes() == LOG[:came]
    server.at_half = None
    fetch(archive, tmp_path / "log")
    check_whole(tmp_path / "log")
    assert server.sent[-1] == (came, len(LOG))


@pytest.mark.parametrize("limit", [len(LOG) // 2, len(LOG) + 10])
def test_a_full_disk_is_a_sentence(limit: int, server: Server, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk; the second is met while unpacking."""
    content = packed({"log.csv": bytes(len(LOG) * 2), "noise": NOISE[: len(LOG) - 2000]})
    assert limit < len(LOG) or len(content) < limit
    archive = server.archive("log.tar.gz", content)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(Mistake, match=r"data\.path=.*cannot be written there: File too large"):
            fetch(archive, tmp_path / "log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept(tmp_path) == ["log.tar.gz.partial"]
    fetch(archive, tmp_path / "log")
    assert kept(tmp_path) == ["log", "log/log.csv", "log/noise"]


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = {"top/log.csv": b"a\n1\n"}
EVIL: dict[str, tuple[bytes, str]] = {
    "up.tar.gz": (packed(GOOD | {"../evil": b"x"}), "'../evil' would land outside"),
    "inner.tar.gz": (packed(GOOD | {"top/../../evil": b"x"}), "would land outside"),
    "absolute.tgz": (packed(GOOD | {"ABSOLUTE/evil": b"x"}), "evil' would land outside"),
    "soft.tar.gz": (packed(GOOD, odd("top/evil", tarfile.SYMTYPE, "/etc")), "'top/evil' is a link"),
    "hard.tar.gz": (packed(GOOD, odd("top/evil", tarfile.LNKTYPE, "../x")), "'top/evil' is a link"),
    "within.tar.gz": (packed(GOOD, odd("top/b", tarfile.SYMTYPE, "log.csv")), "'top/b' is a link"),
    "pipe.tar.gz": (packed(GOOD, odd("evil", tarfile.FIFOTYPE)), "neither a file nor a folder"),
    "device.tar.gz": (packed(GOOD, odd("evil", tarfile.CHRTYPE)), "neither a file nor a folder"),
    "up.zip": (zipped(GOOD | {"../evil": b"x"}), "'../evil' would land outside"),
    "back.zip": (zipped(GOOD | {"..\\evil": b"x"}), "would land outside"),
    "absolute.zip": (zipped(GOOD | {"/tmp/evil": b"x"}), "'/tmp/evil' would land outside"),
    "soft.zip": (zipped({"evil": b"/etc"}, 0o120777), "'evil' is a link"),
    "pipe.zip": (zipped({"evil": b""}, 0o010666), "neither a file nor a folder"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_whole(
    name: str, server: Server, tmp_path: Path
) -> None:
    content, why = EVIL[name]
    if name == "absolute.tgz":
        content = packed(GOOD | {f"{tmp_path}/evil": b"x"})
    (tmp_path / "raw").mkdir()
    with pytest.raises(Mistake, match="is refused, nothing was unpacked: its member") as refused:
        fetch(server.archive(name, content), tmp_path / "raw" / "log")
    assert why in str(refused.value)
    assert kept(tmp_path) == ["raw"]
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.tar.gz", LOG[: len(LOG) // 2]),
        ("text.tar.gz", b"<html>Please log in</html>"),
        ("nothing.tgz", b""),
        ("half.zip", zipped({"noise": NOISE})[:1000]),
        ("text.zip", b"<html>Please log in</html>"),
        ("both.tgz", packed({"log": b"a file", "log/a": b"and a folder"})),
        ("long.zip", zipped({"x" * 300: b"a"})),
        ("flipped.zip", zipped({"log.csv": b"abc" * 99}).replace(b"abca", b"abba")),
        (
            "locked.zip",
            zipped({"log.csv": b"a"}).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",  # archives hold the time of day
)
def test_a_broken_archive_is_a_sentence(
    name: str, content: bytes, server: Server, tmp_path: Path
) -> None:
    archive = server.archive(name, content)
    with pytest.raises(Mistake, match=r"the archive is broken and was removed.*: .+") as broken:
        fetch(Archive(archive.url, archive.kind), tmp_path / "log")
    assert "\n" not in str(broken.value)
    assert kept(tmp_path) == []


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    archive = server.archive("log.tar.gz", LOG)
    both = [threading.Thread(target=fetch, args=(archive, tmp_path / "log")) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    check_whole(tmp_path / "log")
    assert len(server.asked) == 1


def test_what_a_killed_process_left_half_unpacked_is_no_log(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".log.unpacking" / "top").mkdir(parents=True)
    (tmp_path / ".log.unpacking" / "top" / "half").touch()
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    check_whole(tmp_path / "log")


def test_a_terminal_sees_how_far_it_is(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    fetch(server.archive("log.tar.gz", LOG), tmp_path / "log")
    shown = capsys.readouterr().err
    assert "fetching log.tar.gz" in shown
    assert "unpacking log.tar.gz" in shown
    assert "kB" in shown


MALFORMED = {
    "no url": ([{"md5": "0" * 32}], "must have url"),
    "a typing error": ([{"url": "https://x.org/a.zip", "mdfive": "0"}], "must have url"),
    "another scheme": ([{"url": "ftp://x.org/a.zip"}], "must begin with https://"),
    "a file": ([{"url": "file:///etc/a.zip"}], "must begin with https://"),
    "no host": ([{"url": "https:///a.zip"}], "must begin with https://"),
    "no url at all": ([{"url": "https://[x.org/a.zip"}], "must begin with https://"),
    "another kind": ([{"url": "https://x.org/a.7z"}], ".tar.gz, .tgz, .zip"),
    "no digest": ([{"url": "https://x.org/a.zip", "md5": "abc"}], "32 hexadecimal digits"),
    "two": ([{"url": "https://x.org/a.zip"}, {"url": "https://x.org/b.zip"}], "are both for"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_declaration_is_a_sentence(case: str, tmp_path: Path) -> None:
    archives, why = MALFORMED[case]
    with pytest.raises(Mistake, match=r"^data\.archives") as wrong:
        declare(tmp_path, archives=archives).prepare()
    assert why in str(wrong.value)


def test_an_archive_is_chosen_by_its_variant() -> None:
    every = [{"url": f"https://x.org/{name}.zip?a=1", "variant": name} for name in ("1k", 25)]
    assert choose(every, "1k") == Archive("https://x.org/1k.zip?a=1", ".zip")
    assert choose(every, "25") == Archive("https://x.org/25.zip?a=1", ".zip")
    assert choose(every, "2k") is None
    assert choose([], None) is None


def test_a_log_without_archive_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"data\.download=true: data\.archives has no archive;"):
        declare(tmp_path, download=True).prepare()
    with pytest.raises(Mistake, match=r"for data\.variant=9k, only for pure, 1k, 27k"):
        load("kuairand", "variant=9k", "download=true", f"store={tmp_path}").prepare()
    with pytest.raises(Mistake, match=r"data\.download=yes: give true or false"):
        load("kuairand", "download=yes", f"store={tmp_path}").prepare()


@pytest.mark.parametrize("kind", [".tar.gz", ".zip"])
def test_a_log_of_ones_own_is_fetched_and_prepared(
    kind: str, server: Server, tmp_path: Path
) -> None:
    write(tmp_path / "mine" / "log.csv", made_up())
    text = {"shop-2021/log.csv": (tmp_path / "mine" / "log.csv").read_bytes()}
    archive = server.archive(f"shop{kind}", packed(text) if kind == ".tar.gz" else zipped(text))
    options = {
        "path": str(tmp_path / "raw"),
        "store": str(tmp_path / "store"),
        "archives": [{"url": archive.url, "md5": archive.md5}],
    }
    fetched = declare(tmp_path, **options, download=True)
    got, expected = read_all(fetched), read_all(declare(tmp_path / "mine"))
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    again = declare(tmp_path, path=options["path"], store=options["store"])
    again.prepare()
    assert again.folder == fetched.folder
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", ["kuairand", "movielens"])
def test_a_public_log_lands_where_it_is_looked_for(
    name: str, server: Server, tmp_path: Path
) -> None:
    made = tmp_path / "made" / "top"
    if name == "kuairand":
        kuairand(made, "pure", PARTS["pure"])
    else:
        movielens(made)
    files = {str(file.relative_to(made.parent)): file.read_bytes() for file in made.rglob("*.csv")}
    archive = server.archive("log.tar.gz", packed(files))
    store = f"store={tmp_path}/store"
    with pytest.raises(Mistake, match=r"data\.download=true.*Download https://.*data\.path="):
        load(name, store).prepare()
    read_all(load(name, store, "download=true", f"archives=[{{url:'{archive.url}'}}]"))
    assert read_all(load(name, store))
    assert len(server.asked) == 1


def test_public_logs_declare_their_archives(tmp_path: Path) -> None:
    for name, variant in (("kuairand", "pure"), ("kuairand", "1k"), ("kuairand", "27k")):
        source = load(name, f"variant={variant}", f"store={tmp_path}")
        archive = choose(source.archives, source.variant)
        assert archive
        assert f"-{variant}.tar.gz" in archive.url.lower()
        assert archive.md5
        assert source.path == f"{tmp_path}/raw/kuairand-{variant}"
    source = load("movielens", f"store={tmp_path}")
    archive = choose(source.archives, source.variant)
    assert archive
    assert archive.url.endswith("/ml-25m.zip")
    assert source.path == f"{tmp_path}/raw/ml-25m"


@pytest.mark.slow
def test_prepare_fetches_and_train_finds_it(server: Server, tmp_path: Path) -> None:
    kuairand(tmp_path / "made" / "KuaiRand-Pure", "pure", PARTS["pure"])
    made = tmp_path / "made"
    files = {str(file.relative_to(made)): file.read_bytes() for file in made.rglob("*.csv")}
    archive = server.archive("KuaiRand-Pure.tar.gz", packed(files))
    server.stop_at = [1000]

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, "data=kuairand", f"data.store={tmp_path}/store"]
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )

    declared = f"data.archives=[{{url:'{archive.url}',md5:'{archive.md5}'}}]"
    prepared = run("incrs.prepare", "data.download=true", declared)
    assert prepared.returncode == 0, prepared.stderr
    assert prepared.stdout.startswith("kuairand-pure: 10 periods")
    assert prepared.stderr == f"fetching {archive.url}\n"
    trained = run("incrs.train", "model=shared_bottom")
    assert trained.returncode == 0, trained.stderr
    assert len(server.asked) == 2
