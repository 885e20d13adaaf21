"""Makes a run repeatable from its checkpoint."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

from src.run.resume import Past
from src.run.summary import seconds_so_far


class RunState(Callback):
    """Puts a description of the run and its loggers' ids into every checkpoint, and seeds every batch.

    The random numbers of a batch (noise, dropout) are a function of the run's seed, the process and the number of
    batches before it. So there is no generator state to save: a resumed run draws what the uninterrupted one would
    have drawn, on the same number of processes.

    Args:
        about: plain values: `config`, the whole configuration; `data`, what the run trains on; `commit`, that of the
            code; `started`, when the first part of the run began.
        past: what the run goes on from.
        run_dir: the run folder.
    """

    def __init__(self, about: Mapping[str, Any], past: Past, run_dir: Path) -> None:
        self.about = {key: about[key] for key in ("config", "data", "commit", "started")}
        self.past = past
        self.run_dir = run_dir
        self._saved = False  # since the last batch began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With small data, too, every curve has a point an epoch.
        batches = int(trainer.num_training_batches)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, batches)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._saved:  # inside an epoch, a batch is logged after its checkpoint
            self._saved = False
            for logger in trainer.loggers:
                logger.save()
        key = (self.about["config"]["seed"], trainer.global_rank, trainer.global_step)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.about | {
            "folders": [*self.past.folders, str(self.run_dir.resolve())],
            "seconds": seconds_so_far(self.run_dir, self.past.seconds) or 0.0,
            "loggers": {},
        }
        self._saved = True
        for logger in trainer.loggers:
            logger.save()  # a run that is killed and resumed misses nothing that was logged before the checkpoint
            for name, kind in [("wandb", WandbLogger), ("mlflow", MLFlowLogger)]:
                if isinstance(logger, kind):
                    checkpoint["loggers"][name] = logger.version
