"""What people type for `gpus` becomes Lightning's arguments, and a checkpoint is whole or absent."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint, RichModelSummary

from src.callbacks.progress import ProgressBar
from src.errors import UserError
from src.models.averaged_gradients import AveragedGradients
from src.run import trainer as module
from src.run.trainer import AtomicCheckpointIO, make_trainer, parse_gpus, point_out_gpu
from tests.conftest import Train, build

DDP = AveragedGradients


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *((number, number) for number in (0, 1, 2, -1, None)),
        *((str(number), number) for number in (0, 1, -1)),
        *((both, [0, 1]) for both in ([0, 1], "0,1", "[0,1]")),
        ((2,), [2]),
        ("[ 0, 3 ]", [0, 3]),
        ("[0]", [0]),
    ],
)
def test_gpus_as_people_type_it(monkeypatch: pytest.MonkeyPatch, typed: Any, meant: Any) -> None:
    pretend(monkeypatch, 4)
    parsed = parse_gpus(typed)
    assert parsed == meant and type(parsed) is type(meant)


@pytest.mark.parametrize("typed", [True, False, "abc", "", "1.5", 1.0, [0, 0], "1,1", -2, "-2", [-1], [], [True], {}])
def test_gpus_that_cannot_be_meant(typed: Any) -> None:
    with pytest.raises(ValueError, match=r"gpus must be .* not ") as error:
        parse_gpus(typed)
    assert repr(typed) in str(error.value)


def pretend(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """This machine has `n` GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card{i}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        (0, 1, "gpus is 1, but this machine has no GPU: use trainer.gpus=0"),
        (0, -1, "gpus is -1, but this machine has no GPU: use trainer.gpus=0"),
        (0, [0], r"gpus is \[0\], but this machine has no GPU: use trainer.gpus=0"),
        (2, 3, r"gpus is 3, but this machine has 2 \(0: Card0, 1: Card1\): use trainer.gpus=-1"),
        (2, [0, 2], r"gpus is \[0,2\], but this machine has 2 \(0: Card0, 1: Card1\): use trainer.gpus=-1"),
    ],
)
def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch, there: int, wanted: Any, message: str) -> None:
    pretend(monkeypatch, there)
    with pytest.raises(ValueError, match=message):
        make_trainer(gpus=wanted)


@pytest.mark.parametrize(
    ("arguments", "accelerator", "devices", "strategy"),
    [
        ({"gpus": 0}, "cpu", 1, "auto"),
        ({"gpus": "0"}, "cpu", 1, "auto"),
        ({"gpus": 1}, "gpu", 1, "auto"),
        ({"gpus": "2"}, "gpu", 2, DDP),
        ({"gpus": -1}, "gpu", -1, DDP),
        ({"gpus": [0, 1]}, "gpu", [0, 1], DDP),
        ({"gpus": [1]}, "gpu", [1], "auto"),
        ({"gpus": 2, "strategy": "ddp"}, "gpu", 2, DDP),
        ({"gpus": 2, "strategy": "ddp_spawn"}, "gpu", 2, "ddp_spawn"),
        ({"gpus": 1, "num_nodes": 2}, "gpu", 1, DDP),
        ({"gpus": 1, "accelerator": "cpu", "devices": 4}, "gpu", 1, "auto"),
        ({"gpus": 0, "accelerator": "cpu", "devices": 2}, "cpu", 2, DDP),
        ({"gpus": None}, "auto", 1, "auto"),
        ({"gpus": None, "accelerator": "gpu", "devices": 2}, "gpu", 2, DDP),
    ],
)
def test_gpus_in_lightnings_terms(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], accelerator: str, devices: Any, strategy: Any
) -> None:
    pretend(monkeypatch, 4)
    monkeypatch.setattr(module, "Trainer", SimpleNamespace)
    monkeypatch.setattr(module, "wait_for_machines", lambda *_: "")
    made: Any = make_trainer(**arguments)
    found = made.strategy if isinstance(made.strategy, str) else type(made.strategy)
    assert (made.accelerator, made.devices, found) == (accelerator, devices, strategy)
    assert vars(made).get("num_nodes", 1) == arguments.get("num_nodes", 1)


@pytest.mark.parametrize(
    ("there", "typed", "says"),
    [
        (2, [], True),
        (2, ["seed=1", "experiment=train_mnist_gan"], True),
        (2, ["trainer.gpus=0"], False),
        (2, ["trainer.accelerator=cpu"], False),
        (2, ["trainer=ddp_cpu"], False),
        (0, [], False),
    ],
)
def test_a_gpu_that_is_not_used_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, there: int, typed: list[str], says: bool
) -> None:
    pretend(monkeypatch, there)
    trainer = make_trainer()
    with caplog.at_level("INFO", "src"):
        point_out_gpu(trainer, typed)
    said = "training on the CPU, but this machine has a GPU (Card0): type trainer.gpus=1 to use it"
    assert [line for line in caplog.messages if "Card" in line] == ([said] if says else [])


def test_two_processes_on_the_cpu_as_lightning_sees_them() -> None:
    trainer = make_trainer(gpus=0, accelerator="cpu", devices=2)
    assert trainer.world_size == 2
    assert isinstance(trainer.strategy, AveragedGradients)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True
    assert trainer.strategy._ddp_kwargs["broadcast_buffers"] is False  # before each validation instead


