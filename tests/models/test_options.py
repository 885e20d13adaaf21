"""Every option of the model changes what is learnt, and options that contradict each other are refused by name."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.functional import softplus

from src.config.instantiate import instantiate
from src.errors import UserError
from src.models.losses import NonSaturatingLoss
from src.models.mnist_gan_model import DISCRIMINATOR, MNISTGANModel
from src.models.scheduled_model import ScheduledModel
from tests.conftest import ROOT, SMALL_TEXT_MODEL, assert_same, build_model, compose_config, load
from tests.models.test_mnist_gan_model import BATCH, BATCHES, Spy, loader, make_batch, make_model, quiet_trainer
from tests.models.test_stable_diffusion_model import FLIPS as STABLE_DIFFUSION
from tests.models.test_stable_diffusion_model import NOT_LEARNT

R1 = "model.penalties.r1={_target_: src.models.penalties.R1, gamma: 1.0, every: 1}"
NOISE = "model.augment.instance_noise={_target_: src.models.augment.InstanceNoise, std: 0.2, until: 0.8}"
SHIFT = "model.augment.diffaugment={_target_: src.models.augment.DiffAugment, translation: 0.125}"
PENALTY = "model.penalties.gradient_penalty={_target_: src.models.penalties.GradientPenalty, weight: 10.0, every: 1}"
FLOW = " ".join([*SMALL_TEXT_MODEL, "model.ema_half_life=null"])
# What is composed, and what is then changed; both are trained for five batches.
FLIPS = [
    ("", "model.latent_dim=50"),
    ("", "model.optimizer_g.lr=1e-3"),
    ("", "model.optimizer_d.lr=1e-3"),
    ("", "model.optimizer_g.betas=[0.0,0.9]"),
    ("", "model.optimizer_d.betas=[0.0,0.9]"),
    ("", "model.networks=dcgan"),
    ("model.networks=dcgan", "model.generator.width=16"),
    ("model.networks=dcgan", "model.discriminator.width=16"),
    ("", "model.networks=residual"),
    ("model.networks=residual", "model.generator.width=16"),
    ("model.networks=residual", "model.discriminator.width=16"),
    ("model.networks=residual", "model.discriminator.features=16"),
    ("model.networks=residual", "model.discriminator.minibatch_std=false"),
    ("", "model.objective=hinge"),
    ("", "model.objective=non_saturating"),
    ("", "model.objective=wasserstein"),
    ("", "model.objective=relativistic"),
    ("model.objective=hinge", "model.spectral_norm=false"),
    ("", "model.spectral_norm_g=true"),
    ("", "model.label_smoothing=0.1"),
    ("", "model.mismatched_labels=0.5"),
    ("", "model.clip_grad_norm=0.01"),
    ("", "model.d_steps=2"),
    ("", R1),
    (R1, "model.penalties.r1.gamma=9.0"),
    (R1, "model.penalties.r1.every=2"),
    ("model.objective=relativistic", "model.penalties.r2=null"),
    ("", PENALTY),
    (PENALTY, "model.penalties.gradient_penalty.weight=1.0"),
    (PENALTY, "model.penalties.gradient_penalty.every=2"),
    ("", NOISE),
    (NOISE, "model.augment.instance_noise.std=0.1"),
    (NOISE, "model.augment.instance_noise.until=0.3"),
    (NOISE, "model.schedule_batches=1000"),
    ("", SHIFT),
    (SHIFT, "model.augment.diffaugment.translation=0.25"),
    *((SHIFT, f"+model.augment.diffaugment.{name}=0.5") for name in ("cutout", "brightness", "contrast")),
    ("", "model.schedule=linear"),
    ("", "model.schedule=cosine"),
    ("model.schedule=linear", "model.schedule.warmup=0.5"),
    ("model.schedule=linear", "model.schedule.hold=0.0"),
    ("model.schedule=linear", "model.schedule.final=0.5"),
    ("model.schedule=linear", "model.schedule_batches=2"),
    ("", "model.ema_half_life=100"),
    ("model.ema_half_life=100", "model.ema_half_life=1"),
    *(
        (FLOW, f"model.{changed}")
        for changed in (
            "optimizer.lr=1e-2",
            "optimizer.betas=[0.5,0.9]",
            "optimizer.weight_decay=0.5",
            "denoiser.width=32",
            "denoiser.depth=2",
            "condition_dim=16",
            "conditioner.width=32",
            "conditioner.n_layers=1",
            "condition=label",
            "prompts.names=[a,b,c,d,e,f,g,h,i,j]",
            "prompts.templates=['a {}']",
            "prompts.fillers=0.0",
            "prompts.typos=1.0",
            "time_mean=0.5",
            "time_std=0.1",
            "condition_dropout=0.9",
            "guidance=4.0",
            "steps=1",
            "solver=euler",
            "shift=2.0",
        )
    ),
]


def composed(*overrides: str) -> DictConfig:
    """With the groups of the model written as its keys are."""
    groups = ("networks", "objective", "schedule", "condition")
    typed = [
        f"model/{o.removeprefix('model.')}" if o.startswith(tuple(f"model.{g}=" for g in groups)) else o
        for each in overrides
        for o in (each.split(" ") if each == FLOW else [each])
        if o
    ]
    return compose_config("train", "datamodule=digits", *typed)


@functools.cache  # many options start from the same
def drawn_after_five_batches(folder: Path, *overrides: str) -> torch.Tensor:
    """What the trained model draws."""
    config = composed(*overrides)
    torch.manual_seed(0)
    model, datamodule = build_model(config), instantiate(config, "datamodule")
    torch.manual_seed(1)
    quiet_trainer(folder, max_steps=5).fit(model, datamodule)
    return model.generate(torch.arange(10), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("base", "changed"), FLIPS)
def test_an_option_changes_what_is_learnt(folder: Path, base: str, changed: str) -> None:
    before = drawn_after_five_batches(folder, base)
    assert not torch.equal(before, drawn_after_five_batches(folder, base, changed))


def test_nothing_else_changes_what_is_learnt(folder: Path) -> None:
    drawn = drawn_after_five_batches.__wrapped__
    for base in {base for base, _ in FLIPS}:
        assert torch.equal(drawn(folder, base), drawn_after_five_batches(folder, base)), base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_every_option_is_flipped() -> None:
    """A key in configs/model/ that no line above changes might silently do nothing."""
    flipped = {part.partition("=")[0].lstrip("+").replace("model/", "model.") for _, part in FLIPS}
    flipped |= {f"model.{part.partition('=')[0]}" for part in [*STABLE_DIFFUSION, *NOT_LEARNT]}
    # These follow the data, see tests/test_configs.py, or an encoder, see test_frozen_text.py, or are there to measure.
    ours_elsewhere = {"n_classes", "channels", "img_size", "held_out", "encoder", "sha256", "n_features", "cache_dir"}
    for file in (ROOT / "configs" / "model").rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(content, dict)
        for key in leaves({k: v for k, v in content.items() if k != "defaults"}):
            under_schedule = file.parent.name == "schedule" and not key.startswith("schedule")
            name = f"model.{'schedule.' if under_schedule else ''}{key}"
            if key.rpartition(".")[2] in ours_elsewhere | {
                "_target_",
                "_partial_",
                "fused",
                "compile",
                "latent_dim",
                "dim",
                "condition_dim",
            }:
                continue
            assert name in flipped or any(f.startswith(f"{name}.") for f in flipped) or is_swept(name), name


def is_swept(name: str) -> bool:
    """R2 takes its numbers as R1 does, and is flipped whole."""
    return name.startswith("model.penalties.r2.")


def leaves(part: dict, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in part.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.loss._target_=src.models.losses.WassersteinLoss"], r"model\.loss is WassersteinLoss, which needs a"),
        (["model.objective=hinge", "model.label_smoothing=0.1"], r"model\.label_smoothing is 0\.1, but HingeLoss has"),
        (["model.label_smoothing=0.5"], r"model\.label_smoothing must be a number from 0 to below 0\.5"),
        (["model.mismatched_labels=2"], r"model\.mismatched_labels must be a number from 0 to 1, not 2"),
        (["model.mismatched_labels=0.5", "model.n_classes=1"], r"model\.mismatched_labels .* with one class"),
        (["model.clip_grad_norm=0"], r"model\.clip_grad_norm must be a positive number or null"),
        (["+model.penalties.r3=1.0"], r"model\.penalties\.r3 must be a part with a _target_ or null"),
        (["model.ema_half_life=-5"], r"model\.ema_half_life must be a number or null for no average"),
        (["model.d_steps=0"], r"model\.d_steps must be a whole number of at least 1"),
        (["model.schedule_batches=0"], r"model\.schedule_batches must be"),
        ([R1, "model.penalties.r1.gamma=-1"], r"model\.penalties\.r1\.gamma must be a positive number"),
        (
            [R1, "model.penalties.r1.every=abc"],
            r"model\.penalties\.r1\.every must be a whole number of at least 1",
        ),
        ([R1, "+model.penalties.r1.gama=1"], r"model\.penalties\.r1\.gama is not an option of R1"),
        ([SHIFT, "+model.augment.diffaugment.saturation=0.5"], r"model\.augment cannot use diffaugment: saturation"),
        (
            [NOISE, "model.augment.instance_noise.until=2"],
            r"model\.augment\.instance_noise\.until must be a number",
        ),
        (["model.schedule=linear", "model.schedule.hold=2"], r"model\.schedule\.hold must be a number from 0 to 1"),
        (["model.networks=dcgan", "datamodule.img_size=30"], r"img_size must be 4 to 7 pixels doubled"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(composed(*overrides))


def test_penalties_refuse_a_discriminator_whose_scores_depend_on_other_images() -> None:
    config = composed(R1)
    discriminator = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    arguments = {"generator": torch.nn.Linear(1, 1), "discriminator": discriminator}
    penalties = {"r1": instantiate(config, "model.penalties.r1")}
    with pytest.raises(ValueError, match=r"penalties \(r1\) cannot be used with BatchNorm"):
        MNISTGANModel(**arguments, penalties=penalties)


@pytest.mark.parametrize(("option", "network"), [("spectral_norm", "discriminator"), ("spectral_norm_g", "generator")])
def test_spectral_norm_is_not_put_on_twice(option: str, network: str) -> None:
    networks = {"generator": torch.nn.Linear(1, 1), "discriminator": torch.nn.Linear(1, 1)}
    torch.nn.utils.parametrizations.spectral_norm(networks[network])
    with pytest.raises(ValueError, match=f"{option} is true, but the {network} brings its own: set it to false"):
        MNISTGANModel(**networks, **{option: True})


def test_a_run_that_may_end_before_its_schedule_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = {"max_epochs": 1, "limit_train_batches": 1, "max_time": "00:00:10:00"}
    for option, n_warnings in [("model.schedule_batches=100", 0), ("model.schedule_batches=null", 1)]:
        model = build_model(composed("model.schedule=linear", option))
        quiet_trainer(tmp_path, **limits).fit(model, instantiate(composed(), "datamodule"))
        assert caplog.text.count("trainer.max_time may end the run before model.schedule") == n_warnings


def test_what_follows_the_progress_of_a_run_needs_its_end(tmp_path: Path) -> None:
    model = build_model(composed("model.schedule=linear"))
    datamodule = instantiate(composed(), "datamodule")
    with pytest.raises(UserError, match=r"model\.schedule .* no end: set trainer\.max_epochs"):
        quiet_trainer(tmp_path, max_epochs=-1).fit(model, datamodule)


def test_a_run_too_short_for_an_option_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet_trainer(tmp_path).fit(make_model(d_steps=9), loader())
    assert "model.d_steps=9 is never reached, as the run has only 5 batches" in caplog.text


def test_what_is_not_computed_on_every_batch_is_logged_all_the_same(tmp_path: Path) -> None:
    """Five batches an epoch: G's fourth step and the log's fifth never meet."""
    model = make_model(d_steps=4, loss=NonSaturatingLoss())
    trainer = quiet_trainer(tmp_path, log_every_n_steps=5)
    trainer.fit(model, loader())
    assert trainer.callback_metrics["train/g_loss"] > 0
    assert trainer.callback_metrics["train/grad_norm_g"] > 0


@pytest.mark.parametrize(
    ("option", "network", "n"), [("spectral_norm", "discriminator", 5), ("spectral_norm_g", "generator", 5)]
)
def test_spectral_norm_bounds_every_layer(option: str, network: str, n: int) -> None:
    torch.manual_seed(0)
    model = build_model(composed(f"model.{option}=true")).train()
    for _ in range(50):  # the estimate gets better with each pass
        images = model.generator(torch.randn(8, 100), torch.arange(8))
        model.discriminator(images, torch.arange(8))
    layers = [m for m in getattr(model, network).modules() if "parametrizations" in m._modules]
    norms = torch.stack([torch.linalg.matrix_norm(m.weight, 2) for m in layers])
    torch.testing.assert_close(norms, torch.ones(n), rtol=0.02, atol=0)


def test_mismatched_labels_are_wrong_and_count_as_generated() -> None:
    model = make_model(mismatched_labels=0.4, loss=NonSaturatingLoss()).eval()
    seen = Spy(model.discriminator)
    images, labels = make_batch()
    losses, objective = model.step((images, labels), 0, DISCRIMINATOR)

    ((shown, told, scores),) = seen.calls
    assert len(shown) == 2 * BATCH + 4  # 0.4 of 8, rounded up
    assert torch.equal(shown[2 * BATCH :], images[:4])
    assert (told[2 * BATCH :] != labels[:4]).all() and told.max() < 3
    real, fake, wrong = scores.split([BATCH, BATCH, 4])
    expected = softplus(torch.cat([fake, wrong])).mean()  # each image counts alike
    torch.testing.assert_close(losses["d_fake_loss"], expected)
    torch.testing.assert_close(objective, (softplus(-real).mean() + expected) / 2)
    assert losses["d_mismatched"] == wrong.mean()
    assert "d_mismatched" not in model.step((images, labels), 0)[0]  # nothing is optimised


def test_d_steps_train_the_generator_on_every_nth_batch(tmp_path: Path) -> None:
    model = make_model(d_steps=2, ema_half_life=100)
    drawn, seen = Spy(model.generator), Spy(model.discriminator)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, loader())

    assert trainer.global_step == BATCHES == 5
    steps = [{int(state["step"]) for state in optimizer.state.values()} for optimizer in trainer.optimizers]
    assert steps == [{2}, {5}]  # G's and D's
    assert len(drawn.calls) == 5 and len(seen.calls) == 2 + 5
    assert int(model.ema.images_seen) == 4 * BATCH  # half-lives count the images of D's batches, too


def test_lazy_penalties_come_on_every_nth_batch(tmp_path: Path) -> None:
    from src.models.penalties import R1 as Penalty

    class Counts(Penalty):
        def __call__(self, *args):
            applied.append(model.trainer.global_step + 1)
            return super().__call__(*args)

    applied: list[int] = []
    model = make_model(penalties={"r1": Counts(every=2)})
    quiet_trainer(tmp_path, max_epochs=2).fit(model, loader())
    assert applied == [2, 4, 6, 8, 10]


def test_rates_follow_the_schedule_by_the_batch(tmp_path: Path) -> None:
    from pytorch_lightning import Callback

    from src.models.schedules import LinearSchedule

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    rates: list[list[float]] = []
    quiet_trainer(tmp_path, Look(), max_epochs=2).fit(make_model(schedule=LinearSchedule(hold=0.5)), loader())
    expected = [2e-4 * min(1.0, (10 - batch) / 5) for batch in range(10)]
    assert [g for g, _ in rates] == [d for _, d in rates] == pytest.approx(expected)


def test_clipping_bounds_each_networks_gradients(tmp_path: Path) -> None:
    from pytorch_lightning import Callback

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for network in (pl_module.generator, pl_module.discriminator):
                norms.append(torch.nn.utils.get_total_norm([p.grad for p in network.parameters()]).item())

    norms: list[float] = []
    quiet_trainer(tmp_path, Look()).fit(make_model(clip_grad_norm=0.01), loader())
    assert len(norms) == 2 * BATCHES and norms == pytest.approx([0.01] * len(norms), rel=1e-3)


@pytest.mark.parametrize("base", ["", FLOW])
def test_with_float16_gradients_are_scaled_and_cannot_be_clipped(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning does on a GPU; their norm is logged as if they were not."""
    norms, data = [], instantiate(composed(), "datamodule")
    for scale in (None, 4.0):
        monkeypatch.setattr(ScheduledModel, "_scale", lambda *_, scale=scale: scale)
        trainer = quiet_trainer(tmp_path, max_steps=1)
        torch.manual_seed(0)
        trainer.fit(build_model(composed(base)), data)
        norms += [value for name, value in trainer.callback_metrics.items() if "grad_norm" in name]
    before, after = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert before and torch.allclose(torch.stack(before), 4 * torch.stack(after))
    model = build_model(composed(base, "model.clip_grad_norm=1"))
    with pytest.raises(UserError, match=r"model\.clip_grad_norm cannot be used with trainer\.precision=16-mixed"):
        quiet_trainer(tmp_path).fit(model, data)


