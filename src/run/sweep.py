"""A `-m` command: where its jobs run, how it is stopped, and what it says at its end. No torch is needed for it.

Hydra's launchers start jobs in this process, in others, or on other machines. Each job keeps a record in its folder. So
whatever happens to a worker, the command that was typed can say what became of every job.
"""

import glob
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from src.config import command_line
from src.config.before_hydra import read_env_file
from src.config.command_line import as_typed, in_quotes
from src.config.types import Count, check
from src.errors import UserError
from src.run.commands import about_run, is_sweep, next_command, search_of_run, typed_overrides
from src.run.console import leave_terminal, plain_console, show_what_can_be_shown
from src.run.failures import JobFailed
from src.run.files import replacing
from src.run.jobs import LISTED, RECORD, print_jobs, print_spread, print_unfinished, read_jobs, read_records, varied
from src.run.slurm import TIME_IS_UP, is_restarted, job_id, requeue
from src.run.study import RunningTrial

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
GRACE = 20.0  # seconds that jobs have to end after a signal
SETTLE = 10.0  # seconds without a job at work, after which no other is expected
LOCAL = ("JoblibLauncher", "LocalLauncher")  # whose processes this machine's system alone looks after
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

sweeps: list["Sweep"] = []  # the one of this command, if it is one
held: list[IO[str]] = []  # the lock on the GPU or the core of this process


