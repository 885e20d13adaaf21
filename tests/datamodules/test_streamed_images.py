"""Images that are decoded when they are needed: the same batches, in little memory, and what can go wrong meanwhile."""

import logging
import multiprocessing
import os
import shutil
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.streaming import memory_in_use
from src.config.explain import explain
from src.datamodules import folder_datamodule, image_datamodule, streamed_images
from src.datamodules.folder_datamodule import FolderDataModule
from src.datamodules.image_datamodule import workers_for
from src.datamodules.streamed_images import main_memory
from src.errors import UserError
from src.run.resume import Past, point_out_other_data
from tests.conftest import QUICK, Train, assert_same, load
from tests.forked import run_forked

N, SIDE = 60, 12


def make_pictures(folder: Path, n: int = N, side: int = SIDE) -> Path:
    """Pictures of noise in two classes, of several kinds."""
    rng = np.random.default_rng(0)
    for number in range(n):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(side, side + number % 3, 3), dtype=np.uint8)
        image = [Image.fromarray(pixels), Image.fromarray(pixels[..., 0]), Image.fromarray(pixels).convert("RGBA")]
        image[number % 3].save(folder / "ab"[number % 2] / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("many") / "pictures")


def loaded(folder: Path, **kwargs) -> FolderDataModule:
    options = {"img_size": SIDE, "batch_size": 5, "in_memory": False, "num_workers": 0}
    datamodule = FolderDataModule(folder, **options | kwargs)
    datamodule.setup()
    return datamodule


def epoch(datamodule: FolderDataModule, number: int = 0) -> list[list[Tensor]]:
    loader = datamodule.train_dataloader()
    batches = iter(loader)
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(batches)


# The same images


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_those_of_images_in_memory(folder: Path, num_workers: int) -> None:
    changes = {"flip": True, "crop": 0.2, "subset": 40}
    near, far = loaded(folder, in_memory=True, **changes), loaded(folder, num_workers=num_workers, **changes)
    assert (near.in_memory, far.in_memory) == (True, False)
    for number in (0, 3):
        assert_same(epoch(near, number), epoch(far, number))
    for name in ("val", "test"):
        batches = [list(getattr(each, f"{name}_dataloader")()) for each in (near, far)]
        assert_same(*batches)
        assert batches[1][0][0].is_contiguous()  # else the networks would compute in another order
    assert {name: len(each) for name, each in far.sets.items()} == {"train": 40, "val": 6, "test": 6}


def test_a_resumed_epoch_decodes_nothing_that_was_passed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = loaded(folder)
    whole = epoch(datamodule, 2)
    opened: list[str] = []
    decode_one = streamed_images.decode_one
    monkeypatch.setattr(
        streamed_images, "decode_one", lambda path, *how: opened.append(str(path)) or decode_one(path, *how)
    )
    loader = datamodule.train_dataloader()
    loader.load_state_dict({"epoch": 2, "images": 35})  # type: ignore[attr-defined]
    batches = iter(loader)
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    assert_same(list(batches), whole[7:])
    assert len(opened) == len(set(opened)) == 48 - 35 - 3  # the last three make no batch


def test_two_processes_share_the_pictures_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = loaded(folder, batch_size=1)
    served = []
    for rank in (0, 1):
        sampler = image_datamodule.EpochSampler(datamodule.sets["train"], 2, rank, seed=0)
        served.append([datamodule.sets["train"].images[i : i + 1].rows.item() for i in sampler])  # type: ignore[attr-defined]
    assert len(served[0]) == len(served[1]) == 24
    assert not set(served[0]) & set(served[1])


# In memory or not


