"""The page of GPU figures: every row stands on its own, and all but what needs CUDA is tried here."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import gpu
from benchmarks.step_cost import NAMES, build, flow_update, gan_update
from tests.conftest import ROOT

SCRIPT = str(ROOT / "benchmarks" / "gpu.py")


def table(page: str) -> dict[tuple[str, str], list[str]]:
    """The other cells of each row of speeds, by recipe and way."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    return {(row[0].strip("`"), row[1]): row[2:] for row in rows}


def test_the_command_writes_what_it_can_measure_here(tmp_path: Path) -> None:
    out = tmp_path / "pages" / "gpu.md"
    rows = ["peak", "cnn_gan float32", "cnn_gan bf16, data on the device, CUDA"]
    command = [sys.executable, SCRIPT, "--device", "cpu", "--out", str(out), "--rows", *rows]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {out}: 2 rows, and 2 that say why they have no figure"
    page = out.read_text(encoding="utf-8")
    found = table(page)
    assert len(found) == 3
    ms, images, share, memory = (
        float(re.sub("[,%]", "", cell)) for cell in found.pop(("train_mnist_cnn_gan", "float32"))
    )
    assert ms * images == pytest.approx(64_000, rel=0.01)
    assert share > 0 and memory > 100
    assert [cells[0] for cells in found.values()] == ["needs CUDA"] * 2
    assert "these numbers mean nothing" in page
    assert re.search(r"TFLOP/s in float32, .* TFLOP/s in TF32, .* TFLOP/s in bf16\.", page)
    assert "No figure: not asked for." in page
    assert [path.name for path in tmp_path.rglob("*")] == ["pages", "gpu.md"]


def test_rows_for_which_no_time_is_left_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--device=cpu", "--minutes=0", f"--out={out}"])
    gpu.main()
    page = out.read_text(encoding="utf-8")
    assert [cells[0] for cells in table(page).values()] == ["no time left"] * 29
    assert page.count("No figure: no time left.") == 1  # CIFAR-10 lacks the speed that its schedule follows from
    assert f"it needs the row train_cifar10_flow_gpu {gpu.ESTIMATE}" in page


def test_without_a_gpu_the_command_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [SCRIPT, f"--out={tmp_path}/gpu.md"])
    with pytest.raises(SystemExit, match=r"^error: this machine has no GPU .* --device cpu"):
        gpu.main()
    assert not list(tmp_path.iterdir())


def test_a_row_that_dies_hangs_or_fails_says_so() -> None:
    assert gpu.in_process(60, int, "3") == 3
    with pytest.raises(RuntimeError, match=r"^its process ended with 5$"):
        gpu.in_process(60, os._exit, 5)
    with pytest.raises(RuntimeError, match=r"^it took more than 0 s$"):
        gpu.in_process(0.2, time.sleep, 60)
    with pytest.raises(RuntimeError, match=r"^ValueError: invalid literal"):
        gpu.in_process(60, int, "three")


# What a step is


class OnTheCPU(TorchDispatchMode):
    """Counts the operators that read or make a tensor in main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.n += 1
        if any(
            isinstance(each, torch.Tensor) and each.device.type == "cpu" for each in tree_leaves((args, kwargs, made))
        ):
            self.seen[str(func)] += 1
        return made


@pytest.mark.parametrize("recipe", gpu.CHANNELS)
def test_a_step_never_comes_back_to_main_memory(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a CUDA graph could not hold it. `meta` stands for the GPU: it answers no question, either."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    overrides = gpu.SCALES["cpu"].narrow[recipe] + [NAMES] * (recipe == gpu.TEXT)
    model, data = build(recipe, overrides, gpu.CHANNELS[recipe])
    model.to("meta")
    # Fused Adam does not know the device.
    optimizers = {name: partial(SGD, lr=0.1) for name in gpu.OPTIMIZERS[recipe]}
    for name, optimizer in optimizers.items():
        setattr(model, name, optimizer)
    update = (flow_update if gpu.OPTIMIZERS[recipe] == gpu.ONE else gan_update)(model)
    images = torch.empty(8, gpu.CHANNELS[recipe], data.img_size, data.img_size, device="meta")
    batch = images, torch.zeros(8, *model.condition_shape, dtype=torch.int64, device="meta")
    with OnTheCPU() as operators:
        for i in range(4):  # with the penalties that are due on the last
            update(batch, i)
    assert operators.n > 1000
    assert operators.seen == {}


@pytest.mark.parametrize("recipe", gpu.CHANNELS)
def test_optimizers_can_be_captured(recipe: str) -> None:
    overrides = [f"+model.{name}.capturable=true" for name in gpu.OPTIMIZERS[recipe]] + gpu.SCALES["cpu"].narrow[recipe]
    model, _ = build(recipe, overrides + [NAMES] * (recipe == gpu.TEXT), gpu.CHANNELS[recipe])
    for optimizer in model.configure_optimizers():
        assert all(group["capturable"] and group["fused"] for group in optimizer.param_groups)


def test_penalties_and_arithmetic_are_those_of_a_training() -> None:
    """The step that is counted and compiled leaves the same weights."""
    ends = []
    for direct in (False, True):
        model, data = build(gpu.MNIST, gpu.NARROW)
        if direct:
            model.penalties = {name: gpu.Direct(each) for name, each in model.penalties.items()}
        update = gan_update(model)
        batch = gpu.batches("cpu", gpu.MNIST, False, data, 128)
        torch.manual_seed(1)
        for i in range(4):
            update(batch(i), i)
        ends.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    assert torch.equal(*ends)


def test_batches_are_as_from_main_memory() -> None:
    _, data = build(gpu.CIFAR10, gpu.NARROW, 3)
    there, here = (gpu.batches("cpu", gpu.CIFAR10, near, data, 200) for near in (True, False))
    for i in range(4):
        assert all(torch.equal(a, b) for a, b in zip(there(i), here(i), strict=True))
    assert torch.equal(here(3)[0], here(0)[0]) and not torch.equal(here(1)[0], here(0)[0])
    assert here(0)[0].shape == (64, 3, 32, 32)


# Real runs


def test_a_run_on_mnist_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ACCURACY", 0.01)
    found = gpu.mnist_run(gpu.SCALES["cpu"], tmp_path / "run", 200)
    assert 0 <= found["seconds"] < found["command_seconds"]  # rounded
    assert found["best"] > 0.01
    with pytest.raises(RuntimeError, match=r"there is no key trainer\.max_epoch: did you mean trainer\.max_epochs"):
        typed = {gpu.MNIST: ["trainer.max_epoch=1"]}
        gpu.mnist_run(replace(gpu.SCALES["cpu"], typed=typed), tmp_path / "other", 200)


def test_a_run_on_cifar10_is_planned_from_the_speed_and_read_from_its_files(tmp_path: Path) -> None:
    scale = replace(gpu.SCALES["cpu"], training=120)  # enough on a busy machine
    found = gpu.cifar10_run(scale, tmp_path / "run", 300, images_per_s=3_100)
    # 120 s * .75 * 3,100 / 45,000 makes six epochs, as there is a validation after every second one.
    assert found["typed"].split()[:3] == [
        "trainer.max_time=00:00:02:00",
        "trainer.max_epochs=6",
        "trainer.check_val_every_n_epoch=2",
    ]
    assert 0 < found["batches"] <= 24
    assert 0 <= found["label_accuracy"] < found["label_accuracy_floor"] and found["fd"] > found["fd_floor"]
    assert found["grid"].read_bytes().startswith(b"\x89PNG")
