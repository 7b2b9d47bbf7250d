"""What the machine has to lend: a slot is a GPU, a share of one, or some CPU cores, for one job at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from incrs.errors import Mistake


class Slot(NamedTuple):
    """One job's share of the machine.

    name: for people.  gpu: its name in CUDA_VISIBLE_DEVICES, empty for a slot without one.  cores: the
    CPU cores the job may run on.  threads: how many threads compute.
    """

    name: str
    gpu: str
    cores: tuple[int, ...]
    threads: int


def share_out(
    slots: Any, device: Any, per_gpu: Any, cores: Any, gpus: Sequence[str], here: Sequence[int]
) -> list[Slot]:
    """Return the slots that the settings of `hydra.launcher` ask for.

    slots: `auto` for as many as fit, or how many.  device: `gpu`, `cpu` or `auto`, GPUs where there are
    any.  per_gpu: jobs on each GPU at a time.  cores: of each slot, None for 1 on CPUs and an even share
    beside a GPU.  gpus, here: the names of the GPUs and the numbers of the cores that there are.
    CPU slots have their cores alone as long as there are enough; then they share them.
    Raises Mistake where a setting is wrong, or asks for more than there is.
    """
    for name, value, other in (
        ("slots", slots, "auto"),
        ("per_gpu", per_gpu, 1),
        ("cores", cores, None),
    ):
        if value != other and (type(value) is not int or value < 1):
            default = "null" if other is None else other
            raise Mistake(
                f"hydra.launcher.{name}={value}: give a whole number from 1, or {default}"
            )
    if device not in ("auto", "gpu", "cpu"):
        raise Mistake(f"hydra.launcher.device={device}: give auto, gpu or cpu")
    if cores is not None and cores > len(here):
        raise Mistake(f"hydra.launcher.cores={cores}: there are {len(here)}")
    if device == "gpu" and not gpus:
        raise Mistake("hydra.launcher.device=gpu: PyTorch finds no GPU here; give cpu or auto")
    if device == "cpu" or not gpus:
        each = cores or 1
        many = len(here) // each if slots == "auto" else slots
        return [
            _of_cores([here[(k * each + j) % len(here)] for j in range(each)]) for k in range(many)
        ]
    room = len(gpus) * per_gpu
    many = room if slots == "auto" else slots
    if many > room:
        raise Mistake(
            f"hydra.launcher.slots={many}: {len(gpus)} GPUs with hydra.launcher.per_gpu={per_gpu} "
            f"have room for {room}; raise per_gpu, or leave slots out"
        )
    threads = cores or max(1, len(here) // many)
    return [
        Slot(
            f"GPU {gpus[k % len(gpus)]}" + (f" ({k // len(gpus) + 1})" if per_gpu > 1 else ""),
            gpus[k % len(gpus)],
            tuple(here),
            threads,
        )
        for k in range(many)
    ]


def _of_cores(cores: Sequence[int]) -> Slot:
    name = "core " if len(cores) == 1 else "cores "
    return Slot(name + ",".join(map(str, cores)), "", tuple(cores), len(cores))


def cores_here() -> list[int]:
    """Return the CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def gpus_here() -> list[str]:
    """Return the names of the GPUs that PyTorch can use, as CUDA_VISIBLE_DEVICES knows them.

    They are counted in a process of its own: one that has met CUDA cannot be forked.
    """
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_count, args=(there,))
    process.start()
    there.close()
    try:
        count = here.recv()
    except EOFError:  # it died of what it met
        count = 0
    process.join()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(k) for k in range(count)]
    return names[:count]


def _count(there: Connection) -> None:
    there.send(torch.cuda.device_count())


def confine(slot: Slot) -> None:
    """Let this process, which has computed nothing yet, see and use its slot alone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu
    os.environ["OMP_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(slot.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    torch.set_num_threads(slot.threads)