@pytest.mark.parametrize(
    ("cpu", "there", "gpus", "meant"),
    [
        ([], 0, 0, "32-true"),
        (["avx512_bf16"], 0, 0, "bf16-mixed"),
        (["amx_tile"], 0, None, "bf16-mixed"),
        (["avx512_bf16"], 1, 1, "32-true"),  # a card that does not have it, beside a CPU that does
        ([], 1, 0, "32-true"),
    ],
)
def test_automatic_precision_follows_what_trains(
    monkeypatch: pytest.MonkeyPatch, cpu: list[str], there: int, gpus: int | None, meant: str
) -> None:
    pretend(monkeypatch, there)
    for each in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{each}_supported", lambda each=each: each in cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(module, "Trainer", SimpleNamespace)
    made: Any = build(make_trainer, gpus=gpus, precision="auto")
    assert made.precision == meant


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"^cuda_graph is true, .*: set trainer\.gpus=1, or trainer\.cuda_graph=auto"):
        make_trainer(gpus=0, cuda_graph=True)


def test_a_run_records_the_precision_that_was_chosen(monkeypatch: pytest.MonkeyPatch, train_here: Train) -> None:
    monkeypatch.setattr(module, "native_precision", lambda on_cpu: "bf16-mixed")
    run_dir = train_here("auto", "trainer.precision=auto", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_switched_off_is_left_out(shown: bool) -> None:
    checkpoint = ModelCheckpoint()
    callbacks = [ProgressBar(), RichModelSummary(), checkpoint]
    trainer = make_trainer(callbacks=callbacks, enable_progress_bar=shown, enable_model_summary=shown)
    assert (trainer.progress_bar_callback is not None) == shown
    assert any(isinstance(c, RichModelSummary) for c in trainer.callbacks) == shown
    assert trainer.checkpoint_callback is checkpoint
    bare = make_trainer()  # nothing is written unless a callback writes it
    assert bare.checkpoint_callback is None and bare.loggers == []


class BeforeEachStep(Callback):
    calls = 0

    def on_before_optimizer_step(self, *_: object) -> None:
        type(self).calls += 1


def test_only_hooks_that_do_something_are_called(monkeypatch: pytest.MonkeyPatch, train_here: Train) -> None:
    empty: list[str] = []
    for hook in ("on_before_optimizer_step", "on_after_backward"):
        monkeypatch.setattr(Callback, hook, lambda *_, hook=hook: empty.append(hook))
    monkeypatch.setattr(BeforeEachStep, "calls", 0)
    train_here(
        "hooks",
        f"+callbacks.mine._target_={__name__}.BeforeEachStep",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
    )
    assert (empty, BeforeEachStep.calls) == ([], 4)  # two networks, two batches


# Checkpoints


def test_a_checkpoint_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3)}, path)
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(4)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.arange(4))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [b"the old checkpoint", None])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "last.ckpt"
    if before:
        path.write_bytes(before)

    def write_half(checkpoint: object, file: Any) -> None:
        file.write(b"half of")
        raise error(28, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(error) as raised:
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([("last.ckpt", before)] if before else [])
    if error is OSError:
        assert raised.value.filename == str(path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("log_every_n_steps", -5, "at least 0"),
        ("num_sanity_val_steps", -2, "at least -1"),
        ("check_val_every_n_epoch", -1, "at least 1"),
        ("min_epochs", -1, "at least 0"),
        ("min_steps", -7, "at least 0"),
        *(
            (name, value, "or -1 for no limit")
            for name in ("max_epochs", "max_steps")
            for value in (-2, 0, 1.5, True, "many")
        ),
        ("num_nodes", 0, "from 1 to 1024"),
        ("num_nodes", 10**9, "from 1 to 1024"),
        ("num_nodes", True, "a whole number"),
        ("devices", 0, "from 1 to 1024"),
        ("devices", 10**24, "from 1 to 1024"),
        ("devices", 1.5, "from 1 to 1024"),
        ("devices", None, "from 1 to 1024"),
        ("devices", [1, 2], "from 1 to 1024"),
        ("limit_train_batches", 0, "above 0"),
        ("limit_train_batches", float("nan"), "a share of them"),
        ("limit_val_batches", -1, "0 or more"),
        ("limit_test_batches", 1.5, "a share of them such as 0.5"),
        ("limit_test_batches", 1e30, "a share of them"),
        ("overfit_batches", float("inf"), "a share of them"),
        ("val_check_interval", 0, "above 0"),
        ("fast_dev_run", -1, "at least 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=rf"\.{name} must be .*{says}"):
        build(make_trainer, **{name: value})


@pytest.mark.parametrize("ok", [{"log_every_n_steps": 0}, {"min_epochs": 0}, {"limit_val_batches": 0.5}])
def test_numbers_at_the_edge_are_taken(ok: dict[str, Any]) -> None:
    assert [getattr(make_trainer(**ok), name) for name in ok] == [*ok.values()]


def test_what_torchrun_started_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for typed in ({"devices": 3}, {"num_nodes": 2, "devices": 2}, {"num_nodes": 3}):
        with pytest.raises(UserError, match=r"torchrun started 2 processes.*leave out trainer\.devices"):
            make_trainer(accelerator="cpu", **typed)


def test_threads_are_those_asked_for_and_else_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    try:
        build(make_trainer, threads=before + 1)
        assert torch.get_num_threads() == before + 1
        build(make_trainer)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_several_processes_have_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning, which starts the second one, would share the cores out, were there no OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        trainer: Any = build(make_trainer, accelerator="cpu", devices=2, threads=before + 2)
        monkeypatch.setattr(trainer.strategy.launcher, "_call_children_scripts", lambda: None)
        trainer.strategy.launcher.launch(lambda: None, trainer=trainer)
        assert torch.get_num_threads() == before + 2 == int(os.environ["OMP_NUM_THREADS"])
    finally:
        torch.set_num_threads(before)
