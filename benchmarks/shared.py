"""What do sweeps gain from sharing, and does it change a byte?

python -m benchmarks.shared data=kuairand data.path=...     two sweeps, alone, sharing, and again
python -m benchmarks.shared --smoke                         the same in small, on the embedded log
python -m benchmarks.shared --only asmg data=... model=embedding_mlp updater.asmg.share=per_weight

Sweeps: {finetune, batch, incctr, incmsr} by 5 seeds, and asmg's k = 1..6 by hidden size 4, 8, 12, 16.
Each is run three times: with share=false, sharing from an empty shelf, and sharing once more. All files
of the runs but run.json must be equal, byte for byte. The time of the second is compared to that of the
distinct work alone: every phase once, and what no two runs share, as each run's own record has it:
scoring, what updaters make of the weights to serve them, and what they learn from the next period; what
it takes to begin a run, to write and to draw is left out of that, so the ratio is higher where runs are
short. The second ratio leaves it in: it is to the first sweep less the phases that the second did not compute
again. Runs of both sorts take turns on one machine, so what else it does is in all of the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SWEEPS = {
    "updaters": ["updater=finetune,batch,incctr,incmsr", "seed=0,1,2,3,4"],
    "asmg": [
        *("updater=asmg", "updater.asmg.share=per_output"),
        *("updater.asmg.k=1,2,3,4,5,6", "updater.asmg.hidden_size=4,8,12,16"),
    ],
}
SMOKE = {
    "updaters": ["updater=finetune,batch,incctr,incmsr", "seed=0,1"],
    "asmg": [
        *("updater=asmg", "updater.asmg.share=per_output"),
        *("updater.asmg.k=1,2", "updater.asmg.hidden_size=4,8"),
    ],
}
SMALL = ["model=dcn", "data.rows_per_period=400", "data.users=100", "data.items=80"]


class Done(NamedTuple):
    """A sweep: the wall clock seconds of the command, and the folders of its runs in their order."""

    seconds: float
    folders: list[Path]

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the runs' run.json say."""
        return [json.loads((folder / "run.json").read_text()) for folder in self.folders]

    @property
    def timings(self) -> list[dict[str, Any]]:
        """What every period of every run cost."""
        return [one for record in self.records for one in record["timings"]]


def sweep(where: Path, arguments: Sequence[str]) -> Done:
    """Run a sweep in a folder of its own."""
    where.mkdir(parents=True)
    command = [sys.executable, "-m", "incrs.train", "-m", f"hydra.sweep.dir={where}", *arguments]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path.cwd())
    seconds = time.perf_counter() - began
    folders = [file.parent for file in where.rglob("run.json")]
    return Done(seconds, sorted(folders, key=lambda folder: int(folder.name)))


def different(ours: Done, theirs: Done) -> list[str]:
    """Return the files of two sweeps that are not the same; run.json aside."""
    found = []
    for one, other in zip(ours.folders, theirs.folders, strict=True):
        names = {
            file.relative_to(folder)
            for folder in (one, other)
            for file in folder.rglob("*")
            if file.is_file() and file.name != "run.json"
        }
        for name in sorted(names):
            a, b = one / name, other / name
            if not (a.exists() and b.exists()) or a.read_bytes() != b.read_bytes():
                found.append(f"{one.name}/{name}")
    return found


def distinct(done: Done) -> float:
    """Return the seconds of a sweep's distinct work: each phase once, and all that no runs share."""
    found = sum(one["score_seconds"] + one["learn_next_seconds"] for one in done.timings)
    for one in done.timings:
        found += one["fit_seconds"] - one["shared"] * one["phase_seconds"]
    return found


def compare(name: str, settings: Sequence[str], where: Path, others: Sequence[str]) -> None:
    """Run one sweep alone, sharing and again, and print what came out."""
    arguments = [*settings, *others]
    shelf = [f"share_path={where / 'shelf' / name}", "share=true"]
    print(f"{name}: {' '.join(arguments)}", flush=True)
    sharing = sweep(where / name / "shared", [*arguments, *shelf])
    again = sweep(where / name / "again", [*arguments, *shelf])
    computed = [one["phase"] for one in sharing.timings if one["phase"] and not one["shared"]]
    taken = sum(one["shared"] for one in sharing.timings)
    floor = distinct(sharing)
    size = sum(f.stat().st_size for f in (where / "shelf" / name).glob("phase-*/*"))
    print(
        f"  {len(sharing.folders)} runs, {len(computed)} phases computed "
        f"({len(computed) - len(set(computed))} of them twice), {taken} shared, "
        f"{size / 2**20:.0f} MiB of phases\n"
        f"  sharing {sharing.seconds:.1f} s; its distinct work alone {floor:.1f} s "
        f"(ratio {sharing.seconds / floor:.3f}); the same sweep again {again.seconds:.1f} s",
        flush=True,
    )
    alone = sweep(where / name / "alone", [*arguments, "share=false"])
    spared = sum(one["phase_seconds"] for one in sharing.timings if one["shared"])
    print(
        f"  without sharing {alone.seconds:.1f} s, {alone.seconds / sharing.seconds:.2f} times as long; "
        f"that less the phases that were shared {alone.seconds - spared:.1f} s "
        f"(ratio {sharing.seconds / (alone.seconds - spared):.3f})",
        flush=True,
    )
    for what, one in (("sharing", sharing), ("again", again)):
        files = different(one, alone)
        print(f"  {what}: {f'other bytes in {files}' if files else 'the same bytes in every file'}")
        if files:
            sys.exit(1)
    if len(computed) != len(set(computed)):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", help="of python -m incrs.train, for every run")
    parser.add_argument("--only", choices=list(SWEEPS))
    parser.add_argument("--smoke", action="store_true", help="small sweeps on the embedded log")
    parser.add_argument("--out", type=Path, help="where the runs stay; else they are deleted")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    others = [*(SMALL if given.smoke else []), *given.settings]
    sweeps = SMOKE if given.smoke else SWEEPS
    with tempfile.TemporaryDirectory() as temporary:
        for name, settings in sweeps.items():
            if given.only in (None, name):
                compare(name, settings, (given.out or Path(temporary)).resolve(), others)


if __name__ == "__main__":
    main()
