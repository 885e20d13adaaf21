"""The loggers besides W&B: what they hold after a run, and what they say when they cannot work."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from src.utils.errors import UserError

Train = Callable[..., Path]
SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=3"]


def refuses(train_here: Train, logger: str) -> bool:
    """Whether the optional package is missing; then the run must say what to install."""
    if find_spec(logger):
        return False
    with pytest.raises(UserError, match=rf"logger\.{logger} .*pip install -r requirements-extras\.txt"):
        train_here("run", f"logger={logger}", *SHORT)
    return True


def test_csv_has_every_metric_on_the_batch_axis(train_here: Train) -> None:
    run_dir = train_here("run", "logger=csv", *SHORT)

    header, *rows = [line.split(",") for line in (run_dir / "csv" / "metrics.csv").read_text().splitlines()]
    by_step = {int(row[header.index("step")]): row for row in rows if row[header.index("train/g_loss")]}
    assert {"train/images_per_s", "train/lr_g", "val/d_real", "test/d_loss"} <= set(header)
    assert sorted(by_step) == [2, 5]


def test_tensorboard_has_curves_and_grids(train_here: Train) -> None:
    if refuses(train_here, "tensorboard"):
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train_here("run", "logger=tensorboard", *SHORT)

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in events.Images("gen_imgs")] == [2, 5]
    assert [event.step for event in events.Scalars("train/g_loss")] == [2, 5]
    assert events.Images("gen_imgs")[0].width == 342


def test_mlflow_without_a_server_has_parameters_curves_and_grids(train_here: Train, tmp_path: Path) -> None:
    if refuses(train_here, "mlflow"):
        return
    from mlflow.tracking import MlflowClient

    train_here("run", "logger=mlflow", *SHORT)

    client = MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "conditional-image-generation")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mnist_gan_model-digits-seed12345"
    assert run.data.params["datamodule/batch_size"] == "64"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/g_loss")] == [2, 5]
    pictures = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "gen_imgs")]
    assert pictures == ["gen_imgs/epoch_0000.png", "gen_imgs/epoch_0001.png"]
    assert (tmp_path / "logs" / "mlartifacts" / run.info.run_id / "artifacts" / pictures[0]).is_file()


def test_an_mlflow_server_that_is_down_is_named(train_here: Train) -> None:
    if refuses(train_here, "mlflow"):
        return
    with pytest.raises(UserError, match=r"logger\.mlflow\.tracking_uri=http://127\.0\.0\.1:9 does not answer"):
        train_here("run", "logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9", *SHORT)