def test_little_memory_decides_for_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = N * 3 * SIDE**2
    monkeypatch.setattr(folder_datamodule, "main_memory", lambda: 4 * needed)
    assert loaded(folder, in_memory="auto").in_memory
    assert not caplog.messages
    monkeypatch.setattr(folder_datamodule, "main_memory", lambda: 4 * needed - 1)
    with caplog.at_level(logging.INFO):
        assert not loaded(folder, in_memory="auto").in_memory
    (said,) = caplog.messages
    assert said.startswith("images stay in their files, and are decoded when they are needed")
    assert "at most 20,000 of the training images, and 10,000 of the others" in said


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(streamed_images, "CGROUPS", tmp_path)
    assert main_memory() == machine
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert main_memory() == machine
    (tmp_path / "memory.max").write_text("1000000\n", encoding="utf-8")
    assert main_memory() == 1_000_000


@pytest.mark.parametrize(
    ("line", "limit"), [("0::{}", "memory.max"), ("4:cpu,memory:{}", "memory/memory.limit_in_bytes")]
)
def test_a_limit_above_the_processs_own_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, limit: str
) -> None:
    """As that of a SLURM job, in whose group each step and each task has its own."""
    groups = tmp_path / "groups"
    monkeypatch.setattr(streamed_images, "CGROUPS", groups)
    monkeypatch.setattr(streamed_images, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(line.format("/slurm/job_1/step_0\n"), encoding="utf-8")
    folder, name = (groups / limit).parent, Path(limit).name
    (folder / "slurm" / "job_1" / "step_0").mkdir(parents=True)
    (folder / "slurm" / "job_1" / name).write_text("2000000\n", encoding="utf-8")
    assert main_memory() == 2_000_000


def test_workers_take_the_cpus_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, processes, workers in [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 8), (16, 4, 3), (4, 8, 1)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        assert workers_for(processes) == workers
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert workers_for(2) == 5  # of one task, in which two processes train
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert workers_for(2) == 8  # of each of two tasks


def test_metrics_compare_with_a_part_and_the_checksum_is_of_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loaded(folder)
    assert {name: len(each) for name, each in whole.references.items()} == {"train": 48, "val": 6, "test": 6}
    monkeypatch.setattr(image_datamodule, "MOST_REFERENCES", {"train": 20, "val": 4, "test": 10})
    part = loaded(folder, subset=10)
    assert {name: len(each) for name, each in part.references.items()} == {"train": 20, "val": 4, "test": 6}
    assert_same(part.references["train"][3], whole.references["train"][3])
    assert part.sha256() == whole.sha256()

    moved = shutil.copytree(folder, tmp_path / "moved")
    assert loaded(moved).sha256() == whole.sha256()
    assert loaded(moved, channels=1).sha256() != whole.sha256()
    longer = moved / "a" / "000.png"
    longer.write_bytes(longer.read_bytes() + b"!")
    assert loaded(moved).sha256() != whole.sha256()


# Memory


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (256, 256), "red").save(tmp_path / name / "0.jpg")
        for number in range(1, 4_000):
            os.link(tmp_path / name / "0.jpg", tmp_path / name / f"{number}.jpg")
    before = memory_in_use()
    datamodule = loaded(tmp_path, img_size=256, num_workers=1, batch_size=10)
    batches = islice(datamodule.train_dataloader(), 60)
    used = [memory_in_use() - before for number, _ in enumerate(batches) if number % 10 == 9]
    assert len(used) == 6
    # Batches on their way, and what a process copies that it shared at first, are 0.3 GB, however many pictures.
    assert max(used) * 2**20 < 8_000 * 3 * 256**2 / 3


# Faults