def test_lightning_has_unscaled_what_is_not_fused() -> None:
    scaler = SimpleNamespace(get_scale=lambda: 4.0)
    model = SimpleNamespace(trainer=SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler)))
    weights = [torch.nn.Parameter(torch.ones(2))]
    for fused in (True, False):
        for automatic, meant in ((True, 4.0 if fused else None), (False, 4.0)):
            model.automatic_optimization = automatic
            optimizer = torch.optim.Adam(weights, fused=fused)
            assert ScheduledModel._scale(model, optimizer) == meant  # type: ignore[arg-type]


def test_everything_at_once_is_resumed_exactly(train_here: Callable[..., Path]) -> None:
    """Schedules, noise and lazy penalties are functions of the batch: nothing of them is lost."""
    options = ["model/schedule=cosine", "model/objective=relativistic", NOISE, SHIFT, "model.spectral_norm=true"]
    options += ["model.spectral_norm_g=true"]
    options += ["model.mismatched_labels=0.1", "model.clip_grad_norm=1.0", "model.d_steps=2"]
    options += ["model.ema_half_life=500", "model.schedule_batches=20", "logger=none", "datamodule.subset=640"]
    whole = train_here("whole", *options, "trainer.max_epochs=2")
    first = train_here("first", *options, "trainer.max_steps=7")
    rest = train_here("rest", *options, "trainer.max_epochs=2", f"ckpt_path={first}/ckpts/last.ckpt")
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(load(whole)[key], load(rest)[key], key)
