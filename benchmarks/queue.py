"""What a queue of two slots saves: the same sweep in order and through `hydra/launcher=gpu_queue`.

python -m benchmarks.queue              12 jobs
python -m benchmarks.queue --smoke      4 small ones

Both sweeps run one after the other, each job on one thread, nothing shared; what they leave must be the
same bytes. Beside the time on the clock, which a busy machine stretches, stands the processor time that
each sweep took: what the queue takes more of it is what it costs, and half of its jobs' is what it can do
at best.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

COMMON = ["model=shared_bottom", "updater=finetune", "trainer=cpu", "share=false"]
QUEUE = ["hydra/launcher=gpu_queue", "hydra.launcher.device=cpu", "hydra.launcher.slots=2"]


class Cost(NamedTuple):
    """Seconds on the clock and of the processors."""

    wall: float
    cpu: float


def measure(folder: Path, arguments: list[str]) -> Cost:
    """Run a command with the folder as its sweep's; return what it cost."""
    command = [sys.executable, "-m", "incrs.train", *arguments, f"hydra.sweep.dir={folder}"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - began, cpu)


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="4 small jobs")
    smoke = parser.parse_args().smoke
    jobs, rows = (4, 400) if smoke else (12, 20_000)
    sweep = [
        "-m",
        *COMMON,
        f"data.rows_per_period={rows}",
        f"seed={','.join(map(str, range(jobs)))}",
    ]
    with tempfile.TemporaryDirectory() as name:
        folders = {"in order": Path(name, "order"), "queue of 2": Path(name, "queue")}
        nothing = measure(Path(name, "nothing"), ["--cfg", "job"])
        cost = {
            what: measure(folder, sweep + (QUEUE if what != "in order" else []))
            for what, folder in folders.items()
        }
        for number in range(jobs):
            one, other = (f / str(number) / "results.csv" for f in folders.values())
            assert one.read_bytes() == other.read_bytes(), f"job {number} gave other numbers"
    order, queue = cost.values()
    print(f"{jobs} jobs, one thread each; load average {os.getloadavg()[0]:.1f}")
    print(f"starting python, alone   {nothing.wall:7.1f} s  {nothing.cpu:7.1f} s of processors")
    for what, one in cost.items():
        print(f"{what:<24} {one.wall:7.1f} s  {one.cpu:7.1f} s of processors")
    best = (nothing.cpu + (queue.cpu - nothing.cpu) / 2) / order.cpu
    print(f"ratio on the clock       {queue.wall / order.wall:7.2f}")
    print(
        f"ratio by processor time  {best:7.2f}  two idle cores, the queue's jobs shared out evenly"
    )


if __name__ == "__main__":
    main()
