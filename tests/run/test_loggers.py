"""The loggers of plain files: what they hold after a run."""

import pytest

from tests.conftest import Train

SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=3"]


def test_csv_has_every_metric_on_the_batch_axis(train_here: Train) -> None:
    run_dir = train_here("run", "logger=csv", *SHORT)

    header, *rows = [
        line.split(",") for line in (run_dir / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    ]
    by_step = {int(row[header.index("step")]): row for row in rows if row[header.index("train/g_loss")]}
    assert {"train/images_per_s", "train/lr_g", "val/d_real", "test/d_loss"} <= set(header)
    assert sorted(by_step) == [2, 5]


@pytest.mark.extras("tensorboard")
def test_tensorboard_has_curves_and_grids(train_here: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train_here("run", "logger=tensorboard", *SHORT)

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in events.Images("gen_imgs")] == [2, 5]
    assert [event.step for event in events.Scalars("train/g_loss")] == [2, 5]
    assert events.Images("gen_imgs")[0].width == 342