class Sweep(Callback):
    """Hydra's callback for what surrounds the jobs. It travels to the workers, with what they need to know."""

    heart = ExitStack()  # gives signs of life for a trial, in the worker that runs it

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job, where the command was typed: finds out which jobs there are, and prepares for them."""
        try:
            self._prepare(config)
        except UserError as error:  # Hydra would make a warning of it, and begin
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def _prepare(self, config: DictConfig) -> None:
        HydraConfig.instance().set_config(config)
        self.folder = Path(config.hydra.sweep.dir).absolute()  # a worker may be in another folder
        self.planned = plan(config)
        if is_restarted() and (before := self._before(Path(config.work_dir, "logs", "multiruns").absolute())):
            self.folder = before
        if str(self.folder) != config.hydra.sweep.dir:  # also where it is relative, and a worker is elsewhere
            with read_write(config.hydra.overrides):  # from which the jobs' own configurations are composed
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={in_quotes(str(self.folder))}")
        self.pid, self.host = os.getpid(), socket.gethostname()
        self.stops = self.folder / f".stop-{self.host}-{self.pid}"  # while it is there, no job of this command begins
        self.stops.unlink(missing_ok=True)
        self.cwd, self.path, self.argv = os.getcwd(), list(sys.path), list(sys.argv)
        self.typed = dict(command_line._typed)
        self.stopped_by: int | None = None
        self.launcher = str(config.hydra.launcher._target_).rpartition(".")[2]
        here = self.launcher in LOCAL
        on_gpu = OmegaConf.select(config, "trainer.gpus") in (1, "1")
        self.gpus = gpus() if here and on_gpu else []
        n_jobs = config.hydra.sweeper.get("n_jobs") if self.planned is None else len(self.planned)
        chosen = config.hydra.launcher.get("n_jobs")
        check("hydra.launcher.n_jobs", chosen, Count | None)
        most = chosen or len(self.gpus) or n_cores()
        at_once = min(most, n_jobs or most)
        self.slots = len(self.gpus) or (at_once if self.launcher == "LocalLauncher" else 0)
        if here:  # torch would use each core in each job, which makes all of them several times slower
            share = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // at_once)))
            threads = OmegaConf.select(config, "trainer.threads") or share
            log.info("%d jobs at a time, each with trainer.threads=%s", at_once, threads)
        if self.launcher == "SlurmLauncher":  # which submitit asks for before the time limit, and runs answer
            os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
        # A worker that submitit or Ray starts finds this project before it reads what it was sent.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(self.folder)
            launcher = config.hydra.launcher
            if self.launcher == "JoblibLauncher":
                launcher.n_jobs = at_once
            if self.launcher == "SlurmLauncher" and launcher.gpus_per_node is None and on_gpu:
                launcher.gpus_per_node = 1
        for folder, record in read_records(self.folder).values():  # the folder was used before
            at_work = record.get("code") is None and record.get("host") == self.host and is_alive(record["pid"])
            if "overrides" in record and not at_work:
                (folder / RECORD).unlink()
        sweeps.append(self)
        # Without workers, the run in this process answers the end of time; SLURM's jobs have times of their own.
        ours = TIME_IS_UP is not None and job_id() and self.launcher not in ("BasicLauncher", "SlurmLauncher")
        known = [*SIGNALS, TIME_IS_UP] if ours else SIGNALS
        self.handlers = {s: signal.signal(s, self.stop) for s in known if signal.getsignal(s) != signal.SIG_IGN}
        if self.launcher == "RayLauncher":
            check_answers(config.hydra.launcher.ray.init.address)
            with signals_wait(self.handlers), suppress(Exception):  # the launcher tries again, and then says why
                import ray

                ray.init(**OmegaConf.to_container(config.hydra.launcher.ray.init, resolve=True))  # type: ignore[arg-type]

    def _before(self, multiruns: Path) -> Path | None:
        """The folder in which this job of SLURM ran the same sweep before it was requeued, if it began."""
        planned = dict(enumerate(self.planned or ()))
        for folder in sorted(multiruns.glob("*/*"), reverse=True) if multiruns in self.folder.parents else ():
            jobs = {number: about_run(run) for number, (run, _) in read_records(folder).items()}
            ours = any(about.get("slurm_job") == job_id() for about in jobs.values())
            if ours and all(about.get("overrides") in (None, planned.get(n)) for n, about in jobs.items()):
                return folder
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "handlers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A worker then gets the command's options. Plugins that are loaded only afterwards would add theirs again.
        Plugins.instance()

    def on_job_start(self, config: DictConfig, *, task_function: Any, **kwargs: Any) -> None:
        """Where the job runs, just before it begins."""
        if not is_sweep():
            return
        if self.stops.exists():
            raise SystemExit(128 + signal.SIGTERM)  # the sweep was stopped before this job began
        if self.in_worker():
            first, sweeps[:] = not sweeps, [self]
            self._prepare_worker()
            if first and self.launcher in LOCAL:  # SLURM's jobs outlive the command; Ray ends its own
                threading.Thread(target=self._end_with_command, daemon=True).start()
        self._record(config, None)
        if self.slots and (not self.gpus or OmegaConf.select(config, "trainer.gpus") in (1, "1")):
            slot = self._take_slot()
            if self.gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[slot]
        if self.in_worker() and (search := search_of_run()) is not None:
            self.heart = ExitStack()
            self.heart.enter_context(RunningTrial(search, config.work_dir).alive())

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Where the job ran: keeps how it ended. A job that failed must not keep others from beginning."""
        if not is_sweep():
            return
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        stopped = about_run(Path(config.hydra.runtime.output_dir)).get("status") == "stopped"
        if error is None and stopped and job_id():
            time.sleep(GRACE)  # SLURM queues this job again, and ends this process: it must not say that it is done
        code = error.code if isinstance(error, JobFailed) else int(error is not None)
        self._record(config, code, str(error or ""))
        if (search := search_of_run()) is not None and not (error is None and stopped):
            # Here, and not where the command waits for several: it may be killed before the last of them has ended.
            result = "interrupted" if code >= 128 else "failed" if code else job_return.return_value
            self._tell_study(search, config.work_dir, result, str(error or ""))
        self.heart.close()
        if self.planned is not None:  # a sweeper that searches has to know
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def _tell_study(self, search: DictConfig, work_dir: str, result: float | str, error: str) -> None:
        for wait in (1, 10, 60, None):  # seconds; the database may be away
            try:
                return RunningTrial(search, work_dir).end(result, error)
            except Exception as refused:
                if wait is None:
                    log.error("the study did not take the result of trial %s, %s: %s", search.trial, result, refused)
                    return
                time.sleep(wait)

    def in_worker(self) -> bool:
        """Whether this is another process than that of the command."""
        return (os.getpid(), socket.gethostname()) != (self.pid, self.host)

    def _prepare_worker(self) -> None:
        """Gives another process what the command's own has: settings, what was typed, where to look for modules."""
        show_what_can_be_shown()
        read_env_file(ROOT / ".env")
        os.environ["HYDRA_FULL_ERROR"] = "1"
        os.environ["TERM"] = "dumb"  # the bars of several jobs would overwrite each other
        if "SLURM_CPUS_PER_TASK" in os.environ:
            os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_PER_TASK"])
        sys.argv = list(self.argv)
        sys.path += [each for each in self.path if each not in sys.path]
        command_line._typed.update(self.typed)
        if os.path.isdir(self.cwd):
            os.chdir(self.cwd)
        if threading.current_thread() is threading.main_thread():
            # A terminal sends Ctrl-C to all processes. The command's own decides, and then sends SIGTERM.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            if TIME_IS_UP is not None and self.launcher != "SlurmLauncher":
                signal.signal(TIME_IS_UP, signal.SIG_IGN)  # as above: all jobs share the command's time

    def _end_with_command(self) -> None:
        """A thread of a worker: stops the job, with a checkpoint, once the command's process has gone."""
        while is_alive(self.pid):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    def _record(self, config: DictConfig, code: int | None, error: str = "") -> None:
        about = {"number": config.hydra.job.num, "overrides": typed_overrides(), "code": code, "error": error}
        about |= {"host": socket.gethostname(), "pid": os.getpid()}
        with replacing(Path(config.hydra.runtime.output_dir) / RECORD) as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _take_slot(self) -> int:
        """Waits for a GPU or a core that no other process of the sweep has; it is kept until this process ends."""
        import fcntl  # here, because Windows has none

        folder = self.folder / ".slots"
        folder.mkdir(exist_ok=True)
        while not held:
            for i in range(self.slots):
                file = open(folder / str(i), "a", encoding="utf-8")  # noqa: SIM115  # closing it would give it back
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    file.close()
                    continue
                held.append(file)
                break
            else:
                time.sleep(0.5)
        return int(Path(held[0].name).name)

    def at_work(self) -> list[int]:
        """The processes on this machine that jobs run in, other than this one."""
        found = [record for _, record in read_records(self.folder).values() if record["code"] is None]
        pids = [int(record["pid"]) for record in found if record["host"] == self.host]
        return [pid for pid in pids if pid != os.getpid() and is_alive(pid)]

    def in_slurm(self) -> list[str]:
        """The numbers of the jobs that SLURM still has."""
        numbers = {path.name.partition("_")[0] for path in self.folder.glob(".submitit/*") if path.name[:1].isdigit()}
        if self.launcher != "SlurmLauncher" or not numbers:
            return []
        command = ["squeue", "--noheader", "--format=%A", f"--jobs={','.join(sorted(numbers))}"]
        return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.split()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """A handler of signals: stops all jobs, each with a checkpoint, and then the command.

        If the time of the SLURM job is up, in which they all run, it goes on with them in another turn.
        """
        for each in self.handlers:
            signal.signal(each, signal.default_int_handler)  # once more: at once
        if signum == getattr(signal, "SIGHUP", None):
            leave_terminal()
        self.stopped_by = signum
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stops.touch()
        processes, queued = self.at_work(), self.in_slurm()
        if processes or queued:
            print("stopping all jobs, each with a checkpoint; once more to stop at once", file=sys.stderr)
        for pid in processes:
            with suppress(OSError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
        if queued:
            subprocess.run(["scancel", *queued], capture_output=True)
        until = time.monotonic() + GRACE
        while (self.at_work() or self.in_slurm()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in self.at_work():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if signum == TIME_IS_UP and requeue():
            time.sleep(GRACE)  # SLURM ends this process
        raise SystemExit(128 + signum)

    def wait(self) -> None:
        """Until no job is at work, where a launcher has given up on the others because of one."""
        since = time.monotonic()
        while time.monotonic() - since < SETTLE:
            if self.at_work() or self.in_slurm():
                since = time.monotonic()
            elif all(job.status not in ("killed", "not begun") for job in read_jobs(self.folder, self.planned)):
                return
            time.sleep(0.2)


def check_answers(address: str | None) -> None:
    """Refuses the address of a Ray cluster where nobody answers: Ray itself asks for many minutes."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"hydra.launcher.ray.init.address={address} does not answer ({error}): start the cluster there with"
                f" ray start --head --port={port}, or leave the address out"
            ) from error


@contextmanager
def signals_wait(signums: Iterable[int]) -> Iterator[None]:
    """For a block that takes handlers of signals for itself: ours stay, and are called at its end; the second ends all.

    Ray's SIGTERM raises an error wherever its start is, some of which is lost, with a lock that is never given back.
    """
    came: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) > 1:
            os._exit(128 + signum)

    handlers = {each: signal.signal(each, remember) for each in signums}
    try:
        with patch.object(signal, "signal", lambda *_: None):
            yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    if came:
        signal.raise_signal(came[0])


def conclude(verdict: Callable[[Sequence[Path]], Sequence[str]], interrupted: int = 0) -> int:
    """Ends a sweep, if this command is one: prints what it made and what to type next; returns the exit code.

    Args:
        verdict: what is to be said of the runs in these folders.
        interrupted: the exit code, if something ended it early.
    """
    if not sweeps:
        return 0
    sweep = sweeps.pop()
    if sweep.stopped_by is not None:
        interrupted = 128 + sweep.stopped_by  # Ray changes the code on the way here
    if not interrupted and sweep.launcher not in ("BasicLauncher", "JoblibLauncher"):
        sweep.wait()
    for signum, handler in sweep.handlers.items():
        signal.signal(signum, handler)
    if sweep.planned is None:  # a search, which says what it made
        return interrupted
    jobs = read_jobs(sweep.folder, sweep.planned)
    if all(job.status == "not begun" for job in jobs):
        return 0 if interrupted else 1  # what kept them from it has been said
    if interrupted:
        jobs = [job._replace(status="stopped") if job.status == "killed" else job for job in jobs]
    done = [job for job in jobs if job.status == "finished"]
    rest = [job for job in jobs if job.status != "finished"]
    title = f"{len(done)} of {len(jobs)} jobs finished"
    if varied(sweep.planned or ()) == ["seed"] and any(job.metrics for job in done):
        seeds = [each.partition("=")[2] for job in done for each in job.overrides if each.startswith("seed=")]
        print_spread(done, f"{title}: seed {', '.join(seeds)}")
    else:
        print_jobs(jobs, title)
    console = plain_console()
    measured = [job.folder for job in done if job.metrics and job.folder]
    said = verdict(measured) if measured else []
    for line in said:
        console.print(f"{'verdict':<11} {line}")
    print_unfinished(jobs)
    console.print(f"{'sweep':<11} {sweep.folder}")
    if said:
        runs = f"runs={glob.escape(str(sweep.folder))}/*"
        console.print(f"{'report':<11} {next_command('task=report', runs)}")
    if not rest:
        return 0
    failed = ", ".join(f"job {job.number} {job.status}" for job in rest[:LISTED])
    more = f" and {len(rest) - LISTED} more" if len(rest) > LISTED else ""
    print(f"error: {len(rest)} of {len(jobs)} jobs did not finish: {failed}{more}; see above", file=sys.stderr)
    return interrupted or next((job.code for job in rest if job.code), 1)


def swept() -> list[str]:
    """The keys that this sweep varies; none in a single run."""
    return varied(sweeps[-1].planned or ()) if sweeps else []


def in_worker() -> bool:
    """Whether this process works for a sweep that another process runs."""
    return bool(sweeps) and sweeps[-1].in_worker()


def plan(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job, as Hydra's own sweeper multiplies them; None: a sweeper decides as it goes."""
    sweeper: Any = Plugins.instance().class_name_to_class.get(config.hydra.sweeper._target_)
    if not hasattr(sweeper, "split_arguments"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    try:
        batches = sweeper.split_arguments(overrides, None)
    except HydraException as error:
        raise UserError(
            f"this sweep cannot be listed ({error}): type values such as seed=1,2 or seed=range(1,3), or add"
            " hydra/sweeper=optuna"
        ) from error
    return [[as_typed(each) for each in job] for batch in batches for job in batch]


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [each.strip() for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each.strip()]
    import torch  # takes seconds

    return [str(i) for i in range(torch.cuda.device_count())]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
