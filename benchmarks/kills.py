"""Kill a run at random moments and go on with it: does it end in the same bytes?

python -m benchmarks.kills                  50 runs killed from the start, 25 killed as days come in
python -m benchmarks.kills --times 6        fewer
python -m benchmarks.kills --signal TERM    asked to stop, and checked for leaving nothing half done
python -m benchmarks.kills --signal KILL INT    by each signal in its turn

A log of a few days with a side table is prepared and trained on, by incmsr, with histories and growing
tables: once undisturbed, then again and again with `kill -9` at a random moment, in every second run
over the whole of its time and in the others over one phase, each in its turn. What lies on disk then
must be whole; the run goes on, may be killed once or twice again, and must end with the files of the
undisturbed one, byte for byte. In the second part the run has ended and goes on as new days come.
The undisturbed run is a process of its own; the others are forked from one that has done its imports,
so that a kill meets the work and not the imports.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

WORK = ("prepare", "warm-up", "fit", "score", "save")
PHASES = ("start", *WORK, "end")
IMPORTED = ("incrs.train", "incrs.data.log", "incrs.models.shared_bottom", "incrs.updaters.incmsr")
DAYS, LATER, ROWS = 9, 2, 150  # the last LATER days come in later
TABLES = ("run/results.csv", "run/losses.csv", "run/findings.csv")
DECLARED = """
defaults: [log]
name: shop
path: log
store: store
files: day*.csv
time: at
label: click
user: user
item: item
categorical: [brand]
multivalued: {tags: "|"}
multivalued_length: 3
numeric: [price]
scenario: tab
joins: [{file: items.csv, key: item}]
history: 4
pretrain: 3
"""
COMMAND = [
    *("--config-dir", "conf", "data=shop", "model=shared_bottom", "updater=incmsr", "trainer=cpu"),
    *("model.bottom=[16,8]", "model.tower=[8,4]", "batch_size=32", "optimizer.lr=0.01"),
    "share=false",
]


def make_log(folder: Path, days: Sequence[int]) -> None:
    """Write a file for each of the days, the table of items and the declaration."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "data" / "shop.yaml").write_text(DECLARED)
    items = [
        f"i{k},b{k % 5},{'|'.join('xyz'[: k % 4])},{k * 7 % 50 or ''}"
        for k in range(20 + 10 * DAYS)
    ]
    (folder / "log" / "items.csv").write_text("\n".join(["item,brand,tags,price", *items]) + "\n")
    for day in days:
        dice = random.Random(day)
        lines = ["at,user,item,tab,click"]
        for at in sorted(dice.randrange(86_400) for _ in range(ROWS)):
            item = dice.randrange(20 + 10 * day)
            click = int(dice.random() < 0.2 + 0.1 * (item % 5))
            second = 1_600_041_600 + 86_400 * day + at
            lines.append(
                f"{second},u{dice.randrange(15 + 5 * day)},i{item},{dice.choice('aabc')},{click}"
            )
        (folder / "log" / f"day{day:02d}.csv").write_text("\n".join(lines) + "\n")


class Span(NamedTuple):
    """A stretch of time that a process spent in one phase; began: by the monotonic clock."""

    phase: str
    began: float


class Trace:
    """What a process is at, in memory that its parent shares and still has when it is killed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)

    def __len__(self) -> int:
        return int(struct.unpack_from("q", self._memory)[0])

    def __getitem__(self, index: int) -> Span:
        phase, began = struct.unpack_from("qd", self._memory, 16 * (index + 1))
        return Span(PHASES[phase], began)

    def enter(self, phase: str) -> None:
        """Take down that a phase begins."""
        count = len(self)
        values = (PHASES.index(phase), time.monotonic())
        struct.pack_into("qd", self._memory, 16 * (count + 1), *values)
        struct.pack_into("q", self._memory, 0, count + 1)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in a phase while inside, in `end` behind it."""
        self.enter(phase)
        yield
        self.enter("end")


