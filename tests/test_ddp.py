"""Several processes: two on the CPU, which is the code path of several GPUs."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from tests.conftest import QUICK, assert_same, load, wandb_run
from tests.forked import run_forked
from tests.test_stop import start


class SaveWeights(Callback):
    """Leaves each process's weights and the images it trained on in the run folder."""

    def __init__(self) -> None:
        self.labels: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        self.labels += batch[1].tolist()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen = {"weights": pl_module.state_dict(), "labels": self.labels}
        torch.save(seen, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


PROBE = "+callbacks.probe._target_=tests.test_ddp.SaveWeights"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


TRICKS = ["model/networks=dcgan", "model/objective=relativistic", "model.d_steps=2", "model.clip_grad_norm=1.0"]
TRICKS += ["model.mismatched_labels=0.25", "model/schedule=linear", "callbacks.quality.cas=false"]


@pytest.mark.parametrize("more", [[], TRICKS], ids=["plain", "tricks"])
def test_two_processes_train_one_model_on_different_images(tmp_path: Path, more: list[str]) -> None:
    done = run_forked(*QUICK, *more, "trainer=ddp_cpu", "trainer.max_epochs=2", PROBE, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.glob("logs/runs/*/*")
    ranks = [torch.load(run_dir / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    # BatchNorm's statistics are each process's own, as DDP leaves them; weights must not differ in one bit.
    weights = [{k: v for k, v in rank["weights"].items() if not k.endswith(BUFFERS)} for rank in ranks]
    assert_same(*weights)
    assert ranks[0]["labels"] != ranks[1]["labels"]
    assert [len(rank["labels"]) for rank in ranks] == [2 * 11 * 64] * 2
    # Batches, not optimizer steps or processes, are counted; and the run is one run.
    assert load(run_dir)["global_step"] == 22
    assert wandb_run(run_dir)["state"] == "finished"
    assert [path.name for path in sorted(run_dir.glob("samples/*"))] == ["epoch_0000.png", "epoch_0001.png"]


def test_a_sweep_over_several_processes_is_refused(tmp_path: Path) -> None:
    done = run_forked("-m", *QUICK, "trainer=ddp_cpu", "seed=1,2", cwd=tmp_path)

    assert done.returncode == 2
    assert "a sweep runs one process a job" in done.stderr


def test_a_signal_to_one_process_stops_all_with_one_checkpoint(tmp_path: Path) -> None:
    process, file = start(tmp_path, "trainer=ddp_cpu", "logger=none")
    process.terminate()
    process.join(60)

    assert process.exitcode == 143, file.read_text(encoding="utf-8")
    (run_dir,) = tmp_path.glob("logs/runs/*/*/ckpts")
    assert load(run_dir.parent)["global_step"] > 11
