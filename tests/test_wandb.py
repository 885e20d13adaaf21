"""What a reviewer finds in a W&B run: read back from the local file, as `wandb sync` would upload it."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image

from src.errors import UserError
from src.run.checks import check_run_wide
from src.run.loggers import check_wandb, make_wandb_logger
from src.train import train
from tests.conftest import QUICK, Train, compose_config, wandb_records, wandb_run
from tests.forked import run_forked

SPLIT_KEYS = ["g_loss", "d_loss", "d_real_loss", "d_fake_loss", "d_real", "d_fake"]
TRAIN_KEYS = [*SPLIT_KEYS, "grad_norm_g", "grad_norm_d", "lr_g", "lr_d", "images_per_s"]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two epochs of 22 batches, logging every 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run_dir = tmp_path_factory.mktemp("run")
        overrides = [*QUICK, "trainer.max_epochs=2", "trainer.log_every_n_steps=5", "model.ema_half_life=500"]
        train(compose_config("train", *overrides, run_dir=run_dir))
        yield run_dir


def history(run_dir: Path, key: str) -> list[dict]:
    rows = [record["history"]["item"] for record in wandb_records(run_dir) if record["type"] == "history"]
    return [row for row in rows if any(name.split(".")[0] == key for name in row)]


def steps(run_dir: Path, key: str) -> list[int]:
    return [row["trainer/global_step"] for row in history(run_dir, key)]


def test_every_curve_counts_batches(two_epochs: Path) -> None:
    for key in TRAIN_KEYS:
        assert steps(two_epochs, f"train/{key}") == [4, 9, 14, 19, 24, 29, 34, 39], key
    for key in SPLIT_KEYS:
        assert (steps(two_epochs, f"val/{key}"), steps(two_epochs, f"test/{key}")) == ([21, 43], [44]), key


def test_the_logged_grid_is_the_one_on_disk_and_not_black(two_epochs: Path) -> None:
    (folder,) = two_epochs.glob("wandb/offline-run-*/files")
    rows = history(two_epochs, "gen_imgs")
    assert len(rows) == 2
    for epoch, row in enumerate(rows):
        assert row["gen_imgs.captions"] == [f"epoch {epoch}, batch {22 * (epoch + 1)}: one row a class, 0 to 9"]
        logged = np.asarray(Image.open(folder / row["gen_imgs.filenames"][0]))
        saved = np.asarray(Image.open(two_epochs / "samples" / f"epoch_{epoch:04d}.png"))

        np.testing.assert_array_equal(logged, saved)
        assert saved.shape == (342, 342, 3)  # ten rows of ten 32-pixel images, 2 pixels between
        assert saved.dtype == np.uint8
        assert saved.std() > 20


def test_the_pictures_of_a_run(two_epochs: Path) -> None:
    """Each on the axis of the metrics: two epochs, not in the sanity check, and the test where it has one."""
    assert steps(two_epochs, "real_imgs") == [21]
    for key in ("gen_imgs", "gen_imgs_raw", "interpolation"):
        assert steps(two_epochs, key) == [21, 43], key
    for key in ("label_confusion", "d_confusion"):
        assert steps(two_epochs, key) == [21, 43, 44], key
    grids = [np.asarray(Image.open(two_epochs / "samples" / f"{kind}_0001.png")) for kind in ("epoch", "raw")]
    assert grids[0].shape == grids[1].shape and not np.array_equal(*grids)
    captions = history(two_epochs, "label_confusion")[-1]["label_confusion.captions"][0]
    assert captions.startswith("the test: label accuracy ") and "real images 100.0%" in captions


def test_checkpoints_and_source_are_artifacts(two_epochs: Path) -> None:
    records = [record["artifact"] for record in wandb_records(two_epochs) if record["type"] == "artifact"]
    run = wandb_run(two_epochs)
    models = [record for record in records if record["type"] == "model"]
    assert [set(record["aliases"]) for record in models] == [{"best", "latest"}, {"latest"}]  # in this order
    assert {record["name"] for record in models} == {f"model-{run['run_id']}"}
    (source,) = [record for record in records if record["type"] == "code"]
    paths = {content["path"] for content in source["manifest"]["contents"]}
    assert {"run.py", "src/train.py", "configs/train.yaml"} <= paths
    assert not any(path.startswith(("tests", "logs", "data", ".")) for path in paths)


def test_the_best_of_each_metric_stands_beside_the_last(two_epochs: Path) -> None:
    summary = wandb_run(two_epochs)["summary"]
    for name, best in [("fd", min), ("label_accuracy", max)]:
        values = [row[f"val/{name}"] for row in history(two_epochs, f"val/{name}")]
        assert summary[f"val/{name}"] == {best.__name__: best(values), "last": values[-1]}


def test_each_part_can_be_left_out(train_here: Train) -> None:
    parts = ["sample_grid", "interpolation", "real_images", "confusions", "model_artifact", "code_artifact"]
    off = [f"callbacks.{part}=null" for part in parts]
    run_dir = train_here("bare", *off, "callbacks.quality.picture=false", "trainer.max_epochs=1")
    records = wandb_records(run_dir)
    assert not [record for record in records if record["type"] == "artifact"]
    assert not list(run_dir.glob("wandb/offline-run-*/files/media/images/*"))
    assert not (run_dir / "samples").exists() and not (run_dir / "pictures").exists()


def test_the_run_says_what_it_is(two_epochs: Path) -> None:
    run = wandb_run(two_epochs)

    assert run["name"] == "mnist_gan_model-digits-ema_half_life=500-seed12345"
    assert run["group"] == "mnist_gan_model-digits-ema_half_life=500"
    assert run["job_type"] == "train"
    assert run["notes"].startswith("datamodule=digits print_config=false")
    assert run["tags"] == ["digits"]
    assert run["state"] == "finished"
    config = run["config"]
    assert config["data_source"] == "digits"
    assert config["model"]["generator"] == {
        "_target_": "src.models.modules.generators.Generator",
        "n_classes": 10,
        "latent_dim": 100,
        "channels": 1,
        "img_size": 32,
    }
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["train"] == 1412 and len(config["data"]["sha256"]) == 64
    assert config["commit"] and config["machine"] and config["command"].startswith("python run.py datamodule=digits")
    assert set(config) >= {"trainer", "model", "datamodule", "callbacks", "logger", "seed", "task", "data_dir"}


def test_a_resumed_run_goes_on_under_its_id(train_here: Train) -> None:
    few = "trainer.limit_train_batches=3"
    first = train_here("first", few, "trainer.max_epochs=1")
    rest = train_here("rest", few, "trainer.max_epochs=2", "ckpt_path=last")

    assert wandb_run(rest)["run_id"] == wandb_run(first)["run_id"]
    assert steps(rest, "gen_imgs") == [5]


def test_a_run_that_raises_is_failed(train_here: Train, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train_here("broken", "datamodule.img_size=16", "model.discriminator.img_size=8")

    run = wandb_run(next(tmp_path.glob("**/broken")))
    assert (run["state"], run["exit_code"]) == ("failed", 1)


def test_every_job_of_a_sweep_is_a_finished_run(tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    done = run_forked("-m", *QUICK, *short, "model.optimizer_g.lr=1e-4,2e-4", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    jobs = sorted(tmp_path.glob("logs/multiruns/*/*/[0-9]"))
    runs = [wandb_run(job) for job in jobs]
    assert [job.name for job in jobs] == ["0", "1"]
    assert [run["name"] for run in runs] == [
        f"mnist_gan_model-digits-optimizer_g.lr={lr}-seed12345-job{n}" for n, lr in enumerate(["0.0001", "0.0002"])
    ]
    assert {run["group"] for run in runs} == {f"mnist_gan_model-digits-sweep-{jobs[0].parent.name}"}
    assert [run["config"]["model"]["optimizer_g"]["lr"] for run in runs] == [1e-4, 2e-4]
    assert [run["exit_code"] for run in runs] == [0, 0]


QUICKEST = [*QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "test_after_training=false"]


def test_without_a_key_the_run_is_offline_and_nothing_is_asked(tmp_path: Path) -> None:
    done = run_forked(*QUICKEST, cwd=tmp_path, WANDB_MODE="")

    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("logs/runs/*/*/wandb/offline-run-*"))) == 1
    assert "wandb sync" in done.stdout


def test_with_a_key_and_no_network_it_goes_offline(tmp_path: Path) -> None:
    """The server takes the connection and never answers: worse than a refusal."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = run_forked(*QUICKEST, cwd=tmp_path, WANDB_MODE="", WANDB_API_KEY="k" * 40, WANDB_BASE_URL=url)

    assert done.returncode == 0, done.stderr
    assert "recording offline" in done.stdout + done.stderr
    assert len(list(tmp_path.glob("logs/runs/*/*/wandb/offline-run-*"))) == 1


