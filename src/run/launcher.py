"""The launcher of `hydra/launcher=joblib`: a sweep's jobs at the same time, in processes of this machine."""

import logging
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


def offer_launcher() -> None:
    """Registers our launcher, as Hydra builds none by a name outside its namespace `hydra_plugins`."""
    Plugins.instance().class_name_to_class["hydra_plugins.JoblibLauncher"] = JoblibLauncher


class JoblibLauncher(Launcher):
    """Runs each job in a process of its own, which joblib starts.

    `joblib.Parallel` kills all processes of a pool when one of them dies, and so does Hydra's plugin for joblib, which
    calls it. Here a process is a pool of its own: one that is killed, for want of memory for instance, is one job.

    Args:
        n_jobs: jobs at the same time.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to each launcher."""
        self.shared = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a job for each list of overrides; one whose process was killed returns None.

        Raises:
            Exception: of the first job that could not begin, such as one with a wrong key, once all others have ended.
        """
        from joblib.externals.loky import FIRST_COMPLETED, ProcessPoolExecutor, wait
        from joblib.externals.loky.process_executor import BrokenProcessPool

        Path(self.shared[1].hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        returned = [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in job_overrides]
        waiting = deque(enumerate(job_overrides))
        running: dict[Any, tuple[int, Any]] = {}  # by its future, a job's number and process
        errors = []
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    i, overrides = waiting.popleft()
                    log.info("\t#%d : %s", initial_job_idx + i, " ".join(filter_overrides(overrides)))
                    pool = ProcessPoolExecutor(max_workers=1)
                    job = initial_job_idx + i, list(overrides), *self.shared, Singleton.get_state()
                    with without_ctrl_c():
                        running[pool.submit(run_one, *job)] = i, pool
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i, pool = running.pop(future)
                    try:
                        returned[i] = future.result()
                    except BrokenProcessPool:
                        log.warning("the process of job %d was killed", initial_job_idx + i)
                    except Exception as error:
                        errors.append(error)
                    pool.shutdown()  # else the command may end before the process has been told to
        finally:
            for _, pool in running.values():
                pool.shutdown(kill_workers=True)
        if errors:
            raise errors[0]
        return returned


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A process that is started in the block leaves a terminal's Ctrl-C to this one, which gets it after the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_one(
    number: int,
    overrides: list[str],
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    singletons: dict[Any, Any],
) -> JobReturn:
    """Runs a job in the process that it was sent to, as Hydra's launchers do."""
    setup_globals()
    Singleton.set_state(singletons)
    job_config = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = f"{job_config.hydra.job.name}_{number}"
        job_config.hydra.job.num = number
    HydraConfig.instance().set_config(job_config)
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
