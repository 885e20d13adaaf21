"""Ends runs of a search that will not be among its best."""

import logging
import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from src.config.explain import telling
from src.run.study import RunningTrial

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports each validation to the study, and ends training where its pruner sees no prospects, except at the end.

    Args:
        metric: what the search optimises, a metric of validation.
        trial: which trial this run is.
    """

    def __init__(self, metric: str, trial: RunningTrial) -> None:
        self.pruned = False
        self._metric, self._trial = metric, trial
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._validations = state["validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        value = float(trainer.callback_metrics[self._metric])
        if not math.isfinite(value):
            return
        epoch = trainer.current_epoch + 1
        ends = epoch == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        try:
            if not self._trial.report(self._validations, value) or ends:
                return
            self._trial.give_up()
        except Exception as error:  # the database may be away: the run does not need it
            log.warning("the study did not take %s=%g (%s)", self._metric, value, telling(str(error)))
            return
        log.info("pruned after epoch %d: %s=%.4g, and other trials were better", epoch, self._metric, value)
        self.pruned = trainer.should_stop = True
