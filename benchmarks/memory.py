"""How much memory preparing a log takes, and how little of it grows with the log's length.

python -m benchmarks.memory                       a made-up log in KuaiRand's layout, once and 20 times
python -m benchmarks.memory --path KuaiRand-Pure  the same with that log
python -m benchmarks.memory --smoke               small, for a check that it works

The 14 days are repeated with the dates moved on and the same users and videos, a file for each day, so
that rows grow and ids do not. Each log is prepared in a process of its own, as is the longer one's
last day, added to a store that has all others; the peaks are what the system says of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich import box
from rich.console import Console
from rich.table import Table

from incrs.data.log import LogSource
from incrs.environment import CONF

DAYS, ROWS, USERS, VIDEOS = 14, 228_000, 27_000, 7_500
LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_FLAGS = ["user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"]
USER_NUMBERS = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag"
)
START = 1_650_816_000_000  # 2022-04-25 in Shanghai, in ms
console = Console(highlight=False)


def made_up(rows: int, users: int, videos: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return a log and its tables of users and videos, all text but for the log's `time_ms`."""
    dice = np.random.default_rng(0)
    moment = np.sort(dice.integers(DAYS * 86_400_000, size=rows)) + START
    log = pl.DataFrame({name: dice.integers(9, size=rows) for name in LOG.split(",")})
    clock = pl.col("time_ms").cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone("Asia/Shanghai")
    log = log.with_columns(
        user_id=dice.zipf(1.3, rows) % users,
        video_id=dice.zipf(1.2, rows) % videos,
        time_ms=moment,
        is_click=dice.integers(2, size=rows),
        tab=dice.choice([0, 1, 2, 4], rows, p=[0.1, 0.76, 0.07, 0.07]),
    ).with_columns(date=clock.dt.strftime("%Y%m%d"))
    user = {"user_id": np.arange(users)}
    user |= {name: dice.integers(3, size=users) for name in USER_FLAGS}
    for name in USER_NUMBERS:
        user |= {
            name: dice.integers(1000, size=users),
            f"{name}_range": dice.integers(9, size=users),
        }
    user |= {f"onehot_feat{k}": dice.integers(2 + 3 * k, size=users) for k in range(18)}
    video = {name: dice.integers(30, size=videos) for name in VIDEO.split(",")}
    video |= {"video_id": np.arange(videos), "author_id": dice.integers(videos, size=videos)}
    return (
        log.cast(dict.fromkeys({*log.columns} - {"time_ms"}, pl.String)),
        pl.DataFrame(user),
        pl.DataFrame(video),
    )


def given(path: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return KuaiRand-Pure's log of the standard policy and its tables of users and videos."""
    parts = sorted(path.glob("data/log_standard_*_pure.csv"))
    log = pl.concat(pl.read_csv(part, infer_schema=False) for part in parts)
    names = ("user_features_pure", "video_features_basic_pure")
    user, video = (pl.read_csv(path / "data" / f"{n}.csv", infer_schema=False) for n in names)
    return log.with_columns(pl.col("time_ms").cast(pl.Int64)), user, video


def repeat(
    log: pl.DataFrame, user: pl.DataFrame, video: pl.DataFrame, times: int, to: Path
) -> None:
    """Write the log `times` times, a file for each day, each time behind the one before."""
    folder = to / "data"
    folder.mkdir(parents=True)
    user.write_csv(folder / "user_features_pure.csv")
    video.write_csv(folder / "video_features_basic_pure.csv")
    days = log.with_columns(pl.col("date").str.to_date("%Y%m%d"))
    span = timedelta(days=days["date"].n_unique())
    for k in range(times):
        moved = days.with_columns(
            pl.col("time_ms") + k * int(span.total_seconds()) * 1000,
            (pl.col("date") + k * span).dt.strftime("%Y%m%d"),
        )
        for (day,), rows in moved.partition_by("date", as_dict=True).items():
            rows.write_csv(folder / f"log_standard_{day}_pure.csv")


def prepare(path: Path) -> None:
    """Prepare the log at `path`, unless there is none; print the peak and the seconds as json."""
    began = time.perf_counter()
    if path.exists():
        with initialize_config_dir(str(CONF), version_base="1.3"):
            changes = ["+data=kuairand", f"data.path={path}", f"data.store={path}/store"]
            source: LogSource = instantiate(compose(None, changes).data)
        source.prepare()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([peak, time.perf_counter() - began]))


def measured(path: Path) -> tuple[float, float]:
    """Return the peak in MiB and the seconds of a process that prepares the log at `path`."""
    command = [sys.executable, "-m", "benchmarks.memory", "--prepare", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = json.loads(done.stdout)
    return peak, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, help="a folder in KuaiRand-Pure's layout")
    parser.add_argument("--times", type=int, default=20, help="how often the log is repeated")
    parser.add_argument("--smoke", action="store_true", help="a small log, repeated 3 times")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given_to = parser.parse_args()
    if given_to.prepare:
        prepare(given_to.prepare)
        return
    times = 3 if given_to.smoke else given_to.times
    small = (3000, 300, 100)
    frames = (
        given(given_to.path)
        if given_to.path
        else made_up(*(small if given_to.smoke else (ROWS, USERS, VIDEOS)))
    )
    table = Table("", "rows", "MiB at most", "seconds", box=box.SIMPLE)
    with tempfile.TemporaryDirectory(prefix="memory.") as name:
        room = Path(name)
        idle, _ = measured(room / "nothing")
        table.add_row("only the imports", "", f"{idle:.0f}", "")
        peaks = []
        for k in (1, times):
            repeat(*frames, k, room / str(k))
            peak, seconds = measured(room / str(k))
            peaks.append(peak)
            table.add_row(f"{k} x", f"{k * len(frames[0]):,}", f"{peak:.0f}", f"{seconds:.1f}")
        later = room / "later"
        repeat(*frames, times, later)
        last = max((later / "data").glob("log_standard_*"))
        rows = sum(1 for _ in last.open()) - 1
        last.rename(later / last.name)
        measured(later)
        (later / last.name).rename(last)
        peak, seconds = measured(later)
        table.add_row("one day more", f"{rows:,}", f"{peak:.0f}", f"{seconds:.1f}")
    console.print(table)
    console.print(f"peak of {times} x over peak of 1 x: {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
