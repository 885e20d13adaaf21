"""Makes a run repeatable from its checkpoint."""

import random
import socket
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

from src.errors import UserError
from src.run.resume import Past
from src.run.summary import seconds_so_far
from src.run.trainer import leave_out_empty_hooks

BLOCK = 100  # batches whose seeds are computed at once: right after a batch, a hash takes 20 times as long


@lru_cache(maxsize=1)
def seeds(run_seed: int, rank: int, block: int) -> list[int]:
    """The seed of each batch of a block, for one process."""
    batches = range(block * BLOCK, (block + 1) * BLOCK)
    return [int(np.random.SeedSequence((run_seed, rank, n)).generate_state(1, np.uint32)[0]) for n in batches]


class RunState(Callback):
    """Puts a description of the run and its loggers' ids into every checkpoint, and seeds every batch.

    The random numbers of a batch (noise, dropout) are a function of the run's seed, the process and the number of
    batches before it. So there is no generator state to save: a resumed run draws what the uninterrupted one would
    have drawn, on the same number of processes.

    Args:
        about: what `run.json` says of the run; checkpoints get its `config`, `data`, `commit` and `started`.
        past: what the run goes on from.
    """

    def __init__(self, about: Mapping[str, Any], past: Past) -> None:
        self.about = {key: about[key] for key in ("config", "data", "commit", "started")}
        self.past = past
        self._saved = False  # since the last batch began

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Where max_steps is set, Lightning would go on with an epoch that a resumed run has behind it, find no batch
        # left in it, and so leave out the order of the next one.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        leave_out_empty_hooks(trainer.callbacks)  # type: ignore[attr-defined]  # all are there by now
        if trainer.world_size > 1:
            self._compare_data(trainer)

    def _compare_data(self, trainer: Trainer) -> None:
        """Refuses to train one model on two data sets: a machine without MNIST, for instance, would take the digits.

        Raises:
            UserError: another process has other data than the first.
        """
        data = self.about["data"]
        found: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(found, (data["source"], data.get("sha256"), socket.gethostname()))
        first, others = found[0], [each for each in found if each[:2] != found[0][:2]]
        if others:
            raise UserError(
                f"{others[0][2]} has other data ({others[0][0]}) than {first[2]} ({first[0]}): give all machines the"
                " same files in DATA_DIR, and set datamodule.offline_fallback=false if they have it"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        most = int(trainer.num_training_batches)  # with small data, too, every curve has a point an epoch
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, most)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._saved:  # inside an epoch, a batch is logged after its checkpoint
            self._saved = False
            for logger in trainer.loggers:
                logger.save()
        block, place = divmod(trainer.global_step, BLOCK)
        seed = seeds(self.about["config"]["seed"], trainer.global_rank, block)[place]
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # BatchNorm's running statistics are each process's own in training, which does not use them. All draw with
        # those that checkpoints hold.
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        run_dir = Path(trainer.default_root_dir)
        checkpoint |= self.about | {
            "folders": [*self.past.folders, str(run_dir.resolve())],
            "seconds": seconds_so_far(run_dir, self.past.seconds) or 0.0,
            "loggers": {},
        }
        self._saved = True
        for logger in trainer.loggers:
            logger.save()  # a run that is killed and resumed misses nothing that was logged before the checkpoint
            for name, kind in [("wandb", WandbLogger), ("mlflow", MLFlowLogger)]:
                if isinstance(logger, kind):
                    checkpoint["loggers"][name] = logger.version
