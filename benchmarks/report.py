"""How long a report on a thousand run folders takes, and how much memory.

python -m benchmarks.report            1,000 folders: 10 settings by 100 seeds, 25 periods, 5 scenarios
python -m benchmarks.report --smoke    20 folders, for a check that it works

The folders are made up in the layout of a sweep, with every number a run of a log with users and items
writes.  The report runs in a process of its own, by its command; the peak is what the system says of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from incrs import results
from incrs.results import POOLED, Row, Run

PERIODS, SCENARIOS, WARM = 25, 5, 7
KINDS = ["new_users", "known_users", "new_items", "known_items"]
KINDS += [f"{u}_{i}" for u in KINDS[:2] for i in KINDS[2:]]
BY_ALL = ["auc", "logloss", "recall_5", "ndcg_5", "recall_10", "ndcg_10"]
EVERYWHERE = [*BY_ALL, "gauc", "oracle_auc", "oracle_logloss"]
POOLED_ONLY = ["collapsed", *(f"{metric}_{kind}" for kind in KINDS for metric in BY_ALL)]
CELLS = [(POOLED, metric) for metric in [*EVERYWHERE, *POOLED_ONLY]]
CELLS += [(f"tab {s}", metric) for s in range(SCENARIOS) for metric in EVERYWHERE]


def make(sweep: Path, settings: int, seeds: int) -> None:
    """Write the folders of a sweep, half of it fine-tuning and half incmsr by weight."""
    dice = np.random.default_rng(0)
    weights = [10.0**-i for i in range(settings - 1)]
    number = 0
    for setting in [None, *weights]:
        updater = "finetune" if setting is None else "incmsr"
        own = {} if setting is None else {"weight": setting}
        for seed in range(seeds):
            about = Run(f"{updater}{setting}", "made up", "star", updater, seed)
            folder = sweep / str(number)
            folder.mkdir(parents=True)
            write_rows(folder / results.FILE, about, dice)
            record = {
                "overrides": [f"updater={updater}", f"seed={seed}"],
                "about": about._asdict(),
                "config": {
                    "seed": seed,
                    "data": {f"setting_{i}": i for i in range(100)},
                    "updater": {updater: own},
                },
                "timings": [{"period": t, "fit_seconds": 1.0 + t / 10} for t in range(PERIODS)],
                "finished": True,
                "data": {
                    "fingerprint": "0" * 32,
                    "roles": ["pretrain"] * WARM + ["test"] * PERIODS,
                    "scenarios": [f"tab {s}" for s in range(SCENARIOS)],
                },
            }
            (folder / "run.json").write_text(json.dumps(record, indent=2))
            number += 1


def write_rows(path: Path, about: Run, dice: np.random.Generator) -> None:
    """Write the results.csv of one run."""
    count = PERIODS * len(CELLS)
    table = pl.DataFrame(
        {
            **{name: [value] * count for name, value in about._asdict().items()},
            "period": np.repeat(np.arange(PERIODS) + WARM, len(CELLS)),
            "role": ["test"] * count,
            "scenario": [scenario for scenario, _ in CELLS] * PERIODS,
            "metric": [metric for _, metric in CELLS] * PERIODS,
            "value": dice.normal(0.7, 0.01, size=count),
            "rows": dice.integers(1000, 9000, size=count),
            "positives": dice.integers(100, 900, size=count),
        }
    )
    table.select(Row._fields).write_csv(path)


def main() -> int:
    """Run the command; exit status 1 where the report took over 20 seconds or 2 GiB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="20 folders instead of 1,000")
    given = parser.parse_args()
    settings, seeds = (4, 5) if given.smoke else (10, 100)
    with tempfile.TemporaryDirectory() as scratch:
        sweep = Path(scratch) / "sweep"
        make(sweep, settings, seeds)
        size = sum(file.stat().st_size for file in sweep.rglob("*.*"))
        print(
            f"{settings * seeds} folders, {settings * seeds * PERIODS * len(CELLS):,} rows, "
            f"{len({metric for _, metric in CELLS})} metrics, {size / 2**20:.0f} MiB"
        )
        began = time.perf_counter()
        command = [sys.executable, "-m", "incrs.report", str(sweep)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    gib = used.ru_maxrss / 2**20
    print(printed)
    busy = used.ru_utime + used.ru_stime
    print(f"{seconds:.1f} s of 20, {busy:.1f} s of them computing; peak {gib:.2f} GiB of 2")
    return int(not given.smoke and (seconds > 20 or gib > 2))


if __name__ == "__main__":
    sys.exit(main())
