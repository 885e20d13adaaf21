"""Several processes train one model: which one this is, which run folder all use, and how machines find each other."""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.command_line import as_typed
from src.errors import UserError
from src.run.commands import about_run
from src.run.slurm import by_srun, is_restarted, job_id

MACHINE = ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID")  # where its number is, by torchrun, by hand, by srun
agreed: dict[str, str] = {}  # the folder that all processes use, by the one that this process would use alone


def is_first() -> bool:
    """Whether this process records the run, as far as the environment says before training."""
    ranks = ["RANK", "LOCAL_RANK", "NODE_RANK"] + ["SLURM_PROCID"] * by_srun()
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def is_first_here() -> bool:
    """Whether no other process that `torchrun` or `srun` started on this machine comes before this one."""
    here = ["LOCAL_RANK"] * by_torchrun() + ["SLURM_LOCALID"] * by_srun()
    return all(os.environ.get(name, "0") == "0" for name in here)


def tells_why(code: int) -> tuple[bool, int]:
    """Whether this process is the one that says on this machine why the run ends, and the exit code of that process.

    Once processes have met, that is the first that fails, as others then fail for want of it.

    Args:
        code: the exit code for what has failed in this process, 1 or 2.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)  # torch takes seconds to import
    if distributed is None or not distributed.is_initialized():
        return code == 1 or is_first_here(), code
    machine = next((os.environ[name] for name in MACHINE if name in os.environ), "0")
    ours = f"{distributed.get_rank()} {code}"
    store = distributed.distributed_c10d._get_default_store()
    try:
        first = store.compare_set(f"failed/{machine}", "", ours).decode()
    except RuntimeError:  # the process that keeps the store is gone
        return True, code
    return first == ours, int(first.split()[1])


def by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def reads_no_checkpoint(path: str) -> bool:
    """Whether this process gets a checkpoint from the first one instead, as its machine may have none, or another."""
    return not is_first() and (by_torchrun() or not os.path.exists(os.path.expanduser(path)))


def remove_empty(folder: Path) -> None:
    """Removes a run folder that another machine's process has made, if nothing lies in it, and the empty ones above."""
    if all(os.environ.get(name, "0") == "0" for name in MACHINE):
        return
    above = [each for each in folder.parents if "logs" in (each.name, *(parent.name for parent in each.parents))]
    with suppress(OSError):  # it is not empty
        for each in (folder, *above):
            each.rmdir()


def started_processes() -> tuple[int, int] | None:
    """The number of machines, and of processes on each, that `torchrun` or `srun` started; None: neither did."""
    if by_torchrun():
        return int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if not by_srun():
        return None
    machines, tasks = int(os.environ.get("SLURM_STEP_NUM_NODES") or 1), int(os.environ["SLURM_STEP_NUM_TASKS"])
    if tasks % machines:
        raise UserError(
            f"srun started {tasks} tasks on {machines} machines: ask for as many on each, with --ntasks-per-node=N"
        )
    return machines, tasks // machines


def let_first_record() -> list[str]:
    """Registers `${one_folder:...}`; returns overrides that keep Hydra from writing where another process records."""
    OmegaConf.register_new_resolver("one_folder", one_folder, replace=True)
    return [] if is_first() else ["hydra.output_subdir=null", "hydra/job_logging=stdout"]


def one_folder(folder: str, _root_: DictConfig) -> str:
    """The folder of the first process: `folder`, or what that process chose instead."""
    if folder not in agreed:
        agreed[folder] = _agree(folder, _root_)
    return agreed[folder]


def _agree(folder: str, config: DictConfig) -> str:
    runs = Path(folder).parents[1]
    if by_srun() and not by_torchrun():  # its tasks cannot talk to each other yet
        return str(runs / f"slurm-{job_id()}" / f"step-{os.environ['SLURM_STEP_ID']}")  # the same after a requeue
    if is_restarted() and is_first():
        typed = [as_typed(each) for each in OmegaConf.select(config, "hydra.overrides.task", default=[])]
        folder = str(_folder_before(runs, typed) or folder)
    if by_torchrun() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore  # here, because verbs that only serve do without torch

        # The store through which torchrun's processes find each other.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
        key = f"run_folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if is_first():
            store.set(key, folder)
        return str(store.get(key).decode())
    trainer: Mapping[str, Any] = config.get("trainer") or {}
    return wait_for_machines(trainer.get("num_nodes"), trainer.get("nodes_timeout"), folder)


def _folder_before(runs: Path, overrides: Sequence[str]) -> Path | None:
    """The folder in which this job ran the same command before it was requeued, if it began.

    A script may run one command several times: the first that has not finished goes on.

    Args:
        runs: where runs are written, `logs/runs`.
        overrides: what was typed.
    """
    found = {run.parent: about_run(run.parent) for run in sorted(runs.glob("*/*/run.json"))}
    ours = {
        run: about
        for run, about in found.items()
        if about.get("slurm_job") == job_id() and about.get("overrides") == list(overrides)
    }
    unfinished = [run for run, about in ours.items() if about.get("status") != "finished"]
    return next(iter([*unfinished, *reversed(ours)]), None)


def check_reachable(n_machines: int, on_cpu: bool) -> None:
    """Refuses to train on several machines where the others would look for this one at their own address.

    Gloo, which connects CPUs, tells them what this machine's name means, and that is often 127.0.1.1.
    """
    first = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if n_machines < 2 or not on_cpu or "GLOO_SOCKET_IFNAME" in os.environ or _is_loopback(first):
        return
    if _is_loopback(name := socket.gethostname()):
        raise UserError(
            f"this machine calls itself {name}, which means 127.0.0.1 or the like here, where others cannot reach it:"
            " set GLOO_SOCKET_IFNAME to the name of its network device, such as eth0 (`ip -brief address` lists them)"
        )