def test_a_run_on_the_fallback_says_so_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("src.datamodules.mnist_datamodule.MNISTDataModule.mirrors", ["http://127.0.0.1:9/"])
    overrides = ["print_config=false", f"data_dir={tmp_path}/nothing", "trainer.max_steps=2"]
    overrides += ["callbacks.quality.cas=false"]
    train(compose_config("train", *overrides, "experiment=train_mnist_gan.yaml", run_dir=tmp_path))

    run = wandb_run(tmp_path)
    assert run["name"] == "train_mnist_gan-digits-fallback-seed12345"
    assert "digits-fallback" in run["tags"]
    assert run["config"]["data_source"] == "digits-fallback"
    assert "NOT MNIST" in capfd.readouterr().err


def test_a_logger_that_cannot_start_fails_the_run(train_here: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger\.broken"):
        train_here("broken", "+logger.broken._target_=src.run.loggers.nope")

    run = wandb_run(next(tmp_path.glob("logs/runs/*/broken")))
    assert (run["state"], run["exit_code"]) == ("failed", 1)


@pytest.mark.parametrize("error", [wandb.errors.AuthenticationError, wandb.errors.CommError])
def test_a_key_that_w_and_b_refuses_is_a_mistake_and_a_server_in_trouble_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    started, init = [], wandb.init

    def start(mode: str, **options: Any) -> Any:
        started.append(mode)
        if mode == "online":
            raise error("WANDB_API_KEY invalid: it has 5 characters")
        return init(mode="disabled", **options)

    monkeypatch.setattr(wandb, "init", start)
    if error is wandb.errors.AuthenticationError:
        with pytest.raises(UserError, match=r"logger\.wandb: WANDB_API_KEY invalid.*: set WANDB_API_KEY in \.env"):
            make_wandb_logger("p", str(tmp_path), mode="online")
        assert started == ["online"]
    else:
        make_wandb_logger("p", str(tmp_path), mode="online")
        assert started == ["online", "offline"]
        assert "recording offline" in caplog.text


# W&B's own variables --------------------------------------------------------------------------------------------------

VARIABLES = {
    "WANDB_PROJECT": "their project",
    "WANDB_NAME": "their name",
    "WANDB_RUN_GROUP": "their group",
    "WANDB_TAGS": "one,, two,one,",
    "WANDB_NOTES": "their notes",
    "WANDB_ENTITY": "their-team",
    "WANDB_RUN_ID": "their-id",
    "WANDB_JOB_TYPE": "their type",
}
BRIEF = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "test_after_training=false"]
BRIEF += ["callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]


def test_what_is_not_typed_comes_from_the_environment(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    run_dir = train_here("run", *BRIEF, "logger.wandb.project=typed", "notes=typed")

    assert not (run_dir / "wandb").exists()
    run = wandb_run(tmp_path / "elsewhere")
    assert (run["project"], run["notes"]) == ("typed", "typed")
    assert (run["name"], run["group"], run["tags"]) == ("their name", "their group", ["one", "two", "digits"])
    assert (run["entity"], run["run_id"], run["job_type"]) == ("their-team", "their-id", "their type")
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert results["name"] == "their name"  # one run, one name


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_disabled_means_that_nothing_is_heard_of_it(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    run_dir = train_here("run", *BRIEF)

    said = "".join(capfd.readouterr())
    assert "wandb" not in said and "W&B" not in said
    assert not list(run_dir.rglob("*wandb*")) and (run_dir / "samples" / "epoch_0000.png").exists()


LONG = "x" * 140


@pytest.mark.parametrize(
    ("variable", "typed", "says"),
    [
        ({}, "logger.wandb.project=a/b", r"logger\.wandb\.project=a/b must not contain /"),
        ({"WANDB_PROJECT": "50%"}, "seed=1", "WANDB_PROJECT=50% must not contain %"),
        ({}, f"name={LONG}", "^name must have 1 to 128 characters for W&B, not 140"),
        ({}, f"logger.wandb.name={LONG}", r"logger\.wandb\.name must have 1 to 128"),
        ({"WANDB_NAME": LONG}, "seed=1", "WANDB_NAME must have 1 to 128"),
        ({"WANDB_RUN_GROUP": LONG}, "group=mine", None),  # what is typed wins
        ({}, f"group={LONG}", "^group must have"),
        ({}, "name=' '", "^name must have 1 to 128"),
        ({}, f"tags=[good,{LONG}]", r"tags \(or else WANDB_TAGS\) must have 1 to 64 .* not 140"),
        ({"WANDB_TAGS": f"good,{LONG}"}, "seed=1", r"tags \(or else WANDB_TAGS\) must have 1 to 64"),
        ({"WANDB_RUN_ID": "a:b"}, "seed=1", "WANDB_RUN_ID=a:b must not contain :"),
        ({}, "logger.wandb.entity=team/project", r"logger\.wandb\.entity=team/project must not contain /"),
        ({"WANDB_DATA_DIR": "/dev/null/x"}, "seed=1", "WANDB_DATA_DIR=/dev/null/x cannot be written"),
        ({"WANDB_NAME": LONG}, "logger=csv", None),
    ],
)
def test_limits_of_the_service_are_checked_before_training(
    monkeypatch: pytest.MonkeyPatch, variable: dict[str, str], typed: str, says: str | None
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    config = compose_config("train", typed)
    check_run_wide(config)
    if says is None:
        check_wandb(config)
    else:
        with pytest.raises(UserError, match=says):
            check_wandb(config)
