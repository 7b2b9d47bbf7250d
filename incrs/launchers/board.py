"""What a person sees of a queue: where the jobs stand, live on a terminal, else a line per finished job."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from incrs.launchers.queue import LOG, Ended, Running, Watch


class Board(Watch):
    """Shows a queue.  jobs: how many the sweep has.  finished: how many of them were before."""

    def __init__(self, jobs: int, finished: int, slots: Sequence[str]):
        # a console of its own: jobs inherit the command's, and it must not think it is live
        self._terminal = Console(highlight=False, soft_wrap=True)
        self._jobs, self._done, self._failed = jobs, finished, 0
        self._began = time.monotonic()
        self._live: Live | None = None
        self.pause = 1.0 if self._terminal.is_terminal else None
        before = f", {finished} finished before" if finished else ""
        self._say(f"{jobs} jobs{before}; {len(slots)} at a time: {', '.join(slots)}")

    def __enter__(self) -> Board:
        if self._terminal.is_terminal:
            self._live = Live(
                console=self._terminal,
                auto_refresh=False,  # by a thread otherwise, and jobs are forked from here
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def stands(self, running: Sequence[Running], waiting: int) -> None:
        """Draw the counts, and for each slot its job and since when."""
        if self._live is None:
            return
        counts = {"done": self._done, "running": len(running), "failed": self._failed}
        head = ", ".join(f"{n} {what}" for what, n in (counts | {"waiting": waiting}).items() if n)
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for one in sorted(running, key=lambda one: one.slot.name):
            table.add_row(
                *map(Text, (one.slot.name, f"#{one.job.number}", clock(now - one.since))),
                Text(one.job.name, no_wrap=True, overflow="ellipsis"),
            )
        title = Text(f"{self._jobs} jobs: {head}; {clock(now - self._began)}", no_wrap=True)
        self._live.update(Group(title, table), refresh=True)

    def ended(self, one: Ended) -> None:
        """Print the job's line; of one that failed also why, and where it says more."""
        what = f"#{one.job.number} {one.job.name}".rstrip()
        if one.status == 0:
            self._done += 1
            self._say(f"{what}: done in {clock(one.seconds)}")
        else:
            self._failed += 1
            self._say(f"{what}: failed after {clock(one.seconds)}, {one.words}")
            self._say(f"    its log: {one.job.folder / LOG}")

    def _say(self, text: str) -> None:
        self._terminal.print(Text(text))


def clock(seconds: float) -> str:
    """Return seconds as people read them: 7.3 s, 4:05, 2:04:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