def _is_loopback(name: str) -> bool:
    with suppress(OSError, ValueError):
        return ip_address(socket.gethostbyname(name)).is_loopback
    return False


def wait_for_machines(n: Any, timeout: Any, folder: str) -> str:
    """Waits until all machines that train together have been started by hand; once in a process.

    Returns the run folder of the first machine instead of `folder`, which this one would use alone. A UserError: one
    did not come in time, or they do not agree.
    """
    if "machines" in agreed:
        return agreed["machines"]
    by_others = by_torchrun() or by_srun() or "LOCAL_RANK" in os.environ
    # Neither is checked yet where the run folder is looked up.
    if not isinstance(n, int) or n < 2 or type(timeout) not in (int, float) or timeout <= 0 or by_others:
        return folder
    rank = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    if not rank.isdigit() or int(rank) >= n:
        raise UserError(f"NODE_RANK={rank} does not fit trainer.num_nodes={n}: number the machines from 0 to {n - 1}")
    if not os.environ.get("MASTER_PORT", "0").isdigit():
        raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']} must be a number such as 29500")
    agreed["machines"] = _lead(n, timeout, folder) if rank == "0" else _follow(rank, n, timeout)
    return agreed["machines"]


def _lead(n: int, timeout: float, folder: str) -> str:
    """Waits for the other machines, and tells them the folder, or what is wrong."""
    try:
        server = socket.create_server(("", int(os.environ.get("MASTER_PORT", 0))))
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={os.environ.get('MASTER_PORT')} cannot be used on this machine ({error.strerror}): set"
            " another, or NODE_RANK=1 if this is the second machine"
        ) from error
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if "MASTER_ADDR" not in os.environ:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # nothing is sent; the system chooses the way out
            address = str(probe.getsockname()[0])
    port = str(server.getsockname()[1])
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
    command = shlex.join(["python", sys.argv[0], *map(as_typed, sys.argv[1:])])
    print(
        f"waiting {timeout:g} s at {address}, port {port}, for {n - 1} more of {n} machines; this one has NODE_RANK=0."
        f" Type on each of the others, NODE_RANK={f'1 to {n - 1}' if n > 2 else '1'}:\n"
        f"MASTER_ADDR={address} MASTER_PORT={port} NODE_RANK=1 {command}",
        file=sys.stderr,
    )
    come: dict[int, socket.socket] = {}
    until = time.monotonic() + timeout
    with server:
        while len(come) < n - 1:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
                connection.settimeout(5)
                their_rank, their_n = map(int, _receive(connection))
            except TimeoutError:
                if time.monotonic() < until:  # somebody came and said nothing
                    continue
                missing = [str(i) for i in range(1, n) if i not in come]
                raise UserError(
                    f"no machine with NODE_RANK={' or '.join(missing)} came to {address}, port {port}, within"
                    f" {timeout:g} s: start it with MASTER_ADDR={address} MASTER_PORT={port}, or wait longer with"
                    " trainer.nodes_timeout=SECONDS"
                ) from None
            except (OSError, ValueError, TypeError):  # a stranger
                continue
            wrong = ""
            if their_n != n:
                wrong = f"trainer.num_nodes is {n} on one machine and {their_n} on another: type the same on all"
            elif their_rank in come or not 1 <= their_rank < n:
                wrong = f"two machines have NODE_RANK={their_rank}: number them from 0 to {n - 1}"
            if wrong:
                for each in [connection, *come.values()]:
                    _send(each, "error", wrong)
                raise UserError(wrong)
            come[their_rank] = connection
        for connection in come.values():
            _send(connection, "folder", folder)
        for connection in come.values():
            with connection, suppress(OSError):
                connection.recv(1)  # until the other side closes: a port that closes first is blocked for a while
    return folder


def _follow(rank: str, n: int, timeout: float) -> str:
    """Tells the first machine that this one is there; returns the folder."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        raise UserError(f"NODE_RANK={rank} needs MASTER_ADDR and MASTER_PORT: type what the machine NODE_RANK=0 prints")
    print(
        f"waiting {timeout:g} s for the machine with NODE_RANK=0 at {address}, port {port};"
        f" this one has NODE_RANK={rank} of {n} machines",
        file=sys.stderr,
    )
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection((address, int(port)), timeout=left) as connection:
                _send(connection, rank, str(n))
                kind, text = _receive(connection)
        except socket.gaierror as error:
            raise UserError(f"MASTER_ADDR={address} is not known to this machine: check it") from error
        except (ValueError, TypeError) as error:
            raise UserError(
                f"what answers at {address}, port {port}, is not this program: check MASTER_ADDR and MASTER_PORT"
            ) from error
        except OSError:  # not there yet, or not any more
            time.sleep(min(0.2, left))
            continue
        if kind == "error":
            raise UserError(str(text))
        return str(text)
    raise UserError(
        f"the machines did not meet at {address}, port {port}, within {timeout:g} s: start the one with NODE_RANK=0,"
        " check MASTER_ADDR and MASTER_PORT, or wait longer with trainer.nodes_timeout=SECONDS"
    )


def _send(connection: socket.socket, *message: str) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> tuple[Any, Any]:
    """What `_send` sent. A ValueError or TypeError: it was something else; ConnectionError: the other side left."""
    with connection.makefile("rb") as file:
        line = file.readline(65536)
    if not line:
        raise ConnectionError
    first, second = json.loads(line)
    return first, second
