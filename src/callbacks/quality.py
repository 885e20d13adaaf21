"""How good the generated images are, measured while the model trains."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.errors import UserError
from src.metrics.alarms import alarms
from src.metrics.drawn import DRAW_BATCH, SEEDS, cas_choice, classification_accuracy_score
from src.metrics.feature_net import accuracy_of
from src.metrics.quality import QualityMetrics
from src.metrics.references import References, load_references
from src.models.image_model import ImageModel
from src.pictures.confusion import draw_label_confusion
from src.pictures.pixels import to_pixels
from src.run.loggers import show
from src.run.run_record import log_record

log = logging.getLogger(__name__)
T = TypeVar("T")

N_TRIED = 50  # images drawn before training, to see that all of this works


class LogQuality(Callback):
    """Logs how good generated images are, each number beside what as many held-out real images get.

    Features are those of a small classifier of the same data set (see `src.metrics.feature_net`), not Inception's: the
    Frechet distance is no FID, and compares between runs on the same data alone. The classifier is trained before the
    first run on a data set, in about a minute.

    After every validation under `val/`, and after the test under `test/`: `fd`, `kid`, `precision`, `recall`,
    `density`, `coverage`, `label_accuracy`, `worst_class_accuracy`, `within_class_variance` and `nearest_train` (see
    `QualityMetrics.measure`), the same with `_floor` for real images, and `alarms`, the number of failures that hold
    (see `src.metrics.alarms`). A warning names each when it begins. During training an alarm is raised when it holds
    for the second validation in a row, as the first epochs are always bad. How often there is a validation,
    `trainer.check_val_every_n_epoch` says.

    With `cas` also `test/cas`: the accuracy on real test images of a classifier that was trained on generated images
    alone (classification accuracy score, Ravuri & Vinyals 2019; GAN-train, Shmelkov et al. 2018). Its floor is the
    same classifier trained on the real training images. It is left out where `trainer.limit_test_batches` is set.

    Images are drawn with the labels of the held-out images and always from the same noise, the test's another than the
    validations'. Training is not disturbed: its random numbers are those of a run without these metrics.

    Args:
        n_val: images drawn after a validation; no more than the validation or the test split has.
        n_test: images drawn after the test; likewise.
        cas: whether to train a classifier on generated images after the test.
        picture: whether to show which class the classifier takes each class's images for, as `label_confusion`.
        cache_dir: where classifiers and the features of real images are kept.
    """

    def __init__(
        self,
        n_val: Annotated[int, Field(ge=10)] = 4_000,
        n_test: Annotated[int, Field(ge=10)] = 5_000,
        cas: bool = True,
        picture: bool = True,
        cache_dir: str | Path = "data/features",
    ) -> None:
        self.n = {"val": n_val, "test": n_test}
        self.cas = cas
        self.picture = picture
        self.cache_dir = Path(cache_dir).expanduser()
        self._references: References | None = None
        self._metrics: dict[str, QualityMetrics] = {}
        self._seen: list[str] = []  # by the last validation, whether it was raised or not
        self._said: list[str] = []  # of those, what a warning has named already

    # The classifier and the real images are neither the model's nor the checkpoint's.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gets the feature net ready, by training it if need be.

        Raises:
            UserError: the model draws no images of classes, the data are too few, or the net's accuracy is too low.
        """
        if self._references is not None:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        require_images("callbacks.quality", pl_module, datamodule)
        for split in ("val", "test"):
            if len(datamodule.sets[split]) < 10:
                raise UserError(
                    f"callbacks.quality needs at least 10 images in the {split} split, not"
                    f" {len(datamodule.sets[split])}: change datamodule.train_val_test_split, or set"
                    " callbacks.quality=null callbacks.model_checkpoint.monitor=null"
                )
        splits = datamodule.sets | {"train": datamodule.whole_train}
        args = splits, datamodule.source, datamodule.n_classes, datamodule.img_size, self.cache_dir

        def load() -> References:
            try:
                return load_references(*args, trainer.strategy.root_device)
            except UserError as error:
                raise UserError(
                    f"callbacks.quality: {error}, or set callbacks.quality=null"
                    " callbacks.model_checkpoint.monitor=null to train without these metrics"
                ) from error

        self._references = once(trainer, load)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "test")
        # Who limits the test wants it quick, as `debug=true` does.
        whole = not trainer.fast_dev_run and trainer.limit_test_batches == 1.0  # type: ignore[attr-defined]
        if self.cas and whole:
            self._measure_cas(trainer, pl_module)

    def _measure(self, trainer: Trainer, model: Any, split: str) -> None:
        assert self._references is not None
        if split not in self._metrics:
            self._metrics[split] = QualityMetrics(self._references.real, model.n_classes, self.n[split])
        metrics = self._metrics[split]
        quick = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        labels = metrics.labels[:N_TRIED] if quick else metrics.labels
        pixels = draw(trainer, model, labels, SEEDS[split])
        quality = metrics.measure(self._references.net.to(model.device).embed(pixels, labels))
        raised: dict[str, str] = {}
        new = raised
        if not quick:
            names = trainer.datamodule.class_names  # type: ignore[attr-defined]
            by_name = {name.removeprefix(f"{split}/"): float(v) for name, v in trainer.callback_metrics.items()}
            found = alarms(quality, metrics.floor, names) | model.alarms(by_name | quality.metrics)
            raised = new = found
            if trainer.state.fn == TrainerFn.FITTING:
                raised = {name: text for name, text in found.items() if name in self._seen}
                new = {name: text for name, text in raised.items() if name not in self._said}
                self._seen, self._said = list(found), list(raised)
        when = "the test" if split == "test" else f"epoch {trainer.current_epoch}"
        if not quick and trainer.is_global_zero:
            log_record(trainer, f"{split}/label_confusion", quality.confusion.tolist())
            if self.picture:
                names = trainer.datamodule.class_names  # type: ignore[attr-defined]
                picture = draw_label_confusion(quality.confusion.numpy(), names)
                file = "test" if split == "test" else f"epoch_{trainer.current_epoch:04d}"
                caption = f"{when}: label accuracy {quality.metrics['label_accuracy']:.1%} (real images"
                caption += f" {metrics.floor.metrics['label_accuracy']:.1%})"
                show(trainer, "label_confusion", picture, caption, f"pictures/label_confusion/{file}.png")
        if new:
            sentence = f"{when} of {self._references.name}: {'; '.join(new.values())}"
            warn(sentence)
            log_record(trainer, "alarm", sentence)
        logged = {f"{split}/{name}": value for name, value in quality.metrics.items()}
        if not quick:
            logged |= {f"{split}/{name}_floor": value for name, value in metrics.floor.metrics.items()}
        logged[f"{split}/alarms"] = len(raised)
        # Every process has measured the same images.
        model.log_dict(logged, batch_size=len(labels), sync_dist=True)

    def _measure_cas(self, trainer: Trainer, model: Any) -> None:
        assert self._references is not None
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        train = datamodule.whole_train
        labels = train.labels[cas_choice(len(train))]
        pixels = draw(trainer, model, labels, SEEDS["cas"])
        args = pixels, labels, model.n_classes, datamodule.sets["test"], model.device
        accuracy = once(trainer, lambda: classification_accuracy_score(*args))
        floor = accuracy_of(self._references.real["test"])
        model.log_dict({"test/cas": accuracy, "test/cas_floor": floor}, batch_size=len(labels), sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "said": self._said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._said = state["seen"], state.get("said", [])


def require_images(callback: str, model: Any, datamodule: Any) -> None:
    """Refuses parts from which a callback cannot get images of classes.

    Raises:
        UserError: names the callback and the part.
    """
    for key, part, kind in [("model", model, ImageModel), ("datamodule", datamodule, ImageDataModule)]:
        if not isinstance(part, kind):
            raise UserError(
                f"{callback} needs a {key} that is an {kind.__name__}, not a {type(part).__name__}: set {callback}=null"
            )


def once(trainer: Trainer, work: Callable[[], T]) -> T:
    """What `work` returns, done by one process for all; what it refuses, all refuse.

    Raises:
        UserError: `work` raised it.
    """
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
    """One image a label as uint8 [N, C, H, W], on the CPU, the same on every process; each draws a part of them."""
    size = (len(labels), model.channels, model.img_size, model.img_size)
    pixels = torch.zeros(size, dtype=torch.uint8, device=model.device)
    for start, part in _shares(trainer, labels):
        # A generator for each part, so that its noise does not depend on the number of processes.
        images = model.generate(part, torch.Generator().manual_seed(seed + start))
        pixels[start : start + len(part)] = to_pixels(images)
    return trainer.strategy.reduce(pixels, reduce_op="sum").cpu()


def _shares(trainer: Trainer, labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    for number, part in enumerate(labels.split(DRAW_BATCH)):
        if number % trainer.world_size == trainer.global_rank:
            yield number * DRAW_BATCH, part


warn = rank_zero_only(log.warning)
