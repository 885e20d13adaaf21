"""When checkpoints are written, and which of them are kept."""

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from src.callbacks.quality import evaluator_of
from src.config.types import Count, Share
from src.errors import DivergedError, UserError
from src.metrics.alarms import COPIED
from src.metrics.copies import N_NEAREST, too_many
from src.run.checkpoints import read_checkpoint
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.run_record import log_record

log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Keeps `last.ckpt` current, and with a `monitor` the best checkpoints beside it.

    `last.ckpt` is rewritten after every epoch, when the run is stopped or raises between two batches, and when
    `max_steps` ends it inside an epoch. It stays as it was when training has diverged or the disk is full. The first of
    several of these callbacks writes it.

    A checkpoint whose images are copies of training images is passed over, and the log says so: copies score well by
    most metrics. If all are passed over, `last.ckpt` takes the place of the best.

    Args:
        dirpath: where checkpoints go; None: the run's `ckpts/`.
        monitor: the metric by which the best are chosen; None: only `last.ckpt` is kept.
        filename: of the best, without its ending; where several are kept, the epoch follows.
        save_top_k: how many of the best are kept.
        max_copied: largest share of copies among a best checkpoint's images (`val/copied`), up to five images more,
            which are chance; None: any. Where no callback measures it, none is passed over.
        every_n_epochs: how often both are written.
        every_n_batches: how often `last.ckpt` is written inside an epoch as well; None: not at all.

    Raises:
        ValueError: `filename` is `last`, `save_top_k` is set without a `monitor`, `mode` does not suit the metric, or
            the metric is the test's.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = None,
        mode: Annotated[Literal["min", "max"], Field(description="one of min, max")] = "min",
        filename: str = "best",
        save_top_k: Annotated[int, Field(ge=-1, description="a whole number of at least 0, or -1 for all")] = 1,
        max_copied: Share | None = COPIED,
        every_n_epochs: Count = 1,
        every_n_batches: Count | None = None,
    ) -> None:
        if filename in ("", "last"):
            raise ValueError(f"filename must be another name than {filename!r}: use best")
        if save_top_k != 1 and not monitor:
            raise ValueError(
                f"save_top_k is {save_top_k}, but nothing says which are the best: set monitor"
                " to a metric such as val/fd"
            )
        measured = (monitor or "").partition("/")[2]
        wanted = "max" if measured in HIGHER_IS_BETTER else "min" if measured in LOWER_IS_BETTER else mode
        if mode != wanted:
            raise ValueError(f"mode is {mode}, which would keep the worst {monitor}: set it to {wanted}")
        if monitor and monitor.startswith("test/"):
            raise ValueError(f"monitor is {monitor}, which is known only when training is over: use val/{measured}")
        super().__init__(
            dirpath=dirpath,
            monitor=monitor,
            mode=mode,
            filename=filename if save_top_k in (0, 1) or "{" in filename else filename + "_{epoch:04}",
            auto_insert_metric_name="{" in filename,
            save_top_k=save_top_k if monitor else 0,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._every_n_batches = every_n_batches
        self._max_copied = max_copied
        self._passed_over = 0  # checkpoints that would have been among the best
        self._is_news = False  # whether the last validation has not been judged yet
        self.writes_last = True
        self._inside_batch = False
        self._step_written = 0
        self._step_validated = -1  # of a validation after which the best is yet to be chosen

    @property
    def state_key(self) -> str:
        # Lightning's key has `every_n_epochs` in it, too: a run resumed with another one would forget its best.
        return self._generate_state_key(monitor=self.monitor, mode=self.mode, filename=self.filename)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"passed_over": self._passed_over}

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a checkpoint is among the best, and not passed over."""
        is_news, self._is_news = self._is_news, False
        wins = super().check_monitor_top_k(trainer, current)
        copied, evaluator = trainer.callback_metrics.get("val/copied"), evaluator_of(trainer, "val")
        if not wins or self._max_copied is None or copied is None:
            return wins
        n = min(evaluator.n, N_NEAREST) if evaluator else N_NEAREST
        if not too_many(float(copied), n, self._max_copied):
            return True
        if is_news:
            self._passed_over += 1
            sentence = (
                f"epoch {trainer.current_epoch} is passed over in the choice of the best checkpoint by {self.monitor}:"
                f" {float(copied):.1%} of its images are copies of training images, more than"
                f" max_copied={self._max_copied}"
            )
            if trainer.is_global_zero:
                log.warning(sentence)
            if trainer.is_global_zero and self.writes_last:
                log_record(trainer, "passed_over", sentence)
        return False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over the best of the resumed run. Lightning would forget their scores, as the run folder is another."""
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if trainer.state.fn != TrainerFn.FITTING or not self.monitor:  # a test loads checkpoints, too
            return
        batch: int = checkpoint["global_step"]
        before: dict[str, Tensor] = {} if state is None else state["best_k_models"]
        self._passed_over = 0 if state is None else state.get("passed_over", 0)
        found: dict[str, Tensor] = {}
        if trainer.is_global_zero:
            for path, score in before.items():
                if copy := self._take_over(Path(path), score, Path(str(trainer.ckpt_path)).parent, batch):
                    found[copy] = score
            if state is None:
                log.warning("the run had no best by %s so far: it is chosen from batch %d on", self.monitor, batch)
            elif lost := len(before) - len(found):
                which = "the best checkpoint" if len(before) == 1 else f"{lost} of the {len(before)} best checkpoints"
                log.warning(
                    "%s by %s before batch %d cannot be taken over, as the file is gone or a later one has taken its"
                    " place: the best is chosen without it",
                    *(which, self.monitor, batch),
                )
        found = trainer.strategy.broadcast(found)
        ranked = sorted(found, key=lambda path: float(found[path]), reverse=self.mode == "max")
        ranked = ranked[: self.save_top_k] if self.save_top_k > 0 else ranked
        self.best_k_models = {path: found[path] for path in ranked}
        if ranked:
            self.best_model_path, self.best_model_score = ranked[0], found[ranked[0]]
        if len(ranked) == self.save_top_k:
            self.kth_best_model_path, self.kth_value = ranked[-1], found[ranked[-1]]

    def _take_over(self, path: Path, score: Tensor, beside: Path, batch: int) -> str | None:
        """Links a best checkpoint into this run's folder, and returns its path there; None: it is gone."""
        copy = Path(str(self.dirpath)) / path.name
        for there in (beside / path.name, path):
            try:
                best = read_checkpoint(there)
            except UserError:
                continue
            its_score = best.get("callbacks", {}).get(self.state_key, {}).get("current_score")
            if its_score is None or float(its_score) != float(score) or best["global_step"] > batch:
                continue
            if not (copy.exists() and copy.samefile(there)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.unlink(missing_ok=True)
                try:
                    os.link(there, copy)  # checkpoints are replaced, never written to
                except OSError:
                    shutil.copyfile(there, copy)
            return str(copy)
        return None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._inside_batch = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._inside_batch = False
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # Lightning would save this as the end of an epoch, whose other batches a resumed run would then leave out.
        is_last = trainer.global_step == trainer.max_steps
        if (is_last or self._is_due(trainer)) and batch_idx + 1 < trainer.num_training_batches:
            self.write_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._step_validated = trainer.global_step
            self._is_news = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._step_validated = -1
        if (trainer.current_epoch + 1) % self._every_n_epochs == 0 or self._is_due(trainer):
            self.write_last(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._passed_over and not self.best_model_path and trainer.is_global_zero:
            log.warning(
                "no checkpoint became the best by %s, as %d of the run's epochs were passed over for their copies"
                " (max_copied=%s): last.ckpt takes its place",
                *(self.monitor, self._passed_over, self._max_copied),
            )
        last = Path(str(self.dirpath)) / "last.ckpt"
        if not (self.writes_last and trainer.is_global_zero and trainer.ckpt_path) or last.exists():
            return
        # The run was stopped in its test, and goes on there. Lightning would count an epoch that it never trained.
        checkpoint = read_checkpoint(Path(str(trainer.ckpt_path)))
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_save_checkpoint(trainer, pl_module, checkpoint)
        trainer.strategy.save_checkpoint(checkpoint, last)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether `every_n_batches` asks for a checkpoint now."""
        return self._every_n_batches is not None and trainer.global_step % self._every_n_batches == 0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # While testing, the model holds the weights that are tested, not those of the last batch.
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or isinstance(exception, DivergedError):
            return
        # One network may have made its step and the other not, and the images of the batch would be left out.
        if self._inside_batch:
            return
        # A resumed run shall validate again, which Lightning does only after a stop in validation's first batch, and
        # then choose the best.
        if trainer.validating or trainer.global_step == self._step_validated:
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()
            progress.increment_started()
            epoch: Any = trainer.fit_loop.epoch_progress  # it ends the epoch again
            epoch.current.processed, epoch.total.processed = epoch.current.completed, epoch.total.completed
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - 1  # the step that it logs at
        try:
            # One process alone may have failed: the others, which compute on, would not come to where all meet.
            self.write_last(trainer, together=trainer.world_size == 1 or isinstance(exception, SIGTERMException))
        except OSError as error:
            log.warning("the last moment could not be saved (%s); earlier checkpoints stand as they were", error)

    def write_last(self, trainer: Trainer, together: bool = True) -> None:
        """Writes `last.ckpt`, unless it holds this batch already or another callback writes it."""
        if not self.writes_last or trainer.fast_dev_run or trainer.global_step == self._step_written:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None
        path = Path(self.dirpath) / "last.ckpt"
        self.last_model_path = str(path)  # before saving, as it is part of what is saved
        if together:
            trainer.save_checkpoint(path)
        elif trainer.is_global_zero:
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)
        self._step_written = trainer.global_step


def arrange(callbacks: Sequence[Callback], run_dir: Path) -> None:
    """Gives several checkpoint callbacks one folder, files of different names there, and one `last.ckpt`.

    The first one's are the run's own. Those that name no folder write to `ckpts/` in `run_dir`.
    """
    taken: set[tuple[str, str]] = set()
    for i, checkpoint in enumerate(each for each in callbacks if isinstance(each, ModelCheckpoint)):
        checkpoint.dirpath = str(checkpoint.dirpath or run_dir / "ckpts")
        if i > 0:
            checkpoint.save_last = None
            checkpoint.writes_last = False  # type: ignore[attr-defined]
        name = checkpoint.filename or "{epoch}-{step}"
        if checkpoint.auto_insert_metric_name:  # Lightning would make a folder of the metric's name
            name = re.sub(r"\{([^:}]+)", lambda found: f"{found[1]}={found[0]}", name)
            checkpoint.auto_insert_metric_name = False
        name = re.sub(r"/(?![^{}]*\})", "_", name)
        if (checkpoint.dirpath, name) in taken | {(checkpoint.dirpath, "last")}:
            name += "_" + (checkpoint.monitor or "unmonitored").replace("/", "_")
        while (checkpoint.dirpath, name) in taken:
            name += f"_{i + 1}"
        taken.add((checkpoint.dirpath, name))
        checkpoint.filename = name


class RequiredMetric(Callback):
    """Refuses a metric that nobody logs as soon as that shows, which may be in the sanity check.

    Args:
        keys: where the metric is configured; those before the last follow it by default.
        metric: its name.
    """

    def __init__(self, keys: Sequence[str], metric: str) -> None:
        self.keys, self.metric = keys, metric

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric.startswith("val/") and trainer.limit_val_batches == 0:
            raise UserError(
                f"{self.keys[-1]}={self.metric} needs the validation that trainer.limit_val_batches=0 switches off: set"
                f" {' '.join(f'{key}=null' for key in self.keys)}"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric.startswith("val/"):
            check_logged(trainer.callback_metrics, self.keys[-1], self.metric)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.metric.startswith(("val/", "test/")):  # not every epoch has a validation
            check_logged(trainer.callback_metrics, self.keys[-1], self.metric)


def check_logged(metrics: Mapping[str, Any], key: str, metric: str) -> None:
    """Refuses a `key`'s metric that has not been logged by now; the UserError names those that have."""
    if metric not in metrics:
        raise UserError(
            f"{key}={metric} is logged by nobody: choose one of {', '.join(sorted(metrics))}, or set {key}=null"
        )