def test_a_few_pictures_are_decoded_at_the_start(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures")
    (folder / "a" / "000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000\.png cannot be decoded \(not a picture of a kind that Pillow knows\)"):
        loaded(folder)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_picture_that_is_damaged_or_deleted_meanwhile_is_named(
    tmp_path: Path, num_workers: int, deleted: bool
) -> None:
    folder = make_pictures(tmp_path / "pictures")
    datamodule = loaded(folder, num_workers=num_workers)
    images = datamodule.sets["train"].images
    path = images.pictures[images.rows[7].item()]  # type: ignore[attr-defined]
    content = path.read_bytes()
    path.unlink() if deleted else path.write_bytes(content[:-40])
    with pytest.raises(UserError) as error:
        epoch(datamodule)
    why = "No such file or directory" if deleted else "image file is truncated (3 bytes not processed)"
    assert explain(error.value).startswith(f"{path} cannot be decoded (")
    assert why[:20] in explain(error.value)
    assert explain(error.value).endswith("): replace it, and type ckpt_path=last to go on with the run that it stopped")


class Kill(Callback):
    """Ends a worker, or sends a signal to all processes of the run, while a batch is being trained."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            # Those of validation, which began before training, and after them its own.
            workers = sorted(each.pid or 0 for each in multiprocessing.active_children())
            assert len(workers) == 4
            for pid in workers[-1 if self.signum == signal.SIGKILL else 0 :]:
                os.kill(pid, self.signum)
            if self.signum != signal.SIGKILL:
                os.kill(os.getpid(), self.signum)


def typed(folder: Path) -> list[str]:
    ours = ["datamodule=folder", f"datamodule.folder={folder}", f"datamodule.img_size={SIDE}", "logger=none"]
    ours += ["datamodule.batch_size=8", "callbacks=checkpoint", "callbacks.model_checkpoint.monitor=null"]
    return [*QUICK[1:3], *ours, "optimized_metric=null", "test_after_training=false", "trainer.max_epochs=3"]


STREAMED = ["datamodule.in_memory=false", "datamodule.num_workers=2"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, 1), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_whose_workers_are_killed_or_told_to_stop_goes_on_exactly(
    folder: Path, tmp_path: Path, train_here: Train, signum: int, code: int
) -> None:
    """Ctrl-C and a scheduler tell the workers, too."""
    kill = ["+callbacks.kill._target_=tests.datamodules.test_streamed_images.Kill", "+callbacks.kill.step=8"]
    done = run_forked(
        *typed(folder), *STREAMED, *kill, f"+callbacks.kill.signum={int(signum)}", "hydra.run.dir=first", cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if signum == signal.SIGKILL:
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: a worker process that loads data is gone")
        assert "type ckpt_path=last to go on" in said
    else:
        assert done.stdout.count("stopping after this batch") == 1
    first = tmp_path / "first"
    assert 8 < load(first)["global_step"] < 18

    whole = train_here("whole", *typed(folder))
    rest = train_here("rest", *typed(folder), *STREAMED, f"ckpt_path={first}/ckpts/last.ckpt")
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(load(whole)[key], load(rest)[key], key)


def test_a_resumed_run_says_that_the_pictures_are_others(caplog: pytest.LogCaptureFixture) -> None:
    data = {"source": "many", "sha256": "a", "train": 48, "val": 6, "test": 6, "in_memory": False}
    point_out_other_data(Past(data=data), data)
    point_out_other_data(Past(data={**data, "sha256": "b", "in_memory": True}), data)  # of pixels, not of files
    point_out_other_data(Past(), data)
    assert not caplog.messages
    point_out_other_data(Past(data=data), data | {"sha256": "c", "train": 50})
    assert caplog.messages == [
        "the images of many are not those of the run that was stopped (48 train, 6 val, 6 test then, 50 train, 6 val, 6"
        " test now): it goes on in another order, and what is tested may have been trained on"
    ]


class Delete(Callback):
    """Deletes the pictures of one class when the second process has trained on some batches."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.global_step) == (1, 4):
            for path in (trainer.datamodule.folder / "b").iterdir():  # type: ignore[attr-defined]
                path.unlink()


def test_two_processes_end_where_one_finds_no_picture(tmp_path: Path) -> None:
    ours = [*typed(make_pictures(tmp_path / "pictures")), *STREAMED, "trainer=ddp_cpu", "trainer.max_epochs=100"]
    delete = "+callbacks.delete._target_=tests.datamodules.test_streamed_images.Delete"
    done = run_forked(*ours, delete, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert "png cannot be decoded (No such file or directory): replace it, and type ckpt_path=last" in done.stderr
    assert "Traceback" not in done.stderr
    assert load(tmp_path / "run")["global_step"] >= 3
