"""What a run prints at its end."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.sample import sample
from tests.conftest import SMALL_TEXT_MODEL, compose_config

FEW = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none", "test_after_training=false"]
FEW += ["callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]


@pytest.mark.parametrize(
    ("model", "asked", "key"), [([], "labels=[5]", "labels"), (SMALL_TEXT_MODEL, 'prompts=["five"]', "prompts")]
)
def test_the_next_command_asks_for_what_the_model_reads(
    train_here: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: list[str],
    asked: str,
    key: str,
) -> None:
    train_here("run", *FEW, *model)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample ")]
    words = shlex.split(line)
    assert words[-1] == asked
    typed = [*words[3:], "n_per_label=2", f"out={tmp_path}/drawn"]
    sample(compose_config(*(word.removeprefix("task=") for word in typed), run_dir=tmp_path))
    assert key in np.load(tmp_path / "drawn" / "samples.npz")
