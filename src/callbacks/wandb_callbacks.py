"""What a reviewer sees of a run besides numbers: pictures in every logger, and files in W&B."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import wandb
from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from src.config.types import Count
from src.models.image_model import ImageModel
from src.pictures.confusion import draw_confusion
from src.pictures.pixels import to_grid
from src.run.loggers import show
from src.run.provenance import ROOT
from src.run.run_record import log_record

# Images.
MOST_CLASSES = 20
InARow = Annotated[int, Field(ge=1, le=1000, description="a whole number of at least 1 and at most 1000")]


class LogSampleGrid(Callback):
    """A grid of generated images, one row a class, always from the same noise.

    It goes to `samples/epoch_NNNN.png` in the run folder, and as `gen_imgs` to every logger that takes pictures. Where
    a moving average of the weights draws the images, a second grid shows what the weights themselves make of the same
    noise: `samples/raw_NNNN.png` and `gen_imgs_raw`.

    Args:
        n_per_class: images a row.
        n_classes: rows; of more classes that many, evenly chosen.
        seed: determines the noise.
        raw: whether to draw the second grid.
    """

    needs_classes = True

    def __init__(
        self,
        n_per_class: InARow = 10,
        n_classes: Count = MOST_CLASSES,
        every_n_epochs: Count = 1,
        seed: int = 0,
        raw: bool = True,
    ) -> None:
        self.n_per_class = n_per_class
        self.n_classes = n_classes
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.raw = raw

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:  # type: ignore[override]
        if not (when := when_due(trainer, self.every_n_epochs)):
            return
        classes, which = some_classes(trainer, pl_module.n_classes, self.n_classes)
        labels = classes.repeat_interleave(self.n_per_class)
        caption = f"{when}: one row a class, {which}"
        kinds = [("gen_imgs", "epoch", True, caption)]
        if self.raw and pl_module.has_average:
            kinds.append(("gen_imgs_raw", "raw", False, f"{caption}, without the moving average"))
        for key, file, average, text in kinds:
            images = pl_module.generate(labels, torch.Generator().manual_seed(self.seed), average=average)
            path = f"samples/{file}_{trainer.current_epoch:04d}.png"
            show(trainer, key, to_grid(images, self.n_per_class), text, path)


class LogInterpolation(Callback):
    """In each row, images from one class to the next, all from the same noise: `interpolation`.

    A model that has learnt classes draws both at the ends, and neither in the middle; one that has learnt images by
    heart jumps.

    Args:
        steps: images a row, with both classes.
        n_classes: rows; of more classes that many, evenly chosen.
        seed: determines the noise.
    """

    needs_classes = True

    def __init__(
        self, steps: InARow = 10, n_classes: Count = MOST_CLASSES, every_n_epochs: Count = 1, seed: int = 0
    ) -> None:
        self.steps = steps
        self.n_classes = n_classes
        self.every_n_epochs = every_n_epochs
        self.seed = seed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:  # type: ignore[override]
        if not (when := when_due(trainer, self.every_n_epochs)):
            return
        classes, which = some_classes(trainer, pl_module.n_classes, self.n_classes)
        noise = pl_module.draw_noise(len(classes), torch.Generator().manual_seed(self.seed))
        labels, others, noise = (
            each.repeat_interleave(self.steps, dim=0) for each in (classes, classes.roll(-1), noise)
        )
        weight = torch.linspace(0, 1, self.steps).repeat(len(classes))
        images = pl_module.interpolate(labels, others, weight, noise)
        caption = f"{when}: each row from a class to the next, {which}, with one noise"
        path = f"pictures/interpolation/epoch_{trainer.current_epoch:04d}.png"
        show(trainer, "interpolation", to_grid(images, self.steps), caption, path)


class LogRealImages(Callback):
    """Once: real training images as the model gets them, one row a class: `real_imgs`.

    They come at the end of the first epoch, so that training starts sooner. A resumed run that does not find the
    picture in its folder draws it again.

    Args:
        n_per_class: images a row; a class that has fewer repeats them.
        n_classes: rows; of more classes that many, evenly chosen.
    """

    needs_classes = True

    def __init__(self, n_per_class: InARow = 10, n_classes: Count = MOST_CLASSES) -> None:
        self.n_per_class = n_per_class
        self.n_classes = n_classes

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = "pictures/real_imgs.png"
        is_there = trainer.current_epoch > 0 and (Path(trainer.default_root_dir) / path).exists()
        if is_there or not trainer.is_global_zero:
            return
        data = trainer.datamodule.sets["train"]  # type: ignore[attr-defined]
        n: int = trainer.datamodule.n_classes  # type: ignore[attr-defined]
        classes, which = some_classes(trainer, n, self.n_classes)
        chosen = []
        for label in classes.tolist():
            of_class = (data.labels == label).nonzero().flatten()[: self.n_per_class]
            if len(of_class):
                chosen.append(of_class.repeat(-(-self.n_per_class // len(of_class)))[: self.n_per_class])
        images, _ = data.__getitems__(torch.cat(chosen).tolist())
        show(
            trainer,
            "real_imgs",
            to_grid(images, self.n_per_class),
            f"real training images, one row a class, {which}",
            path,
        )


class LogConfusions(Callback):
    """After each validation and after the test: which images the model itself took for what, as its `confusions` say.

    `tables` says what each of them is called and how to read it.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        split, epoch = "test" if trainer.testing else "val", trainer.current_epoch
        file, when = ("test", "the test") if trainer.testing else (f"epoch_{epoch:04d}", f"epoch {epoch}")
        for name, counts in getattr(pl_module, "confusions", {}).items():
            log_record(trainer, f"{split}/{name}", counts.tolist())
            about = pl_module.tables[name]
            picture = draw_confusion(counts.numpy(), about["names"], "% of images (rows)\ntaken for (columns)")
            show(trainer, name, picture, f"{when}: {about['caption']}", f"pictures/{name}/{file}.png")

    on_test_end = on_validation_end


