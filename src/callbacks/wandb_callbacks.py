"""What a reviewer sees of a run besides numbers: pictures in every logger, and files in W&B."""

import shutil
from abc import ABC, abstractmethod
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

SOURCE = ("run.py", "src", "configs")

InARow = Annotated[int, Field(ge=1, le=1000)]  # images


class PictureCallback(Callback, ABC):
    """Draws something once in so many epochs, at their end.

    Args:
        every_n_epochs: how often.
    """

    def __init__(self, every_n_epochs: Count = 1) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:  # type: ignore[override]
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.on_epoch_end(trainer, pl_module)

    @abstractmethod
    def on_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        """Draws. Lightning no longer calls this by itself."""


class LogSampleGrid(PictureCallback):
    """A grid of generated images, one row a class, always from the same noise.

    It goes to `samples/epoch_NNNN.png` in the run folder, and as `gen_imgs` to W&B and to every other logger that
    takes pictures. Where images are drawn with a moving average, what the generator itself makes of the same noise
    stands beside it, as `gen_imgs_raw` and `samples/raw_NNNN.png`. The noise is kept in the checkpoint, so that a
    resumed run draws the same grid.

    Args:
        n_per_class: images a row.
        every_n_epochs: how often.
        seed: of the noise.
        raw: whether to show the generator without its average, too.
    """

    def __init__(self, n_per_class: InARow = 10, every_n_epochs: Count = 1, seed: int = 0, raw: bool = True) -> None:
        super().__init__(every_n_epochs)
        self.n_per_class = n_per_class
        self.seed = seed
        self.raw = raw
        self.noise: Tensor | None = None

    def on_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        labels = torch.arange(pl_module.n_classes).repeat_interleave(self.n_per_class)
        if self.noise is None or len(self.noise) != len(labels):
            self.noise = pl_module.draw_noise(len(labels), torch.Generator().manual_seed(self.seed))
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch
        caption = f"epoch {epoch}, batch {trainer.global_step:,}: one row a class, 0 to {pl_module.n_classes - 1}"
        grid = to_grid(pl_module.generate(labels, noise=self.noise), self.n_per_class)
        show(trainer, "gen_imgs", grid, caption, f"samples/epoch_{epoch:04d}.png")
        if self.raw and pl_module.has_average:
            grid = to_grid(pl_module.generate(labels, noise=self.noise, average=False), self.n_per_class)
            caption += ", without the moving average"
            show(trainer, "gen_imgs_raw", grid, caption, f"samples/raw_{epoch:04d}.png")

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.noise = state["noise"]


class LogInterpolation(PictureCallback):
    """From each class to the next in a row, with the noise of the row held fixed: `interpolation`.

    Where the images between two classes look like neither, the model has learnt classes; where they jump, a table.

    Args:
        steps: images a row, the two classes included.
        every_n_epochs: how often.
        seed: of the noise.
    """

    def __init__(self, steps: InARow = 10, every_n_epochs: Count = 1, seed: int = 0) -> None:
        super().__init__(every_n_epochs)
        self.steps = steps
        self.seed = seed

    def on_epoch_end(self, trainer: Trainer, pl_module: ImageModel) -> None:
        if not trainer.is_global_zero:
            return
        n = pl_module.n_classes
        labels = torch.arange(n).repeat_interleave(self.steps)
        noise = pl_module.draw_noise(n, torch.Generator().manual_seed(self.seed)).repeat_interleave(self.steps, dim=0)
        weight = torch.linspace(0, 1, self.steps).repeat(n)
        images = pl_module.interpolate(labels, (labels + 1) % n, weight, noise)
        epoch = trainer.current_epoch
        caption = f"epoch {epoch}, batch {trainer.global_step:,}: each row from a class to the next, with one noise"
        show(
            trainer,
            "interpolation",
            to_grid(images, self.steps),
            caption,
            f"pictures/interpolation/epoch_{epoch:04d}.png",
        )


