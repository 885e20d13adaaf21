"""How good the generated images are, measured while the model trains."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.errors import UserError
from src.metrics.evaluator import SEEDS, Evaluator, in_parts
from src.metrics.references import LEAST, load_references
from src.models.image_model import ImageModel
from src.pictures.confusion import draw_confusion
from src.pictures.pixels import to_pixels
from src.run.loggers import show
from src.run.run_record import log_record

log = logging.getLogger(__name__)
T = TypeVar("T")
FEATURES = "features"  # in a run's record: the classifier that measured it
Enough = Annotated[int, Field(ge=LEAST)]


class LogQuality(Callback):
    """Logs how good generated images are, each number beside what as many held-out real images get.

    Features are those of a small classifier of the same data set (see `src.metrics.feature_net`), not Inception's: the
    Frechet distance is not FID, and compares between runs on the same data alone. The classifier is trained before the
    first run on a data set, in about a minute.

    After every validation under `val/`, and after the test under `test/`: the metrics of `Evaluator.measure`, the same
    with `_floor` for real images, and `alarms`, the number of failures that hold (see `src.metrics.alarms` and
    `ImageModel.alarms`). A warning names each when it begins. During training an alarm is raised when it holds for the
    second validation in a row, as the first epochs are always bad.

    With `cas` also `test/cas` (see `Evaluator.cas`). Its floor is the same classifier trained on the real training
    images. It is left out where `trainer.limit_test_batches` is set.

    Where `trainer.limit_val_batches` or `limit_test_batches` is set, no more images are drawn than these batches hold.

    Images are drawn with the labels of the held-out images and always from the same noise, the test's another than the
    validations'. Training is not disturbed: its random numbers are those of a run without these metrics.

    Args:
        n_val: images drawn after a validation; fewer if the validation or the test split has fewer.
        n_test: images drawn after the test; fewer as well.
        cas: whether to train a classifier on generated images after the test.
        picture: whether to show which class the classifier sees in images of each class, as `label_confusion`.
        cache_dir: where classifiers and the features of real images are kept.
    """

    needs_classes = True  # where the data have none, the callback is left out

    def __init__(
        self,
        n_val: Enough = 4_000,
        n_test: Enough = 5_000,
        cas: bool = True,
        picture: bool = True,
        cache_dir: str | Path = "data/features",
    ) -> None:
        self.n = {"val": n_val, "test": n_test}
        self.cas = cas
        self.picture = picture
        self.cache_dir = Path(cache_dir).expanduser()
        self.evaluators: dict[str, Evaluator] = {}  # neither the model's nor the checkpoint's
        self._seen: list[str] = []  # alarms that held at the last validation, raised or not
        self._said: list[str] = []  # those of them that a warning has named already

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gets the feature net ready, by training it if need be, or refuses parts whose quality it cannot measure."""
        if self.evaluators:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        require_images("callbacks.quality", pl_module, datamodule)
        device = trainer.strategy.root_device
        try:
            references = on_rank_zero(trainer, lambda: load_references(datamodule, self.cache_dir, device))
        except UserError as error:
            raise UserError(
                f"callbacks.quality: {error}, or set callbacks.quality=null"
                " callbacks.model_checkpoint.monitor=null to train without these metrics"
            ) from error
        numbers = {split: at_most(trainer, split, n) for split, n in self.n.items()}
        self.evaluators = {split: Evaluator(datamodule, references, n, device) for split, n in numbers.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "test")
        if self.cas and is_whole(trainer):
            evaluator = self.evaluators["test"]
            pixels = draw(trainer, pl_module, evaluator.cas_labels, SEEDS["cas"])  # type: ignore[arg-type]
            cas = on_rank_zero(trainer, lambda: evaluator.cas(pixels))
            logged = {"test/cas": cas, "test/cas_floor": evaluator.cas_floor}
            pl_module.log_dict(logged, batch_size=len(pixels), sync_dist=True)

    def _measure(self, trainer: Trainer, model: Any, split: str) -> None:
        evaluator = self.evaluators[split]
        quick = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        labels = evaluator.labels[:50] if quick else evaluator.labels  # a few show before training that all of it works
        pixels = draw(trainer, model, labels, SEEDS[split])
        quality = evaluator.measure(evaluator.net.embed(pixels, labels))
        logged = dict(quality.metrics)
        raised: dict[str, str] = {}
        if not quick:
            floor = evaluator.floor.metrics
            logged |= {f"{name}_floor": value for name, value in floor.items()}
            when, file = "the test", "test"
            if split == "val":
                when, file = f"epoch {trainer.current_epoch}", f"epoch_{trainer.current_epoch:04d}"
            if trainer.is_global_zero:
                log_record(trainer, f"{split}/label_confusion", quality.confusion.tolist())
                log_record(trainer, FEATURES, f"{evaluator.name}, weights {evaluator.net.sha256()[:8]}")
            if trainer.is_global_zero and self.picture:
                picture = draw_confusion(quality.confusion.numpy(), evaluator.datamodule.class_names)
                accuracy, real = quality.metrics["label_accuracy"], floor["label_accuracy"]
                caption = f"{when}: label accuracy {accuracy:.1%} (real images {real:.1%})"
                show(trainer, "label_confusion", picture, caption, f"pictures/label_confusion/{file}.png")
            all_metrics = {key.removeprefix(f"{split}/"): float(n) for key, n in trainer.callback_metrics.items()}
            raised = new = found = evaluator.alarms(quality) | model.alarms(all_metrics | quality.metrics)
            if trainer.state.fn == TrainerFn.FITTING:
                raised = {name: text for name, text in found.items() if name in self._seen}
                new = {name: text for name, text in raised.items() if name not in self._said}
                self._seen, self._said = list(found), list(raised)
            if new and trainer.is_global_zero:
                sentence = f"{when} of {evaluator.name}: {'; '.join(new.values())}"
                log.warning(sentence)
                log_record(trainer, "alarm", sentence)
        logged["alarms"] = len(raised)
        # Every process has measured the same images.
        model.log_dict({f"{split}/{name}": n for name, n in logged.items()}, batch_size=len(labels), sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "said": self._said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._said = state["seen"], state["said"]


def require_images(callback: str, model: Any, datamodule: Any) -> None:
    """Refuses parts from which a callback, named as in the configuration, cannot get images of classes."""
    for key, part, kind in [("model", model, ImageModel), ("datamodule", datamodule, ImageDataModule)]:
        if not isinstance(part, kind):
            raise UserError(
                f"{callback} needs a {key} that is an {kind.__name__}, not a {type(part).__name__}: set {callback}=null"
            )


def evaluator_of(trainer: Trainer, split: str) -> Evaluator | None:
    """What `LogQuality` measures `val` or `test` with, for callbacks beside it; None: nothing is measured."""
    found = (each.evaluators.get(split) for each in trainer.callbacks if isinstance(each, LogQuality))  # type: ignore[attr-defined]
    return next(found, None)


def is_whole(trainer: Trainer, split: str = "test") -> bool:
    """Whether the test, or another split, is not cut short: who limits it wants it quick, as `debug=true` does."""
    limit = getattr(trainer, f"limit_{split}_batches")
    return isinstance(limit, float) and limit == 1  # as a whole number, 1 is one batch


def at_most(trainer: Trainer, split: str, n: int) -> int:
    """As many as n images, but no more than a split has that is cut short; `LEAST` in any case."""
    if is_whole(trainer, split):
        return n
    limit, data = getattr(trainer, f"limit_{split}_batches"), trainer.datamodule  # type: ignore[attr-defined]
    whole = len(data.sets[split])
    left = limit * whole if isinstance(limit, float) else limit * data.eval_batch_size * trainer.world_size
    return min(n, max(LEAST, int(left)))


def on_rank_zero(trainer: Trainer, work: Callable[[], T]) -> T:
    """Does work in one process for all: returns, or raises as a UserError, the same in each."""
    result: Any = None
    if trainer.is_global_zero:
        try:
            result = work()
        except UserError as error:
            result = error
    result = trainer.strategy.broadcast(result)
    if isinstance(result, UserError):
        raise result
    return result


def draw(trainer: Trainer, model: ImageModel, labels: Tensor, seed: int) -> Tensor:
    """Draws one image a label as uint8 [N, C, H, W], on the CPU, the same on every process; each draws a part."""
    size = (len(labels), model.channels, model.img_size, model.img_size)
    pixels = torch.zeros(size, dtype=torch.uint8, device=model.device)
    for number, (part, rng) in enumerate(in_parts(labels, seed)):
        if number % trainer.world_size == trainer.global_rank:
            pixels[part] = to_pixels(model.generate(labels[part], rng))
    return trainer.strategy.reduce(pixels, reduce_op="sum").cpu()
