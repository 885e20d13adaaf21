"""Lightning's Trainer, for the arguments people have typed for years."""

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pydantic import Field
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Checkpoint, ModelSummary, ProgressBar
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import Strategy

from src.config.instantiate import check_arguments
from src.config.types import Count, Share, check
from src.errors import UserError
from src.models.averaged_gradients import AveragedGradients
from src.run.files import replacing
from src.run.ranks import by_torchrun, check_reachable, started_processes, wait_for_machines
from src.run.slurm import by_srun, job_id

log = logging.getLogger(__name__)

Processes = Annotated[int, Field(ge=1, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
NotNegative = Annotated[int, Field(ge=0)]
Limit = Annotated[Count | Literal[-1], Field(description="a whole number of at least 1, or -1 for no limit")]
Batches = Annotated[
    NotNegative | Share, Field(description="a number of batches, 0 or more, or a share of them such as 0.5")
]
SomeBatches = Annotated[
    Count | Annotated[float, Field(gt=0, le=1)],
    Field(description="a number of batches, above 0, or a share of them such as 0.5"),
]
Precision = Literal[
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true",
    "transformer-engine", "transformer-engine-float16", "bf16", "16", "32", "64", 16, 32, 64,
]  # fmt: skip
BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
DECLARED = {  # Lightning's own arguments, with the ranges that it does not state
    "min_epochs": NotNegative | None,
    "max_epochs": Limit | None,
    "min_steps": NotNegative | None,
    "max_steps": Limit,
    "fast_dev_run": NotNegative | bool,
    "check_val_every_n_epoch": Count | None,
    "num_sanity_val_steps": Annotated[int, Field(ge=-1)] | None,
    "log_every_n_steps": NotNegative | None,
    "reload_dataloaders_every_n_epochs": NotNegative,
    "limit_train_batches": SomeBatches | None,
    "limit_val_batches": Batches | None,
    "limit_test_batches": Batches | None,
    "limit_predict_batches": Batches | None,
    "overfit_batches": Batches,
    "val_check_interval": SomeBatches | str | None,
}


def make_trainer(
    gpus: Any = 0,
    callbacks: Sequence[Callback] = (),
    accelerator: str = "auto",
    devices: Any = 1,
    strategy: str = "auto",
    num_nodes: Processes = 1,
    nodes_timeout: Annotated[float, Field(gt=0, description="a number of seconds above 0")] = 600,
    threads: Threads | None = None,
    precision: Precision | None = "32-true",
    cuda_graph: bool | Literal["auto"] = False,
    **kwargs: Any,
) -> Trainer:
    """A Trainer without loggers: those are started last, when everything else is known to be right.

    Args:
        gpus: 0: the CPU; n: that many GPUs; -1: all there are; a list: the GPUs with these numbers. Numbers may come
            as text. None: `accelerator` and `devices` decide, as in Lightning.
        callbacks: those that `enable_progress_bar` and `enable_model_summary` switch off are left out.
        accelerator, devices: as in Lightning; `gpus` wins where it names GPUs.
        strategy: as in Lightning; "ddp", and "auto" on several devices, is DDP with what two optimizers need.
        nodes_timeout: seconds to wait for machines that are started by hand.
        threads: threads that each process computes with on the CPU; None: OMP_NUM_THREADS, else the cores, which the
            processes of a machine share.
        precision: as in Lightning; "auto" is bf16-mixed where what trains computes with bfloat16 itself, else 32-true.
        cuda_graph: whether a step's forward and backward passes run as a CUDA graph (`src/models/step_graph.py`);
            "auto": where they can.
        **kwargs: Lightning's own arguments; `max_steps` counts batches.

    Raises:
        ValueError: an argument is of the wrong kind or out of range, or more GPUs are asked for than there are.
        UserError: a machine did not come in time.
    """
    decided_elsewhere = {"logger": "logger=csv", "enable_checkpointing": "callbacks=none", "plugins": "a callback"}
    for name, remedy in decided_elsewhere.items():
        if name in kwargs:
            raise ValueError(f"{name} cannot be set here: use {remedy}")
    check_arguments(Trainer, kwargs, "trainer", DECLARED)
    wanted = parse_gpus(gpus)
    if wanted:
        accelerator, devices = "gpu", wanted
    elif wanted == 0 and accelerator == "auto":
        accelerator = "cpu"
    if accelerator == "cpu":
        if kwargs.get("sync_batchnorm"):
            raise ValueError("sync_batchnorm is true, which works on GPUs alone: set trainer.sync_batchnorm=false")
        if cuda_graph is True:
            raise ValueError("cuda_graph is true, which needs a GPU: set trainer.gpus=1, or trainer.cuda_graph=auto")
        # Lightning sets this to 1, and torch, which looks for GPUs before every optimizer step, loads NVML each time.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        check("trainer.devices", devices, Processes | Literal["auto"])

    started = started_processes()
    if started and (num_nodes, devices) == (1, 1):  # nobody chose
        num_nodes, devices = started
    on_each = len(devices) if isinstance(devices, list) else devices
    total = num_nodes * on_each if isinstance(on_each, int) else 0
    if started and total > 0 and total != started[0] * started[1]:
        raise UserError(
            f"{'torchrun' if by_torchrun() else 'srun'} started {started[0] * started[1]} processes, but the trainer"
            f" was asked for {on_each} on each of {num_nodes} machines: leave out trainer.devices, trainer.gpus=N and"
            " trainer.num_nodes"
        )
    parallel: str | Strategy = strategy
    if strategy == "ddp" or (strategy == "auto" and (on_each not in (0, 1) or num_nodes != 1)):
        parallel = AveragedGradients(
            find_unused_parameters=True,  # such as adapters in layers whose output a model does not use
            gradient_as_bucket_view=True,  # gradients are averaged where they lie
            broadcast_buffers=False,  # not in each batch, but before a validation draws: see RunState
        )
    for switch, kind in [("enable_progress_bar", ProgressBar), ("enable_model_summary", ModelSummary)]:
        if not kwargs.get(switch, True):
            callbacks = [c for c in callbacks if not isinstance(c, kind)]
    if threads is not None:
        torch.set_num_threads(threads)
        if total != 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Lightning sets another number
    if precision == "auto":
        precision = native_precision(on_cpu=accelerator == "cpu")
        log.info("training in %s, chosen by trainer.precision=auto", precision)
    wait_for_machines(num_nodes, nodes_timeout, str(kwargs.get("default_root_dir")))
    check_reachable(num_nodes, accelerator == "cpu")
    kwargs["profiler"] = kwargs.get("profiler") or NoProfiler()
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy=parallel,
        num_nodes=num_nodes,
        precision=precision,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        plugins=[AtomicCheckpointIO(), *_environment(on_each)],
        **kwargs,
    )
    trainer.cuda_graph = cuda_graph  # type: ignore[attr-defined]
    return trainer


def _environment(on_each: Any) -> list[ClusterEnvironment]:
    """How the processes of a SLURM job find each other, which Lightning decides by the job instead of by `srun`."""
    if job_id() is None or by_torchrun():
        return []
    if not by_srun():  # Lightning starts the processes, if several are asked for
        return [LightningEnvironment()]
    os.environ["SLURM_NTASKS_PER_NODE"] = str(on_each)  # which srun says only where it was asked so
    return [SLURMEnvironment(auto_requeue=False)]  # a requeue is ours: see signals.py


def parse_gpus(gpus: Any) -> int | list[int] | None:
    """`gpus` as a number or a list of device numbers, or else a ValueError that says what is possible here."""
    numbers = gpus
    if isinstance(gpus, str):
        parts = [part.strip() for part in gpus.strip("[] ").split(",")]
        if all(part.lstrip("-").isdigit() for part in parts):
            numbers = int(parts[0]) if len(parts) == 1 and "[" not in gpus else [int(part) for part in parts]
    if numbers is None or (numbers == 0 and type(numbers) is int):
        return numbers
    if type(numbers) is int and numbers >= -1:  # true is not 1
        needed = max(numbers, 1)
    elif (
        isinstance(numbers, Sequence)
        and all(type(n) is int and n >= 0 for n in numbers)
        and len(set(numbers)) == len(numbers) > 0
    ):
        numbers = list(numbers)
        needed = max(numbers) + 1
    else:
        raise ValueError(
            f"gpus must be 0 (the CPU), a number of GPUs, -1 (all of them) or a list such as [0,1], not {gpus!r}"
        )
    names, shown = gpu_names(), str(numbers).replace(" ", "")
    if not names:
        raise ValueError(f"gpus is {shown}, but this machine has no GPU: use trainer.gpus=0 for the CPU")
    if needed > len(names):
        listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
        raise ValueError(f"gpus is {shown}, but this machine has {len(names)} ({listed}): use trainer.gpus=-1 for all")
    return numbers


def gpu_names() -> list[str]:
    """The GPUs of this machine that torch can use."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return names or (["Apple GPU"] if torch.backends.mps.is_available() else [])


def native_precision(on_cpu: bool) -> Literal["bf16-mixed", "32-true"]:
    """Bfloat16 where the hardware computes with it; elsewhere it is emulated, and slower than single precision."""
    if on_cpu or not torch.cuda.is_available():
        # torch has no public question for AVX512-BF16 and AMX; on other CPUs the answer is "no".
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "32-true"


def point_out_gpu(trainer: Trainer, typed: Sequence[str]) -> None:
    """Says so where a run uses the CPU although there is a GPU, and no typed override says where to run."""
    on_cpu = trainer.is_global_zero and isinstance(trainer.accelerator, CPUAccelerator)
    chosen = any(each.startswith(("trainer=", "trainer.gpus=", "trainer.accelerator=", "debug=")) for each in typed)
    if on_cpu and not chosen and (names := gpu_names()):
        log.info("training on the CPU, but this machine has a GPU (%s): type trainer.gpus=1 to use it", names[0])


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's own that does so, but without a generator for each of fifty parts of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return self._nothing


def leave_out_empty_hooks(callbacks: Sequence[Callback]) -> None:
    """Keeps Lightning from calling what callbacks do not do at each batch, which takes 2 % of a small network's step.

    It passes over a hook that cannot be called.
    """
    for callback in callbacks:
        for hook in BATCH_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and then renames: whatever happens, the target is whole, old or new.

    Machines need not share their folders: where one has not the same file, the first process reads it for all.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as partial, open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            # torch hides what the system said, such as that the disk is full, behind a RuntimeError of its own.
            refused = error if isinstance(error, OSError) else error.__context__
            if isinstance(refused, OSError) and refused.errno is not None:
                raise OSError(refused.errno, refused.strerror, str(path)) from error
            raise

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not torch.distributed.is_initialized():
            return super().load_checkpoint(path, *args, **kwargs)
        asked = [str(path)]  # of the first process: to others, `last` may mean another run
        torch.distributed.broadcast_object_list(asked)
        file = Path(asked[0])
        found: list[Any] = [None] * torch.distributed.get_world_size()
        is_there = (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None
        torch.distributed.all_gather_object(found, is_there)
        if len(set(found)) == 1:
            return super().load_checkpoint(file, *args, **kwargs)
        read: list[Any] = [None]
        if torch.distributed.get_rank() == 0:
            read = [super().load_checkpoint(file, *args, **kwargs)]
        torch.distributed.broadcast_object_list(read)
        return read[0]
