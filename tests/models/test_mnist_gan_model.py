"""The training step: what it optimises, what it counts, and what may never reach it."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from src.callbacks.checkpoint import Checkpoint
from src.errors import DivergedError
from src.models.losses import LSGANLoss, NonSaturatingLoss, RelativisticLoss, WassersteinLoss
from src.models.mnist_gan_model import DISCRIMINATOR, GENERATOR, MNISTGANModel
from src.models.modules.discriminators import Discriminator
from src.models.modules.generators import Generator
from src.run.trainer import make_trainer
from tests.conftest import build_model, compose_config

D_KEYS = {"d_loss", "d_real_loss", "d_fake_loss", "d_real", "d_fake", "d_pair_accuracy"}
N_CLASSES, LATENT_DIM, IMG_SIZE, BATCH, BATCHES = 3, 5, 8, 8, 5


def make_model(kind: type[MNISTGANModel] = MNISTGANModel, **kwargs) -> MNISTGANModel:
    torch.manual_seed(0)
    return kind(
        Generator(N_CLASSES, LATENT_DIM, 1, IMG_SIZE),
        Discriminator(N_CLASSES, 1, IMG_SIZE),
        n_classes=N_CLASSES,
        latent_dim=LATENT_DIM,
        img_size=IMG_SIZE,
        **kwargs,
    )


def make_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, 1, IMG_SIZE, IMG_SIZE, generator=rng) * 2 - 1
    return images, torch.randint(N_CLASSES, (BATCH,), generator=rng)


def loader() -> DataLoader:
    """Five batches."""
    images, labels = zip(*(make_batch(seed) for seed in range(BATCHES)), strict=True)
    data = TensorDataset(torch.cat(images), torch.cat(labels))
    return DataLoader(data, batch_size=BATCH, generator=torch.Generator())


def quiet_trainer(folder: Path, *callbacks: Callback, **kwargs) -> Trainer:
    options = {"max_epochs": 1, "log_every_n_steps": 1, "limit_val_batches": 0} | kwargs
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return make_trainer(callbacks=callbacks, default_root_dir=str(folder), **quiet, **options)


class Spy:
    """What goes into and comes out of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        network.register_forward_hook(
            lambda _, inputs, output: self.calls.append((*(i.detach() for i in inputs), output.detach()))
        )


# The networks


def test_the_baseline_has_exactly_this_many_parameters() -> None:
    model = build_model(compose_config("train"))
    assert sum(p.numel() for p in model.parameters()) == 2_813_257


