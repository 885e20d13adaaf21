"""Several processes: two on the CPU, which is the code path of several GPUs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from src.models import gradient_means
from tests.callbacks.test_quality import LOGGED
from tests.conftest import QUICK, ROOT, SMALL_TEXT_MODEL, assert_same, load, wandb_run
from tests.forked import run_forked, start_forked
from tests.models.test_stable_diffusion_model import SHORT
from tests.models.test_stable_diffusion_model import pictures as pictures  # a fixture
from tests.models.tiny_diffusion import write_stable_diffusion
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


class SameStep(Callback):
    """One batch's gradients and losses, where the noise of image i is the same however many processes share them."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch, batch_idx: int) -> None:
        for module in pl_module.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()  # its statistics are those of a process's own images
            elif isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        n = len(batch[0]) * trainer.world_size
        noise = torch.randn(n, *pl_module.noise_shape, generator=torch.Generator().manual_seed(1))
        pl_module.draw_noise = lambda n, rng=None: noise[trainer.global_rank :: trainer.world_size]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs, batch, batch_idx: int) -> None:
        step = {"labels": batch[1], "losses": pl_module._latest}
        step["gradients"] = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        step["weights"] = dict(pl_module.named_parameters())
        torch.save(step, Path(trainer.default_root_dir) / f"step{trainer.global_rank}.pt")


class HowGradientsTravel(Callback):
    """Leaves what averaged each process's gradients in a file; in the second process, makes what is named impossible.

    Args:
        lacks: names "memory" that it sees, or the "gradient" of one parameter in the second batch, or both.
    """

    def __init__(self, lacks: str = "") -> None:
        second = os.environ.get("LOCAL_RANK") == "1"
        self._forgets = second and "gradient" in lacks
        if second and "memory" in lacks:
            gradient_means.open = self._refuse  # type: ignore[attr-defined]

    def _refuse(self, name: str, mode: str) -> None:
        raise FileNotFoundError(name)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._forgets and trainer.global_step == 1:
            next(p for p in pl_module.parameters() if p.grad is not None and p.requires_grad).grad = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        seen = [type(mean).__name__ for mean in trainer.strategy._means.values()]  # type: ignore[attr-defined]
        file = Path(trainer.default_root_dir) / f"means{trainer.global_rank}.json"
        file.write_text(json.dumps({"seen": seen, "process": os.getpid()}), encoding="utf-8")


class FailAlone(Callback):
    """Fails in the second process before training: where it is built, or set up."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._fail_in("building")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fail_in("setup")

    def _fail_in(self, stage: str) -> None:
        if stage == self.stage and os.environ.get("LOCAL_RANK") == "1":
            raise ValueError("the second process cannot")


class Orphan(Callback):
    """The first process is killed while the second begins, and leaves its number in a file."""

    def __init__(self, file: str) -> None:
        if os.environ.get("LOCAL_RANK") == "1":
            Path(file).write_text(str(os.getpid()), encoding="utf-8")
            os.kill(os.getppid(), signal.SIGKILL)


PROBE = "+callbacks.probe._target_=tests.test_ddp.SaveWeights"


def weights(run_dir: Path, rank: int) -> dict[str, torch.Tensor]:
    """Those of one process, which must not differ in one bit, nor must BatchNorm's statistics after a validation."""
    return torch.load(run_dir / f"rank{rank}.pt", weights_only=True)["weights"]


TRICKS = ["model/networks=dcgan", "model/objective=relativistic", "model.d_steps=2", "model.clip_grad_norm=1.0"]
TRICKS += ["model.mismatched_labels=0.25", "model/schedule=linear", "trainer.limit_train_batches=3"]
TRICKS += ["datamodule.device=auto"]


