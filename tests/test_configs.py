"""Every file in configs/ composes, lands where it is read, and builds what it says."""

import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from src.config.before_hydra import in_hydras_words
from src.config.instantiate import instantiate, instantiate_each
from src.errors import UserError
from src.models.image_model import ImageModel
from src.run import trainer as trainer_module
from src.run.recorded import name_run
from src.train import train
from tests.conftest import ROOT, build_model, compose_config, load
from tests.datamodules.conftest import HAS_CIFAR10, HAS_FASHION, HAS_FLOWERS, HAS_MNIST
from tests.datamodules.test_shards_datamodule import write as write_shard

EXTRAS = r"pip install -r requirements-extras\.txt"
OPTIONS = sorted((file.parent.name, file.stem) for file in (ROOT / "configs").glob("*/*.yaml"))


def options(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for its_group, name in OPTIONS if its_group == group])


def raw(group: str, name: str) -> dict[str, Any]:
    """What one file says by itself."""
    content: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml"))
    return {key: value for key, value in content.items() if key != "defaults"}


def assert_contains(whole: Any, part: Any, where: str) -> None:
    if isinstance(part, dict):
        assert isinstance(whole, dict), where
        for key, value in part.items():
            assert key in whole, f"{where}.{key}"
            assert_contains(whole[key], value, f"{where}.{key}")
    else:
        assert whole == part, where


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_file_composes_and_arrives_where_it_is_read(group: str, name: str, tmp_path: Path) -> None:
    config = compose_config("train", f"{group}={name}", f"work_dir={tmp_path}", run_dir=tmp_path)
    usual = compose_config("train", f"work_dir={tmp_path}", run_dir=tmp_path)

    plain: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    is_global = "@package _global_" in (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8")
    assert_contains(plain if is_global else plain[group], raw(group, name), group)
    # A file with the wrong package leaves its keys where nobody reads them.
    assert config.keys() == usual.keys()
    resolved = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.to_container(resolved, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(
    ("override", "group", "entries"),
    [
        (
            "callbacks=default",
            "callbacks",
            "model_checkpoint progress_bar model_summary throughput busy_machine quality "
            "sample_grid interpolation real_images confusions model_artifact code_artifact "
            "prompt_grid prompt_accuracy guidance",
        ),
        ("callbacks=checkpoint", "callbacks", "model_checkpoint"),
        ("callbacks=progress", "callbacks", "progress_bar model_summary throughput busy_machine"),
        (
            "callbacks=wandb",
            "callbacks",
            "sample_grid interpolation real_images confusions model_artifact code_artifact",
        ),
        ("callbacks=text", "callbacks", "prompt_grid prompt_accuracy guidance"),
        ("callbacks=quality", "callbacks", "quality"),
        ("callbacks=none", "callbacks", ""),
        ("logger=wandb", "logger", "wandb"),
        ("logger=csv", "logger", "csv"),
        ("logger=tensorboard", "logger", "tensorboard"),
        ("logger=mlflow", "logger", "mlflow"),
        ("logger=many_loggers", "logger", "wandb csv tensorboard mlflow"),
        ("logger=none", "logger", ""),
    ],
)
def test_a_group_of_several_parts_holds_these(override: str, group: str, entries: str) -> None:
    assert set(compose_config("train", override).get(group) or {}) == set(entries.split())


# What the files build


@options("trainer")
def test_trainers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config("train", f"trainer={name}", "callbacks=none")
    if config.trainer.gpus == 0:
        trainer = instantiate(config, "trainer")
        assert isinstance(trainer, Trainer)
        assert trainer.world_size == config.trainer.devices
        return
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # a machine with GPUs
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card{i}")
    monkeypatch.setattr(trainer_module, "Trainer", SimpleNamespace)
    made: Any = trainer_module.make_trainer(
        **{key: value for key, value in config.trainer.items() if key != "_target_"}
    )
    assert (made.accelerator, made.devices) == ("gpu", config.trainer.gpus)
    assert isinstance(made.strategy, DDPStrategy)


@options("model")
def test_models(name: str) -> None:
    if name == "stable_diffusion":  # tests/models/test_stable_diffusion_model.py makes one
        with pytest.raises(UserError, match=r"model\.base must be set: type model\.base=DIR"):
            build_model(compose_config("train", f"model={name}"))
        return
    model = build_model(compose_config("train", f"model={name}"))
    assert isinstance(model, ImageModel)
    images = model.generate(torch.arange(model.n_classes), torch.Generator().manual_seed(0))
    assert images.shape == (model.n_classes, model.channels, model.img_size, model.img_size)


@options("datamodule")
def test_datamodules(name: str, tmp_path: Path) -> None:
    pictures = []
    if name == "shards":
        files = {f"{i}.{ending}": text for i in range(160) for ending, text in (("png", b""), ("cls", b"%d" % (i % 4)))}
        write_shard(tmp_path / "0.tar", files)
        pictures = [f"datamodule.folder={tmp_path}"]
    if name == "folder":
        for label in ("cats", "dogs", "mice"):
            (tmp_path / label).mkdir()
            for i in range(40):
                (tmp_path / label / f"{i}.png").touch()
        pictures = [f"datamodule.folder={tmp_path}"]
    config = compose_config("train", f"datamodule={name}", f"data_dir={tmp_path}", "seed=7", *pictures)
    datamodule = instantiate(config, "datamodule")
    assert isinstance(datamodule, LightningDataModule)
    assert (datamodule.img_size, datamodule.seed) == (config.model.img_size, 7)
    kind = (datamodule.channels, datamodule.n_classes)
    assert kind == {"cifar10": (3, 10), "flowers": (3, 102), "folder": (3, 3), "shards": (3, 4)}.get(name, (1, 10))
    assert len(set(datamodule.class_names)) == datamodule.n_classes
    assert getattr(datamodule, "data_dir", tmp_path) == tmp_path
    assert getattr(datamodule, "cache_dir", tmp_path / "shards") == tmp_path / "shards"


@options("callbacks")
def test_callbacks(name: str, tmp_path: Path) -> None:
    config = compose_config("train", f"callbacks={name}", run_dir=tmp_path)
    built = list(instantiate_each(config, "callbacks"))
    assert len(built) == len(config.get("callbacks") or {})
    assert all(isinstance(callback, Callback) for callback in built)
    instantiate(config, "trainer", callbacks=built)  # Lightning takes them together


@pytest.mark.extras
@options("logger")
def test_loggers(name: str, tmp_path: Path) -> None:
    overrides = [f"logger={name}", "name=some-run", f"work_dir={tmp_path}"]
    config = compose_config("train", *overrides, run_dir=tmp_path)
    if "wandb" in config.logger:
        config.logger.wandb.mode = "disabled"
    missing = [extra for extra in ("tensorboard", "mlflow") if extra in config.logger and find_spec(extra) is None]
    if missing:
        with pytest.raises(UserError, match=f"{missing[0]}.*{EXTRAS}"):
            list(instantiate_each(config, "logger"))
        return
    built = list(instantiate_each(config, "logger"))
    assert len(built) == len(config.logger)
    assert all(isinstance(logger, Logger) for logger in built)


@options("experiment")
def test_experiments_train_and_test(name: str, tmp_path: Path) -> None:
    """The number that comes back is a test metric, so the test has run."""
    if name.startswith("finetune"):  # tests/models/test_stable_diffusion_model.py has what they begin with
        with pytest.raises(UserError, match=r"model\.base must be set"):
            train(compose_config("train", f"experiment={name}", f"work_dir={tmp_path}", run_dir=tmp_path))
        return
    few = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    loss = "test/g_loss" if name.endswith("gan") else "test/loss"
    quick = ["trainer.max_epochs=1", "trainer.enable_model_summary=false", f"optimized_metric={loss}"]
    if not name.endswith("gan"):
        quick += ["model.steps=1", "callbacks.sample_grid.n_per_class=1", "callbacks.guidance=null"]
        quick += ["callbacks.sample_grid.every_n_epochs=1"]
        quick += ["model.denoiser.width=32"]
    known = {"cifar10": HAS_CIFAR10, "fashion": HAS_FASHION, "flowers": HAS_FLOWERS}
    has_data = known.get(name.split("_")[1], HAS_MNIST)
    data = [] if has_data else ["datamodule=digits"]
    if name != "train_mnist_gan":  # one feature net of real size is enough, and they take a minute each
        quick += ["callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]
    else:
        quick += ["callbacks.quality.cas=false"]
    if name.startswith("train_flowers"):  # a grid of 102 classes, at the end of the only epoch
        quick += ["callbacks.sample_grid.every_n_epochs=1", "datamodule.batch_size=8"]
    config = compose_config(
        "train", f"experiment={name}", *few, *quick, *data, f"work_dir={tmp_path}", run_dir=tmp_path
    )

    assert math.isfinite(train(config))
    assert load(tmp_path)["global_step"] == 2
    assert (tmp_path / "samples" / "epoch_0000.png").exists()


@options("experiment")
def test_an_experiment_opens_with_its_command(name: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"python run.py experiment={name}.yaml" in line for line in comments)


# What people type


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


def test_both_spellings_of_an_experiment_are_the_same_run(tmp_path: Path) -> None:
    named = []
    for spelling in ("train_mnist_gan", "train_mnist_gan.yaml"):
        config = compose_config("train", f"experiment={spelling}", "datamodule=digits", run_dir=tmp_path)
        name_run(config, instantiate(config, "datamodule"), instantiate(config, "trainer"))
        named.append(plain(config) | {"notes": "what was typed"})
    assert named[0] == named[1]
    assert named[0]["name"] == "train_mnist_gan-digits-seed12345"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("debug=true", "debug=default"),
        ("debug=false", "debug=none"),
        ("debug=profiler", "debug=profiler"),
        ("logger=null", "logger=none"),
        ("callbacks=null", "callbacks=none"),
        ("logger=wandb", "logger=wandb"),
        ("ckpt_path=null", "ckpt_path=null"),
        ("trainer.detect_anomaly=true", "trainer.detect_anomaly=true"),
    ],
)
def test_what_people_type_names_a_file(typed: str, meant: str) -> None:
    assert in_hydras_words([typed]) == [meant]
    compose_config("train", meant)


def test_debug_wins_over_the_experiment_and_the_command_line_over_both() -> None:
    typed = ["experiment=train_mnist_text2image", "debug=default", "trainer.limit_val_batches=1"]
    config = compose_config("train", *typed)
    trainer = config.trainer
    assert (trainer.max_epochs, trainer.limit_train_batches, trainer.limit_val_batches) == (2, 5, 1)
    assert trainer.check_val_every_n_epoch == 1
    assert config.tags == ["debug"]


@pytest.mark.parametrize(("variable", "mode"), [(None, "offline"), ("disabled", "disabled")])
def test_debug_is_offline_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, mode: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    compose_config("train", "debug=default", run_dir=tmp_path)
    assert mode == HydraConfig.get().job.env_set.WANDB_MODE


@options("hparams_search")
def test_a_search_runs_many_times_over_keys_that_exist(name: str) -> None:
    config = compose_config("train", "experiment=train_mnist_gan", f"hparams_search={name}")
    assert config.hydra.mode.name == "MULTIRUN"
    assert ("Optuna" in config.hydra.sweeper._target_) == ("optuna" in name)
    searched = config.hydra.sweeper.params
    assert len(searched) > 0
    for key, values in searched.items():
        if "/" not in key:
            assert OmegaConf.select(config, key) is not None, key
            continue
        files = {file.stem for file in (ROOT / "configs" / key).glob("*.yaml")}  # a group: every file of it
        assert {value.strip() for value in values.split(",")} == files


def test_the_grid_tries_every_pair() -> None:
    searched = compose_config("train", "hparams_search=mnist_gan_grid").hydra.sweeper.params
    for key, values in searched.items():
        rates = [float(value) for value in values.split(",")]
        assert len(set(rates)) == 2
        for rate in rates:
            assert OmegaConf.select(compose_config("train", f"{key}={rate}"), key) == rate


# One source for each number


@pytest.mark.parametrize(
    ("overrides", "n_classes", "latent_dim", "channels", "img_size"),
    [
        ([], 10, 100, 1, 32),
        (["model.latent_dim=7"], 10, 7, 1, 32),
        (["datamodule.img_size=28"], 10, 100, 1, 28),
        (["datamodule=cifar10", "datamodule.img_size=16"], 10, 100, 3, 16),
        (["model.n_classes=3"], 3, 100, 1, 32),
        (["model.channels=3"], 10, 100, 3, 32),
    ],
)
def test_a_number_is_written_once(
    overrides: list[str], n_classes: int, latent_dim: int, channels: int, img_size: int
) -> None:
    config = compose_config("train", *overrides)
    model = build_model(config).eval()
    assert config.datamodule.img_size == img_size

    labels = torch.arange(n_classes)
    images = model(torch.zeros(n_classes, latent_dim), labels)
    assert images.shape == (n_classes, channels, img_size, img_size)
    assert model.discriminator(images, labels).shape == (n_classes, 1)
    for network in (model.generator, model.discriminator):
        assert network.label_embedding.num_embeddings == n_classes


def test_the_seed_and_the_data_folder_are_written_once(tmp_path: Path) -> None:
    config = compose_config("train", "seed=5", f"data_dir={tmp_path}")
    assert config.datamodule.seed == config.callbacks.sample_grid.seed == 5
    assert config.datamodule.data_dir == str(tmp_path)


def test_the_data_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "/somewhere/else")
    assert compose_config("train").datamodule.data_dir == "/somewhere/else"
    monkeypatch.delenv("DATA_DIR")
    assert compose_config("train", f"work_dir={tmp_path}").datamodule.data_dir == f"{tmp_path}/data"