def test_batch_norm_keeps_the_templates_eps() -> None:
    model = build_model(compose_config("train"))
    assert [m.eps for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [0.8, 0.8, 0.8]


# step


def test_step_of_the_generator() -> None:
    losses, loss = make_model().step(make_batch(), 0, GENERATOR)
    assert losses.keys() == {"g_loss"}
    assert loss.requires_grad and not losses["g_loss"].requires_grad
    assert loss == losses["g_loss"]


def test_step_of_the_discriminator() -> None:
    model, (images, labels) = make_model().eval(), make_batch()
    losses, loss = model.step((images, labels), 0, DISCRIMINATOR)
    assert losses.keys() == D_KEYS
    assert loss == losses["d_loss"] == (losses["d_real_loss"] + losses["d_fake_loss"]) / 2
    scores = model.discriminator(images, labels)
    torch.testing.assert_close(losses["d_real"], scores.mean())
    torch.testing.assert_close(losses["d_real_loss"], (scores - 1).square().mean())


def test_step_of_both_is_the_same_each_time() -> None:
    model = make_model().eval()
    losses, loss = model.step(make_batch(), 3)
    again, _ = model.step(make_batch(), 3)
    other, _ = model.step(make_batch(), 4)
    assert losses.keys() == {"g_loss"} | D_KEYS
    assert loss == losses["g_loss"] + losses["d_loss"]
    assert losses == again
    assert losses["g_loss"] != other["g_loss"]  # another batch, other noise


def test_where_nothing_is_optimised_d_sees_each_image_once() -> None:
    model = make_model()
    spy = Spy(model.discriminator)
    losses, _ = model.eval().step(make_batch(), 3)
    assert [len(images) for images, _, _ in spy.calls] == [BATCH, BATCH]
    (fake, *_, fake_scores), (real, *_, real_scores) = spy.calls
    assert torch.equal(real, make_batch()[0]) and not torch.equal(fake, real)
    assert losses["d_fake"] == fake_scores.mean() and losses["d_real"] == real_scores.mean()


def test_the_discriminator_is_never_shown_images_of_another_batch() -> None:
    model = make_model().eval()
    drawn, seen = Spy(model.generator), Spy(model.discriminator)
    images, labels = make_batch()
    model.step((images, labels), 0, GENERATOR)
    model.step((images, labels.clone()), 1, DISCRIMINATOR)  # even one with equal labels
    assert len(drawn.calls) == 2
    fake = seen.calls[-1][0][BATCH:]
    assert torch.equal(fake, drawn.calls[1][2]) and not torch.equal(fake, drawn.calls[0][2])

    model.step((images, labels), 2, GENERATOR)
    model.step((images, labels), 2, DISCRIMINATOR)
    model.step((images, labels), 3, DISCRIMINATOR)  # used once, gone
    assert not torch.equal(seen.calls[-1][0][BATCH:], drawn.calls[2][2])


def test_a_discriminator_that_compares_images_sees_real_and_generated_ones_apart() -> None:
    small = ["model/networks=residual", "datamodule=digits", "datamodule.img_size=28", "model.mismatched_labels=0.25"]
    model = build_model(compose_config("train", *small))
    images, labels = torch.rand(12, 1, 28, 28) * 2 - 1, torch.arange(12) % 3
    drawn = Spy(model.generator)
    losses: dict[str, torch.Tensor] = {}
    for optimizer_idx in (GENERATOR, DISCRIMINATOR):
        losses |= model.step((images, labels), 0, optimizer_idx)[0]
    assert losses["d_real"] == pytest.approx(float(model.discriminator(images, labels).mean()), abs=1e-5)
    generated = drawn.calls[0][2]
    assert losses["d_fake"] == pytest.approx(float(model.discriminator(generated, labels).mean()), abs=1e-5)
    assert "d_mismatched" in losses


# Training


def test_each_backward_pass_reaches_one_network(tmp_path: Path) -> None:
    model = make_model()
    g, d = list(model.generator.parameters()), list(model.discriminator.parameters())
    seen = []

    class Look(Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append([[None if p.grad is None else p.grad.clone() for p in network] for network in (g, d)])

    quiet_trainer(tmp_path, Look(), max_steps=1).fit(model, loader())

    (g_first, d_first), (g_second, d_second) = seen
    assert all(grad is None for grad in d_first)
    assert all(grad.any() for grad in g_first + d_second)
    assert all(torch.equal(a, b) for a, b in zip(g_first, g_second, strict=True))
    assert all(p.requires_grad for p in g + d)


def test_what_is_frozen_by_hand_stays_as_it_is(tmp_path: Path) -> None:
    model = make_model()
    by_hand = [model.generator.label_embedding, model.discriminator.label_embedding]
    for part in by_hand:
        part.requires_grad_(False)
    before = [part.weight.clone() for part in by_hand]

    quiet_trainer(tmp_path).fit(model, loader())

    assert all(torch.equal(old, part.weight) for old, part in zip(before, by_hand, strict=True))
    assert [p.requires_grad for p in model.parameters()].count(False) == len(by_hand)


def test_the_generator_runs_once_a_batch_and_both_networks_get_the_same(tmp_path: Path) -> None:
    model = make_model()
    drawn, seen = Spy(model.generator), Spy(model.discriminator)
    quiet_trainer(tmp_path).fit(model, loader())

    assert len(drawn.calls) == BATCHES
    assert len(seen.calls) == 2 * BATCHES
    for i, (noise, labels, fake) in enumerate(drawn.calls):
        images, real_labels = make_batch(i)
        assert noise.shape == (BATCH, LATENT_DIM)
        assert torch.equal(labels, real_labels)
        for_g, for_d = seen.calls[2 * i : 2 * i + 2]
        assert torch.equal(for_g[0], fake) and torch.equal(for_g[1], labels)
        assert torch.equal(for_d[0], torch.cat([images, fake]))
        assert torch.equal(for_d[1], torch.cat([labels, labels]))


def test_a_step_is_a_batch(tmp_path: Path) -> None:
    model = make_model()
    seen = Spy(model.generator)
    saved = ModelCheckpoint(str(tmp_path / "ckpts"), filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, saved, max_epochs=2)
    trainer.fit(model, loader())

    assert trainer.global_step == len(seen.calls) == 2 * BATCHES
    assert {p.name for p in (tmp_path / "ckpts").iterdir()} == {"step=3.ckpt", "step=6.ckpt", "step=9.ckpt"}
    for optimizer in trainer.optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {2 * BATCHES}


def test_max_steps_counts_batches(tmp_path: Path) -> None:
    model = make_model()
    seen = Spy(model.generator)
    trainer = quiet_trainer(tmp_path, max_steps=7, max_epochs=-1)
    trainer.fit(model, loader())
    assert trainer.global_step == len(seen.calls) == 7


def test_metrics_are_logged_at_batches(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_epochs=2, log_every_n_steps=2, limit_val_batches=1)
    trainer.loggers = [CSVLogger(tmp_path, name="csv", version="")]
    trainer.fit(make_model(), loader(), loader())

    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    steps = {key: [int(row["step"]) for row in rows if row[key]] for key in rows[0]}
    keys = {"g_loss", "grad_norm_g", "grad_norm_d", "lr_g", "lr_d"} | D_KEYS
    # Lightning numbers batches from 0.
    assert all(steps[f"train/{key}"] == [1, 3, 5, 7, 9] for key in keys)
    assert all(steps[f"val/{key}"] == [4, 9] for key in {"g_loss"} | D_KEYS)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_leaves_the_random_numbers_of_training_alone(tmp_path: Path, verb: str) -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    model, trainer = make_model(), quiet_trainer(tmp_path, limit_val_batches=2)
    before = states()
    metrics = getattr(trainer, verb)(model, loader(), verbose=False)
    assert states() == before
    assert len(metrics[0]) == 8


def test_on_epoch_end_runs_once_an_epoch_of_training(tmp_path: Path) -> None:
    class Counts(MNISTGANModel):
        def on_epoch_end(self) -> None:
            epochs.append(self.current_epoch)

    epochs: list[int] = []
    trainer = quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=2, num_sanity_val_steps=2)
    trainer.fit(make_model(Counts), loader(), loader())
    assert epochs == [0, 1, 2]


def test_broken_weights_stop_the_run_and_spare_the_checkpoint(tmp_path: Path) -> None:
    kept: list[bytes] = []

    class Break(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                kept.append((tmp_path / "last.ckpt").read_bytes())
                pl_module.discriminator.label_embedding.weight.data[0, 0] = float("nan")

    checkpoint = Checkpoint(dirpath=str(tmp_path))
    with pytest.raises(DivergedError, match=r"epoch 1: .*model\.optimizer_g\.lr"):
        quiet_trainer(tmp_path, Break(), checkpoint, max_epochs=3).fit(make_model(), loader())
    assert kept == [(tmp_path / "last.ckpt").read_bytes()]
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


# Use

LABELS, NOISE = torch.tensor([0, 2]), torch.zeros(2, LATENT_DIM)
REFUSED = [
    ([0, 2], NOISE, "labels must be a tensor"),
    (torch.tensor(1), NOISE, r"labels must be \[N\].*not \[\]"),
    (LABELS[None], NOISE, r"labels must be \[N\].*not \[1, 2\]"),
    (LABELS.float(), NOISE, "labels must be int64, not torch.float32"),
    (LABELS.int(), NOISE, "labels must be int64, not torch.int32"),
    (torch.tensor([0, 3]), NOISE, "labels must be 0 to 2, not 0 to 3"),
    (torch.tensor([-1, 0]), NOISE, "labels must be 0 to 2, not -1 to 0"),
    (LABELS, [[0.0] * LATENT_DIM] * 2, "noise must be a tensor"),
    (LABELS, NOISE[:1], r"noise must be \[2, 5\].*not \[1, 5\]"),
    (LABELS, NOISE[:, :4], r"noise must be \[2, 5\].*not \[2, 4\]"),
    (LABELS, NOISE[0], r"noise must be \[2, 5\].*not \[5\]"),
    (LABELS, NOISE.long(), "noise must be torch.float32.*not torch.int64"),
    (LABELS, NOISE.double(), "noise must be torch.float32.*not torch.float64"),
    (LABELS, NOISE / 0, "noise must be finite"),
]


@pytest.mark.parametrize(("labels", "noise", "message"), REFUSED)
def test_forward_and_generate_refuse_what_does_not_fit(labels, noise, message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model(noise, labels)
    with pytest.raises(ValueError, match=message):
        model.generate(labels, noise=noise)


def test_generate_depends_on_the_generator_alone() -> None:
    model = make_model()
    first = model.generate(LABELS, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = model.generate(LABELS, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, model.generate(LABELS, torch.Generator().manual_seed(2)))
    noise = model.draw_noise(2, torch.Generator().manual_seed(1))
    assert torch.equal(first, model.generate(LABELS, noise=noise))


def test_generate_makes_images_and_changes_nothing() -> None:
    model = make_model().train()
    model.generator.model[3].eval()  # one BatchNorm frozen by hand
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    images = model.generate(torch.tensor([0, 1, 2, 2]), torch.Generator().manual_seed(0))

    assert images.shape == (4, 1, IMG_SIZE, IMG_SIZE) and not images.requires_grad
    assert images.min() >= -1 and images.max() <= 1
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_generate_restores_the_mode_when_it_fails() -> None:
    model = make_model().train()
    model.generator.model[0] = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        model.generate(LABELS)
    assert all(module.training for module in model.generator.modules())


def test_the_moving_average_draws_the_samples() -> None:
    model = make_model(ema_half_life=100).eval()
    before = model.generate(LABELS, noise=NOISE)
    nn.init.constant_(model.generator.model[-2].bias, 9.0)
    assert torch.equal(model.generate(LABELS, noise=NOISE), before)
    assert not torch.equal(model(NOISE, LABELS), before)


def test_training_moves_the_average_by_the_images_of_each_batch(tmp_path: Path) -> None:
    model = make_model(ema_half_life=100)
    before = model.ema.network.model[0].weight.clone()
    quiet_trainer(tmp_path).fit(model, loader())
    assert int(model.ema.images_seen) == BATCHES * BATCH
    assert not torch.equal(model.ema.network.model[0].weight, before)
    assert not torch.equal(model.ema.network.model[0].weight, model.generator.model[0].weight)


def test_interpolation_begins_at_one_class_and_ends_at_the_other() -> None:
    model = make_model(ema_half_life=100).eval()
    noise = torch.randn(3, LATENT_DIM)
    labels, others = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])

    ends = [model.interpolate(labels, others, torch.full((3,), w), noise) for w in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], model.generate(labels, noise=noise))
    torch.testing.assert_close(ends[1], model.generate(others, noise=noise))
    halfway = model.interpolate(labels, others, torch.full((3,), 0.5), noise)
    assert min((halfway - end).abs().mean() for end in ends) > 1e-4
    torch.testing.assert_close(model.generate(labels, noise=noise), ends[0])  # nothing is left behind


def test_without_its_average_a_model_draws_other_images() -> None:
    model = make_model(ema_half_life=100)
    noise, labels = torch.randn(3, LATENT_DIM), torch.arange(3)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(0.1)
    raw = model.generate(labels, noise=noise, average=False)
    assert not torch.allclose(raw, model.generate(labels, noise=noise))
    torch.testing.assert_close(raw, model.generator.eval()(noise, labels).detach())
    assert model.has_average and not make_model().has_average


def test_losses_of_a_validation_are_means_over_images(tmp_path: Path) -> None:
    model = make_model()
    images, labels = make_batch()
    batches = [(images, labels), (images[:3].flip(0), labels[:3].flip(0))]
    seen: list[float] = []

    class Reads(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["val/g_loss"]))

    trainer = quiet_trainer(tmp_path, Reads(), limit_val_batches=1.0)
    (metrics,) = trainer.validate(model, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    found = [model.eval().step(batch, i)[0] for i, batch in enumerate(batches)]
    for name in found[0]:
        mean = (found[0][name] * BATCH + found[1][name] * 3) / (BATCH + 3)
        assert metrics[f"val/{name}"] == pytest.approx(float(mean)), name
    (again,) = trainer.validate(model, DataLoader(batches[1:], batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert again["val/g_loss"] != metrics["val/g_loss"]  # nothing is left of the first
    assert seen == [metrics["val/g_loss"], again["val/g_loss"]]


@pytest.mark.parametrize(
    ("loss", "scores", "expected"),
    [
        # D's scores of two real images and of two generated ones, and what they are taken for.
        (LSGANLoss(), [0.6, 0.4, 0.2, 0.7], [[1, 1], [1, 1]]),
        (NonSaturatingLoss(), [0.6, 0.4, -0.2, 0.7], [[2, 0], [1, 1]]),
        (WassersteinLoss(), [9.0, 8.0, 7.0, 8.6], [[1, 1], [1, 1]]),  # midway between the means: 8.15
        (RelativisticLoss(), [9.0, 8.9, 7.0, 6.0], [[2, 0], [0, 2]]),
    ],
)
def test_what_d_takes_for_real(tmp_path: Path, loss, scores: list[float], expected: list[list[int]]) -> None:
    class Black(nn.Module):
        def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(labels), 1, IMG_SIZE, IMG_SIZE), -1.0)

    class Told(nn.Module):
        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            told = torch.tensor(scores[2:] if bool((images == -1).all()) else scores[:2])
            return told.repeat_interleave(BATCH // 2)[:, None]

    model = make_model(loss=loss, spectral_norm=isinstance(loss, WassersteinLoss))
    model.generator, model.discriminator = Black(), Told()
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
    (metrics,) = trainer.validate(model, loader(), verbose=False)
    counts = torch.tensor(expected) * BATCHES * BATCH // 2
    assert torch.equal(model.confusions["d_confusion"], counts)
    assert metrics["val/d_accuracy"] == pytest.approx(float(counts.trace() / counts.sum()))
