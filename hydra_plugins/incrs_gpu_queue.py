"""`hydra/launcher=gpu_queue`: one job per GPU, share of a GPU or set of CPU cores, until none is left.

Hydra takes launchers from the package `hydra_plugins` alone; what this one does is in `incrs.launchers`.
Every program that uses Hydra imports this file, so it imports nothing heavy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict


class GpuQueueLauncher(Launcher):
    """Runs a sweep's jobs on this machine; the settings are those of `incrs.launchers.slots.share_out`."""

    def __init__(self, slots: Any, device: Any, per_gpu: Any, cores: Any):
        self.settings = (slots, device, per_gpu, cores)

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[DictConfig], Any],
        config: DictConfig,
    ) -> None:
        """Take what Hydra hands to its launchers."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run what is missing of the sweep; raise JobsFailed where a job failed, after all have ended."""
        from incrs.door import JobsFailed
        from incrs.folder import RunFolder
        from incrs.launchers.board import Board
        from incrs.launchers.queue import Job, run_all
        from incrs.launchers.slots import cores_here, gpus_here, share_out
        from incrs.launchers.standing import is_finished

        setup_globals()
        slots = share_out(*self.settings, gpus_here(), cores_here())
        shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            folder = self._folder(overrides, number)
            if not is_finished(RunFolder(folder).record, overrides, folder):
                own = " ".join(one for one in overrides if one not in shared)
                jobs.append(Job(number, own, folder, partial(self._work, overrides, number)))
        finished = len(job_overrides) - len(jobs)
        with Board(len(job_overrides), finished, [slot.name for slot in slots]) as board:
            over = run_all(jobs, slots, board)
        failed = sorted(one.job.number for one in over if one.status)
        if failed:
            raise JobsFailed(failed, len(job_overrides))
        done = JobReturn()
        done.status = JobStatus.COMPLETED
        return [done for _ in job_overrides]

    def _folder(self, overrides: Sequence[str], number: int) -> Path:
        """Return the folder that a job will write to, composing it only where its name depends on it."""
        sweep = self.config.hydra.sweep
        declared: Any = OmegaConf.to_container(sweep, resolve=False)
        if declared["subdir"] == "${hydra.job.num}":
            return Path(str(sweep.dir), str(number))
        ours = HydraConfig.instance().cfg
        config = self._composed(overrides, number)
        HydraConfig.instance().set_config(config)  # it may be named by `${hydra:...}`
        try:
            return Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))
        finally:
            HydraConfig.instance().cfg = ours

    def _composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _work(self, overrides: Sequence[str], number: int) -> int:
        """Compose and run a job in this process; return its exit status."""
        from incrs.door import status_of

        def work() -> None:
            job = run_job(
                hydra_context=self.context,
                task_function=self.task,
                config=self._composed(overrides, number),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            if isinstance(job._return_value, Exception):
                raise job._return_value

        return status_of(work)