def train_two_processes(folder: Path, batches: int, *typed: str) -> Path:
    """Trains one model on different images, two epochs of so many batches; returns the run folder."""
    done = run_forked(*QUICK, *typed, "trainer=ddp_cpu", "trainer.max_epochs=2", PROBE, cwd=folder)

    assert done.returncode == 0, done.stderr
    (run_dir,) = folder.glob("logs/runs/*/*")
    ranks = [torch.load(run_dir / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(*(weights(run_dir, rank) for rank in (0, 1)))
    assert ranks[0]["labels"] != ranks[1]["labels"]
    assert [len(rank["labels"]) for rank in ranks] == [2 * batches * 64] * 2
    # Batches, not optimizer steps or processes, are counted; and the run is one run.
    assert load(run_dir)["global_step"] == 2 * batches
    assert wandb_run(run_dir)["state"] == "finished"
    assert [path.name for path in sorted(run_dir.glob("samples/*"))] == ["epoch_0000.png", "epoch_0001.png"]
    return run_dir


def test_two_processes_train_and_measure_one_model(tmp_path: Path) -> None:
    run_dir = train_two_processes(tmp_path, 11, "callbacks.quality.cas=true")

    metrics = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
    assert {f"{split}/{name}" for split in ("val", "test") for name in LOGGED} | {"test/cas"} <= metrics.keys()
    # Were a process's share of the images missing, they would be black, and no two of them could be alike.
    assert metrics["val/fd_floor"] < metrics["val/fd"] < 1_000


def test_two_processes_train_one_model_with_every_trick(tmp_path: Path) -> None:
    train_two_processes(tmp_path, 3, *TRICKS)


def test_two_processes_train_one_text_model(tmp_path: Path) -> None:
    train_two_processes(
        tmp_path, 3, *SMALL_TEXT_MODEL, "callbacks.sample_grid.raw=false", "trainer.limit_train_batches=3"
    )


@pytest.mark.extras("diffusers", "peft", "transformers")
def test_two_processes_train_one_adapter(tmp_path: Path, pictures: Path) -> None:
    """Of Stable Diffusion, whose latents the first process encodes for both."""
    base = write_stable_diffusion(tmp_path / "base", block_out_channels=[8, 16])
    typed = [*SHORT, f"model.base={base}", f"datamodule.folder={pictures}", "datamodule.captions=text"]
    typed.append(f"model.cache_dir={tmp_path / 'embeddings'}")  # else an earlier run of this test may have left them
    done = run_forked(*typed, "trainer=ddp_cpu", "trainer.max_epochs=1", PROBE, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoding 40 images, once") + done.stderr.count("encoding 40 images, once") == 1
    (run_dir,) = tmp_path.glob("logs/runs/*/*")
    assert_same(*(weights(run_dir, rank) for rank in (0, 1)))
    assert load(run_dir)["global_step"] == 5  # of four images in each process
    assert (run_dir / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_a_step_of_two_processes_is_that_of_one_with_both_their_images(tmp_path: Path) -> None:
    typed = [*QUICK[:3], "callbacks=checkpoint", "callbacks.model_checkpoint.monitor=null", "logger=none"]
    typed += ["model/networks=residual", "model/objective=non_saturating", "model.penalties.r1.every=1"]
    typed += ["model.discriminator.minibatch_std=false"]  # which is of the images of one process
    typed += ["datamodule.img_size=28", "trainer.max_steps=1", "trainer.limit_val_batches=0"]
    typed += ["optimized_metric=null", "test_after_training=false", "+callbacks.probe._target_=tests.test_ddp.SameStep"]
    for network in ("g", "d"):  # with plain gradient descent, weights differ as little as gradients do
        adam = f"model.optimizer_{network}"
        typed += [f"{adam}._target_=torch.optim.SGD", f"{adam}.lr=1", f"~{adam}.betas", f"~{adam}.fused"]
    steps = {}
    for number, more in [(1, ["datamodule.batch_size=128"]), (2, ["trainer=ddp_cpu"])]:
        done = run_forked(*typed, *more, f"hydra.run.dir={number}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        saved = [tmp_path / str(number) / f"step{rank}.pt" for rank in range(number)]
        steps[number] = [torch.load(path, weights_only=True) for path in saved]

    (one,), two = steps[1], steps[2]
    assert one["labels"].tolist() == torch.stack([each["labels"] for each in two], dim=1).flatten().tolist()
    assert one["losses"].keys() == two[0]["losses"].keys() >= {"g_loss", "d_loss", "penalty_r1"}
    for name in ("g_loss", "d_loss", "d_real", "d_fake", "penalty_r1"):
        mean = sum(each["losses"][name] for each in two) / 2
        torch.testing.assert_close(mean, one["losses"][name], rtol=1e-5, atol=1e-6)
    assert one["gradients"].keys() == two[0]["gradients"].keys()
    for name, gradient in one["gradients"].items():
        for each in two:
            torch.testing.assert_close(each["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
        assert gradient.any() or "embedding" in name
        for each in two:
            torch.testing.assert_close(each["weights"][name], one["weights"][name], rtol=1e-4, atol=1e-5, msg=name)


TRAVELS = [*QUICK[:3], *TRICKS, "trainer=ddp_cpu", "callbacks=checkpoint", "callbacks.model_checkpoint.monitor=null"]
TRAVELS += ["optimized_metric=null", "test_after_training=false", "trainer.limit_val_batches=0", PROBE]
TRAVELS += ["+callbacks.way._target_=tests.test_ddp.HowGradientsTravel"]


def means(run_dir: Path) -> list[list[str]]:
    """What averaged each process's gradients; none of its memory may still have a name."""
    found = [json.loads((run_dir / f"means{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert not list(Path("/dev/shm").glob(f"gradients-{found[0]['process']}-*"))
    return [each["seen"] for each in found]


def test_shared_memory_changes_no_bit_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for lacks in ("nothing", "memory"):
        done = run_forked(*TRAVELS, f"+callbacks.way.lacks={lacks}", f"hydra.run.dir={lacks}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    both_ways_to_train = 2  # D alone, and with G
    assert means(tmp_path / "nothing") == [["SharedGradientMean"] * both_ways_to_train] * 2
    assert means(tmp_path / "memory") == [["GradientMean"] * both_ways_to_train] * 2
    for rank in (0, 1):
        assert_same(*(weights(tmp_path / lacks, rank) for lacks in ("nothing", "memory")))


@pytest.mark.parametrize("lacks", ["gradient", "memory and gradient"])  # found by memory, and by message
def test_processes_that_differ_in_what_they_train_end_with_a_sentence(tmp_path: Path, lacks: str) -> None:
    done = run_forked(*TRAVELS, "model.d_steps=1", f"+callbacks.way.lacks={lacks}", "hydra.run.dir=run", cwd=tmp_path)

    assert done.returncode != 0
    assert "error: the processes computed gradients of different parameters in one step: " in done.stderr


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


BRIEF = [*QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.quality=null", "logger=csv"]
BRIEF += ["callbacks.model_checkpoint.monitor=val/g_loss", "trainer.enable_progress_bar=false", PROBE]


def assert_one_run_of_two(folder: Path) -> None:
    """One run folder, whole, with the same weights in both processes, and nothing beside it."""
    (run_dir,) = folder.glob("logs/*/*/*")
    assert_same(*(weights(run_dir, rank) for rank in (0, 1)))
    assert load(run_dir)["global_step"] == 2
    assert "val/g_loss" in json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["metrics"]
    assert (run_dir / ".hydra" / "overrides.yaml").exists()
    assert [path.name for path in run_dir.glob("*.log")] == ["run.log"]
    assert [path.name for path in folder.iterdir()] == ["logs"]


def test_batches_that_the_data_do_not_fill_are_the_same_for_both_processes(tmp_path: Path) -> None:
    # 65 images: 33 for each process, as the last begins the next epoch, which are one batch of 20 and a rest.
    typed = [*BRIEF, "trainer=ddp_cpu", "datamodule.subset=65", "datamodule.batch_size=20"]
    done = run_forked(*typed, "trainer.max_epochs=2", "trainer.limit_train_batches=1.0", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.glob("logs/runs/*/*")
    seen = [torch.load(run_dir / f"rank{rank}.pt", weights_only=True)["labels"] for rank in (0, 1)]
    assert [len(each) for each in seen] == [40, 40]
    assert_same(*(weights(run_dir, rank) for rank in (0, 1)))


def test_torchrun_leaves_one_run_folder(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    typed = [*torchrun, str(ROOT / "run.py"), *BRIEF]
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")

    assert done.returncode == 0, done.stderr
    assert_one_run_of_two(tmp_path)


def test_two_machines_that_are_started_by_hand_train_one_model(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    folder, output = tmp_path / "folder", tmp_path / "output"
    folder.mkdir()
    machines = [
        start_forked(
            *BRIEF,
            "trainer.num_nodes=2",
            cwd=folder,
            files=(output, output),
            environment={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": rank},
        )
        for rank in ("1", "0")
    ]
    for machine in machines:
        machine.join(200)

    assert [machine.exitcode for machine in machines] == [0, 0], output.read_text(encoding="utf-8")
    assert_one_run_of_two(folder)


def test_a_machine_that_does_not_come_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    done = run_forked(*QUICK, "trainer.num_nodes=2", "trainer.nodes_timeout=0.5", cwd=tmp_path)

    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: no machine with NODE_RANK=1 came to ") and "within 0.5 s" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("stage", "code"), [("building", 2), ("setup", 1)])
def test_a_process_that_fails_before_training_says_why_for_all(tmp_path: Path, stage: str, code: int) -> None:
    fails = ["+callbacks.fail._target_=tests.test_ddp.FailAlone", f"+callbacks.fail.stage={stage}"]
    done = run_forked(*QUICK, "trainer=ddp_cpu", "logger=none", *fails, cwd=tmp_path)

    assert done.returncode == code, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the second process cannot" in error


def test_processes_with_other_data_train_no_model(tmp_path: Path) -> None:
    """As where one machine has the data, and another falls back to what it has."""
    for rank, colour in enumerate([0, 255]):
        for part in (f"{split}/{name}" for split in ("train", "val", "test") for name in "ab"):
            folder = tmp_path / f"data{rank}" / part
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), colour).save(folder / f"{number}.png")
    typed = [*QUICK[1:], "datamodule=folder", "datamodule.folder=${work_dir}/data${oc.env:LOCAL_RANK,0}"]
    done = run_forked(*typed, "trainer=ddp_cpu", "datamodule.batch_size=2", "logger=none", cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "has other data (data1) than" in error and "give all machines the same files" in error


def test_a_process_that_is_alone_before_training_ends_with_a_sentence(tmp_path: Path) -> None:
    output, pid = tmp_path / "output", tmp_path / "pid"
    typed = [*QUICK, "trainer=ddp_cpu", "logger=none", "+callbacks.orphan._target_=tests.test_ddp.Orphan"]
    process = start_forked(*typed, f"+callbacks.orphan.file={pid}", cwd=tmp_path, files=(output, output))
    process.join(200)

    assert process.exitcode == -signal.SIGKILL
    until = time.monotonic() + 60
    while Path(f"/proc/{pid.read_text(encoding='utf-8')}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    (error,) = [line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    assert error == "error: the first process of this run has ended: start the run again"


def test_a_mistake_that_all_processes_find_is_said_once(tmp_path: Path) -> None:
    done = run_forked(*QUICK, "trainer=ddp_cpu", "logger=none", "trainer.limit_val_batches=0", cwd=tmp_path)

    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "needs the validation that trainer.limit_val_batches=0 switches off" in error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_a_sentence(tmp_path: Path, rank: int) -> None:
    main, file = start(tmp_path, "trainer=ddp_cpu", "logger=csv")
    assert main.pid is not None
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text(encoding="utf-8").split()
    (other,) = [int(pid) for pid in children if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(main.pid if rank == 0 else other, signal.SIGKILL)
    main.join(60)

    assert main.exitcode == (-signal.SIGKILL if rank == 0 else 1)
    until = time.monotonic() + 60
    while Path(f"/proc/{other}").exists():  # nobody waits for it where the first process is gone
        assert time.monotonic() < until
        time.sleep(0.05)
    output = file.read_text(encoding="utf-8")
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: another process of this run has ended or cannot be reached")
    assert "type ckpt_path=last to go on" in error and "Traceback" not in output
    (last,) = tmp_path.glob("logs/runs/*/*/ckpts/last.ckpt")
    resumed = load(last.parents[1])["global_step"]
    assert (
        run_forked(
            *QUICK,
            "trainer=ddp_cpu",
            f"ckpt_path={last}",
            f"trainer.max_steps={resumed + 2}",
            "logger=none",
            cwd=tmp_path,
        ).returncode
        == 0
    )