class LogRealImages(Callback):
    """Once: real training images as the model is served them, one row a class: `real_imgs`.

    They come at the end of the first epoch, so that training starts sooner.

    Args:
        n_per_class: images a row; a class that has fewer repeats them.
    """

    FILE = "pictures/real_imgs.png"

    def __init__(self, n_per_class: InARow = 10) -> None:
        self.n_per_class = n_per_class
        self._shown = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or (self._shown and (Path(trainer.default_root_dir) / self.FILE).exists()):
            return
        self._shown = True
        data = trainer.datamodule.sets["train"]  # type: ignore[attr-defined]
        chosen = []
        for label in range(trainer.datamodule.n_classes):  # type: ignore[attr-defined]
            of_class = (data.labels == label).nonzero().flatten()[: self.n_per_class]
            if len(of_class):
                chosen.append(of_class.repeat(-(-self.n_per_class // len(of_class)))[: self.n_per_class])
        images, _ = data.__getitems__(torch.cat(chosen).tolist())
        caption = "real training images, one row a class"
        show(trainer, "real_imgs", to_grid(images, self.n_per_class), caption, self.FILE)

    def state_dict(self) -> dict[str, Any]:
        return {"shown": self._shown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shown = state["shown"]  # a resumed run shows them again where it could not take them over


class LogConfusions(Callback):
    """After each validation and after the test: what the model itself took for what, as its `confusions` say.

    Of a GAN that is `d_confusion`. A D that is right about all images is one that G learns nothing from; one that is
    right about half of them sees no difference any more.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            epoch = trainer.current_epoch
            self._show(trainer, pl_module, "val", f"epoch_{epoch:04d}", f"epoch {epoch}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module, "test", "test", "the test")

    def _show(self, trainer: Trainer, model: Any, split: str, file: str, when: str) -> None:
        if not trainer.is_global_zero:
            return
        for name, counts in getattr(model, "confusions", {}).items():
            log_record(trainer, f"{split}/{name}", counts.tolist())
            about = model.tables[name]
            picture = draw_confusion(counts.numpy(), about["names"], "% of images (rows)\ntaken for (columns)")
            show(trainer, name, picture, f"{when}: {about['caption']}", f"pictures/{name}/{file}.png")


class LogModelArtifact(Callback):
    """At the end of the run, its checkpoints as versions of a W&B model artifact.

    The last has the alias `latest`, the best by the checkpoints' `monitor` has `best`; with no best, the last has both.

    Args:
        registry: where in a W&B registry to link the best to, such as `wandb-registry-model/digits`; None: nowhere.
            Links are made by online runs alone.
    """

    def __init__(self, registry: str | None = None) -> None:
        self.registry = registry

    def finish_run(self, trainer: Trainer, status: str, metrics: Mapping[str, float]) -> None:
        """Adds the files that are there. An interrupted run has its last checkpoint, too."""
        run = wandb_run(trainer)
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if run is None or folder is None:
            return
        files = [(Path(folder) / "last.ckpt", ["latest"])]
        if best := getattr(trainer.checkpoint_callback, "best_model_path", ""):
            files.insert(0, (Path(best), ["best"]))
        else:
            files[0][1].append("best")
        for path, aliases in files:
            if not path.exists():
                continue
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata={"file": path.name})
            artifact.add_file(str(path), "model.ckpt")
            logged = run.log_artifact(artifact, aliases=aliases)
            if self.registry and "best" in aliases and not run.offline:
                run.link_artifact(logged, self.registry)


class LogCodeArtifact(Callback):
    """The run's source as a W&B code artifact: run.py, src/, configs/, and what is not committed.

    It is added at the end of the first epoch, so that training starts sooner.
    """

    def __init__(self) -> None:
        self._logged = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = wandb_run(trainer)
        if run is None or self._logged:
            return
        self._logged = True
        run.log_code(str(ROOT), include_fn=is_source)
        patch = Path(trainer.default_root_dir) / "diff.patch"
        if patch.exists():
            shutil.copy(patch, run.dir)  # it is uploaded with the run


def is_source(path: str, root: str) -> bool:
    """Whether a file is one of those that decide what a run does."""
    inside = Path(path).relative_to(root)
    return inside.parts[0] in SOURCE and inside.suffix in (".py", ".yaml", ".html")


def wandb_run(trainer: Trainer) -> Any:
    """The W&B run of this process, or None."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