def watch(trace: Trace) -> None:
    """Make this process take down its phases; for a process of which nothing else is asked."""
    from incrs import runner
    from incrs.data.log import LogSource

    def told(phase: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def telling(*args: Any, **kwargs: Any) -> Any:
            with trace.during(phase(*args)):
                return function(*args, **kwargs)

        return telling

    @contextmanager
    def saving() -> Iterator[None]:
        with uninterrupted(), trace.during("save"):
            yield

    uninterrupted = runner.uninterrupted
    runner.uninterrupted = saving
    LogSource.prepare = told(lambda *_: "prepare", LogSource.prepare)  # type: ignore[method-assign]
    runner.score = told(lambda *_: "score", runner.score)
    runner.update = told(
        lambda stream, _, history, *__: "warm-up" if len(history) == stream.warmup else "fit",
        runner.update,
    )


def start(desk: Path, arguments: Sequence[str]) -> tuple[int, Trace]:
    """Start `python -m incrs.train` with these arguments, but for the imports; return pid and trace."""
    trace = Trace()
    pid = os.fork()
    if pid:
        return pid, trace
    status = 1
    try:
        from incrs import train
        from incrs.door import enter
        from incrs.signals import listen

        os.chdir(desk)
        for number, name in ((1, "printed"), (2, "errors")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["incrs.train", *arguments]
        watch(trace)
        listen()
        trace.enter("start")
        enter(train.main)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(desk: Path, arguments: Sequence[str]) -> Trace:
    """Let the command come to its end; return its trace."""
    pid, trace = start(desk, arguments)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    errors = (desk / "errors").read_text()
    if status or errors:
        raise AssertionError(f"exit status {status}, and in words: {errors}")
    trace.enter("end")
    return trace


def disturb(
    desk: Path, arguments: Sequence[str], number: int, span: int, seconds: float
) -> tuple[int, str]:
    """Send the signal so long after the span has begun; return the exit status and the phase then."""
    pid, trace = start(desk, arguments)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), "too late"
        if len(trace) > span and time.monotonic() >= trace[span].began + seconds:
            break
        time.sleep(0.0002)
    phase = trace[len(trace) - 1].phase
    os.kill(pid, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, phase if status else "too late"


def run_of(desk: Path) -> Path | None:
    """Return the folder of the run that has begun, if one has."""
    found = sorted(desk.glob("multirun/*/*/run.json"))
    if len(found) > 1:
        raise AssertionError(f"{len(found)} runs have begun, not one")
    return found[0].parent if found else None


def next_command(desk: Path) -> list[str]:
    """Return what to give to go on: resume= once there is a run, else the first command again."""
    folder = run_of(desk)
    return COMMAND if folder is None else [f"resume={folder.relative_to(desk)}"]


def content(desk: Path) -> dict[str, bytes]:
    """Return every file of the store and of the run; of run.json what does not hang on the clock."""
    run = run_of(desk)
    found: dict[str, bytes] = {}
    for name, folder in (("store", desk / "store"), ("run", run)):
        for file in sorted(folder.rglob("*")) if folder and folder.exists() else []:
            if file.is_file() and not file.name.endswith(".lock"):
                found[f"{name}/{file.relative_to(folder)}"] = file.read_bytes()
    if "run/run.json" in found:
        record = json.loads(found["run/run.json"])
        timed = [[one["period"], one["scored"]] for one in record["timings"]]
        kept = [record[key] for key in ("about", "config", "data", "finished")]
        found["run/run.json"] = json.dumps([*kept, timed]).encode()
    return found


def check_whole(desk: Path, whole: Mapping[str, bytes], killed: bool) -> None:
    """Raise AssertionError where what a stopped process left is more than hidden or is half done."""
    now = content(desk)
    for name, value in now.items():
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if not killed and (hidden or "partial" in name or "tmp" in name):
            raise AssertionError(f"{name} was left behind")
        if hidden:
            continue
        if name.startswith("run/serving/") and value != whole[name]:
            raise AssertionError(f"{name} is not whole")
        if name in TABLES and not whole[name].startswith(value):
            raise AssertionError(f"{name} is not whole")
        if name.endswith("/manifest.json"):
            for t, period in enumerate(json.loads(value)["periods"]):
                part = name.replace("manifest.json", f"period={t:04d}/rows.parquet")
                if now.get(part) != whole[part]:
                    raise AssertionError(f"{name} lists {period['name']}, which is not whole")
    checkpoints = sorted({n.split("/")[2] for n in now if n.startswith("run/checkpoint/period")})
    if checkpoints:
        held = {n.split("/")[3] for n in now if n.startswith(f"run/checkpoint/{checkpoints[-1]}/")}
        if held != {n.split("/")[3] for n in whole if n.startswith("run/checkpoint/")}:
            raise AssertionError(f"{checkpoints[-1]} is not whole")


def compare(now: Mapping[str, bytes], whole: Mapping[str, bytes]) -> None:
    """Raise AssertionError that names the files that differ."""
    different = [n for n in sorted({*now, *whole}) if now.get(n) != whole.get(n)]
    if different:
        raise AssertionError(f"other bytes in {', '.join(different)}")


class Part:
    """One sort of run to disturb: what lies on the desk before, and how it goes undisturbed.

    before: the folder as the command finds it.  desk: where it runs, always the same place.
    """

    def __init__(self, before: Path, desk: Path):
        self.before, self.desk = before, desk
        self.set()
        command = [sys.executable, "-m", "incrs.train", *next_command(desk)]
        subprocess.run(command, cwd=desk, check=True, stdout=subprocess.DEVNULL)
        self.whole = content(desk)
        self.set()
        trace = finish(desk, next_command(desk))
        compare(content(desk), self.whole)
        spans = [trace[k] for k in range(len(trace))]
        self.phases = [span.phase for span in spans[:-1]]
        self.seconds = [b.began - a.began for a, b in pairwise(spans)]

    def set(self) -> None:
        """Put the desk back to what it was."""
        shutil.rmtree(self.desk, ignore_errors=True)
        shutil.copytree(self.before, self.desk)

    def moment(self, dice: random.Random, phase: str | None) -> tuple[int, float]:
        """Draw a span of the undisturbed run, all or those of one phase, and the seconds into it."""
        weights = [
            s if phase in (None, p) else 0.0 for s, p in zip(self.seconds, self.phases, strict=True)
        ]
        (span,) = dice.choices(range(len(weights)), weights)
        return span, dice.random() * self.seconds[span]

    def once(self, dice: random.Random, phase: str | None, number: int) -> list[str]:
        """Disturb a run, once and maybe again, and finish it; return the phases it was met in."""
        self.set()
        met: list[str] = []
        for again in range(dice.choice([1, 1, 2, 3])):
            where = "too late"
            while where == "too late" and not met:  # the first one must meet the run
                self.set()
                moment = self.moment(dice, phase)
                status, where = disturb(self.desk, next_command(self.desk), number, *moment)
            if again:
                moment = self.moment(dice, None)
                status, where = disturb(self.desk, next_command(self.desk), number, *moment)
            met.append(where)
            expected = -number if number == signal.SIGKILL else 128 + number
            errors = (self.desk / "errors").read_text()
            if (where != "too late" and status != expected) or errors:
                raise AssertionError(f"in {where}: exit status {status}; {errors}")
            check_whole(self.desk, self.whole, number == signal.SIGKILL)
        finish(self.desk, next_command(self.desk))
        compare(content(self.desk), self.whole)
        return met


def make_parts(folder: Path) -> dict[str, Part]:
    """Return the run from the start, and the run that has ended when the last days come in."""
    desk = folder / "desk"
    make_log(folder / "all", range(DAYS))
    parts = {"from the start": Part(folder / "all", desk)}
    make_log(folder / "early", range(DAYS - LATER))
    shutil.rmtree(desk)
    shutil.copytree(folder / "early", desk)
    finish(desk, COMMAND)
    shutil.copytree(desk, folder / "later")
    make_log(folder / "new", range(DAYS - LATER, DAYS))
    for file in (folder / "new" / "log").glob("day*.csv"):
        shutil.copy2(file, folder / "later" / "log")
    return parts | {"as days come in": Part(folder / "later", desk)}


def main(times: int, seed: int, numbers: Sequence[signal.Signals]) -> int:
    """Run the kills and print the table; return the exit status."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for module in IMPORTED:
        import_module(module)
    torch.set_num_threads(1)
    console = Console(highlight=False, width=100)
    dice, failures = random.Random(seed), []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, part in make_parts(Path(folder)).items():
            first: Counter[str] = Counter()
            again: Counter[str] = Counter()
            phases = [phase for phase in PHASES if phase in part.phases]
            work = [phase for phase in phases if phase in WORK]
            count = times if name == "from the start" else -(-times // 2)
            for k in range(count):
                phase = work[k // 2 % len(work)] if k % 2 else None
                try:
                    met = part.once(dice, phase, numbers[k % len(numbers)])
                except AssertionError as error:
                    failures.append(f"{name}, run {k}: {error}")
                    console.print(failures[-1], markup=False)
                    continue
                first[met[0]] += 1
                again.update(met[1:])
            table = Table(
                title=f"{name}: {count} runs, {' '.join(number.name for number in numbers)}",
                box=box.SIMPLE_HEAD,
                title_justify="left",
            )
            for column in ("phase", "seconds undisturbed", "stopped there", "and again there"):
                table.add_column(column, justify="left" if column == "phase" else "right")
            for phase in (*phases, "too late"):
                spent = sum(s for s, p in zip(part.seconds, part.phases, strict=True) if p == phase)
                cells = (f"{spent:.2f}" if spent else "", str(first[phase]), str(again[phase]))
                table.add_row(phase, *cells)
            console.print(table)
    console.print(
        f"{len(failures)} runs ended otherwise than the undisturbed one"
        if failures
        else f"every run ended in the bytes of the undisturbed one; {time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--times", type=int, default=50, help="runs from the start; half as many more"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], nargs="+", default=["KILL"])
    given = parser.parse_args()
    signals = [signal.Signals[f"SIG{name}"] for name in given.signal]
    sys.exit(main(given.times, given.seed, signals))