class LogModelArtifact(Callback):
    """At the end of the run, its checkpoints as versions of a W&B model artifact.

    The last has the alias `latest`, the best by the checkpoints' `monitor` has `best`; with no best, the last has both.

    Args:
        registry: place in a W&B registry to which an online run links the best, such as `wandb-registry-model/digits`;
            None: it is not linked.
    """

    def __init__(self, registry: str | None = None) -> None:
        self.registry = registry

    def finish_run(self, trainer: Trainer, status: str, metrics: Mapping[str, float]) -> None:
        run, folder = wandb_run(trainer), getattr(trainer.checkpoint_callback, "dirpath", None)
        if run is None or folder is None:
            return
        last, best = Path(folder) / "last.ckpt", getattr(trainer.checkpoint_callback, "best_model_path", "")
        for path, aliases in [(Path(best), ["best"]), (last, ["latest"])] if best else [(last, ["latest", "best"])]:
            if not path.exists():
                continue
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata={"file": path.name})
            artifact.add_file(str(path), "model.ckpt")
            logged = run.log_artifact(artifact, aliases=aliases)
            if self.registry and "best" in aliases and not run.offline:
                run.link_artifact(logged, self.registry)


class LogCodeArtifact(Callback):
    """The run's source as a W&B code artifact: run.py, src/, configs/, and the changes that are not committed.

    It is added at the end of the first epoch, so that training starts sooner.
    """

    def __init__(self) -> None:
        self._logged = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = wandb_run(trainer)
        if run is None or self._logged:
            return
        self._logged = True
        run.log_code(
            str(ROOT),
            include_fn=lambda path, root: (
                Path(path).relative_to(root).parts[0] in ("run.py", "src", "configs")
                and path.endswith((".py", ".yaml", ".html"))
            ),
        )
        patch = Path(trainer.default_root_dir) / "diff.patch"
        if patch.exists():
            shutil.copy(patch, run.dir)  # W&B uploads it with the run


def some_classes(trainer: Trainer, n: int, most: int) -> tuple[Tensor, str]:
    """All of n classes, or as many as `most`, evenly chosen: int64 [N], and which they are in words."""
    if n <= most:
        return torch.arange(n), f"0 to {n - 1}"
    classes = torch.arange(most) * n // most
    names = getattr(trainer.datamodule, "class_names", range(n))  # type: ignore[attr-defined]
    return classes, f"{most} of {n}: {', '.join(str(names[label]) for label in classes.tolist())}"


def when_due(trainer: Trainer, every_n_epochs: int) -> str | None:
    """The caption's beginning, if this process draws at the end of this epoch."""
    is_due = trainer.is_global_zero and (trainer.current_epoch + 1) % every_n_epochs == 0
    return f"epoch {trainer.current_epoch}, batch {trainer.global_step:,}" if is_due else None


def wandb_run(trainer: Trainer) -> Any:
    """The W&B run of this process, or None."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
