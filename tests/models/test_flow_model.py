import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from src.models.flow_model import LEVELS, FlowModel
from src.models.modules.conditioners import LabelConditioner, TextConditioner
from src.models.modules.unet import FoldedUNet
from src.models.prompts import LENGTH, Prompts, to_codes, to_texts
from src.run.run_record import read_rows

DIM = 16
NAMES = [["zero", "0"], ["one", "1"], ["two", "2"]]


def denoiser() -> FoldedUNet:
    """One that draws something, and minds its condition: a new one does neither."""
    torch.manual_seed(0)
    network = FoldedUNet(1, 8, DIM, width=16, depth=1)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def labels_model(**options: object) -> FlowModel:
    return FlowModel(denoiser(), LabelConditioner(3, DIM), n_classes=3, img_size=8, **options).eval()  # type: ignore[arg-type]


def text_model(**options: object) -> FlowModel:
    conditioner, prompts = TextConditioner(DIM, width=16, n_heads=2), Prompts(NAMES, ["a {}"], ["some {}"])
    return FlowModel(denoiser(), conditioner, prompts, n_classes=3, img_size=8, **options).eval()  # type: ignore[arg-type]


class Fixed(nn.Module):
    """A denoiser that always predicts the same image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, noisy: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        return self.image.expand_as(noisy)


class OfNormal(nn.Module):
    """The best prediction where pixels are normal with a standard deviation: E[x | t x + (1 - t) e]."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std))

    def forward(self, noisy: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        t = time[:, None, None, None]
        return t * self.std**2 / (t**2 * self.std**2 + (1 - t) ** 2) * noisy


def batch(n: int = 20) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=rng) * 2 - 1, torch.arange(n) % 3


def test_captions_are_varied_in_training_alone() -> None:
    model, read = text_model(condition_dropout=0.0), list[Tensor]()
    model.network.conditioner.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    captions = torch.from_numpy(to_codes([f"a red ball on {name}" for name in ("grass", "sand", "snow", "ice")]))
    images = torch.zeros(4, 1, 8, 8)
    for training in (False, True, True):
        model.train(training).step((images, captions), 0)

    validated, first, second = read
    assert torch.equal(validated, captions)
    assert not torch.equal(first, captions) and not torch.equal(first, second)
    assert all("ball" in text or "red" in text for text in to_texts(first.numpy()))

    model.prompts = None
    model.train().step((images, captions), 0)
    assert torch.equal(read[-1], captions)


def test_no_error_no_loss() -> None:
    image = torch.full((1, 1, 8, 8), 0.3)
    model = FlowModel(Fixed(image), LabelConditioner(3, DIM), n_classes=3, img_size=8)
    losses, loss = model.step((image.expand(20, -1, -1, -1), torch.zeros(20, dtype=torch.int64)), 0)
    assert loss.item() == pytest.approx(0)
    assert set(losses) == {"loss"} | {f"loss_{level}" for level in LEVELS}


def test_loss_is_the_error_of_the_velocity() -> None:
    image, wrong = torch.full((1, 1, 8, 8), 0.3), torch.full((1, 1, 8, 8), 0.5)
    model = FlowModel(Fixed(wrong), LabelConditioner(3, DIM), n_classes=3, img_size=8).eval()
    _, loss = model.step((image.expand(20, -1, -1, -1), torch.zeros(20, dtype=torch.int64)), 7)
    time = model._times(20, torch.Generator().manual_seed(7))
    # z + (1 - t) v is the image that a velocity leads to, so an error of the image is (1 - t) times the velocity's.
    assert loss.item() == pytest.approx((0.2 / (1 - time).clamp(min=0.05)).square().mean().item(), rel=1e-5)


def test_times_follow_their_distribution() -> None:
    model = labels_model(time_mean=-0.4, time_std=1.3)
    logits = model._times(10_000, torch.Generator().manual_seed(0)).logit()
    assert logits.mean().item() == pytest.approx(-0.4, abs=0.01)
    assert logits.std().item() == pytest.approx(1.3, abs=0.01)
    assert (logits.diff() > 0).all()


@pytest.mark.parametrize("solver", ["euler", "heun", "multistep"])
def test_a_sure_network_draws_its_image(solver: str) -> None:
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    drawing = {"solver": solver, "steps": 5, "guidance": 2.0}
    model = FlowModel(Fixed(image), LabelConditioner(3, DIM), n_classes=3, img_size=8, **drawing)  # type: ignore[arg-type]
    images = model.generate(torch.arange(3), torch.Generator().manual_seed(0))
    assert torch.allclose(images, image.expand(3, -1, -1, -1), atol=1e-5)


def test_solvers_follow_a_flow_whose_end_is_known() -> None:
    std = 0.2
    noise = torch.full((1, 1, 8, 8), 0.7)

    def error(solver: str, steps: int) -> float:
        parts = OfNormal(std).double(), LabelConditioner(1, DIM).double()
        model = FlowModel(*parts, n_classes=1, img_size=8, guidance=1, solver=solver, steps=steps).double()  # type: ignore[arg-type]
        drawn = model.generate(torch.tensor([0]), noise=noise.double())
        return (drawn - std * noise).abs().max().item()  # the flow scales the noise to the data's deviation

    assert error("euler", 10) / error("euler", 20) == pytest.approx(2, rel=0.3)  # of first order
    assert error("heun", 10) < error("euler", 10) / 2
    assert error("multistep", 20) < error("heun", 10)  # which evaluates the network 19 times


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_a_run_draws_in_the_precision_it_trains_in(precision: str, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    model = labels_model(ema_half_life=None)
    model.network.denoiser.start.register_forward_hook(lambda _, __, features: seen.append(features.dtype))
    model._trainer = SimpleNamespace(precision=precision)  # type: ignore[assignment]
    assert model.generate(torch.arange(3)).dtype == torch.float32
    assert set(seen) == {dtype}


def test_guidance() -> None:
    model = text_model(steps=1, solver="euler")
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = model.encode(["a two"])
    nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
    drawn = {}
    for guidance in (0.0, 0.5, 1.0):
        model.drawing["guidance"] = guidance
        drawn[guidance] = model.generate(condition, noise=noise)
    model.drawing["guidance"] = 1.0
    without = model.generate(nothing, noise=noise)
    assert torch.allclose(drawn[0.0], without, atol=1e-6)
    assert not torch.allclose(drawn[1.0], without, atol=1e-3)
    assert torch.allclose(drawn[0.5], (drawn[0.0] + drawn[1.0]) / 2, atol=1e-6)


def test_shifted_steps_are_shorter_where_there_is_most_noise() -> None:
    seen: list[float] = []
    model = labels_model(guidance=1.0, steps=2, shift=3.0)
    model.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1][0].item()))
    model.ema = None
    model.generate(torch.arange(3), torch.Generator().manual_seed(0))
    assert seen == [0, 0.25, 0.25]


def test_a_label_is_its_canonical_prompt() -> None:
    model = text_model()
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    by_label = model.generate(torch.arange(3), noise=noise)
    assert torch.equal(by_label, model.generate(model.encode(["Zero", "one", "TWO!"]), noise=noise))
    assert not torch.allclose(by_label, model.generate(model.encode(["one", "two", "zero"]), noise=noise), atol=1e-3)


@pytest.mark.parametrize("make", [labels_model, text_model])
def test_between_two_conditions(make: type[FlowModel]) -> None:
    model = make()
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = torch.arange(3), torch.tensor([1, 2, 0])
    between = model.interpolate(a, b, torch.tensor([0.0, 0.5, 1.0]), noise)
    assert torch.allclose(between[0], model.generate(a, noise=noise)[0], atol=1e-6)
    assert torch.allclose(between[2], model.generate(b, noise=noise)[2], atol=1e-6)
    for ends in (a, b):
        assert not torch.allclose(between[1], model.generate(ends, noise=noise)[1], atol=1e-4)


def test_dropped_conditions_are_those_of_nothing() -> None:
    model = text_model()
    condition = model.encode(["a one", "a two"])
    kept = model.network.without(condition, torch.tensor([False, True]))
    assert torch.equal(kept[0], condition[0]) and not kept[1].any()
    by_label = labels_model().network.without(torch.tensor([0, 1]), torch.tensor([True, False]))
    assert by_label.tolist() == [3, 1]


def test_reads_no_text() -> None:
    with pytest.raises(ValueError, match="reads no text"):
        labels_model().encode(["a one"])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (torch.zeros(2, 5, dtype=torch.int64), r"prompts must be \[N, 128\]"),
        (torch.tensor([3]), "labels must be 0 to 2"),
    ],
)
def test_refuses_conditions(condition: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text_model().generate(condition)


def test_names_and_classes_must_fit() -> None:
    with pytest.raises(ValueError, match="names has 3 classes, but n_classes is 2"):
        FlowModel(
            FoldedUNet(1, 8, DIM, 16),
            TextConditioner(DIM, width=16, n_heads=2),
            Prompts(NAMES),
            n_classes=2,
            img_size=8,
        )


def test_text_means_the_same_with_and_without_padding() -> None:
    conditioner = TextConditioner(DIM, width=16, n_heads=2)
    codes = torch.from_numpy(to_codes(["seven", "a handwritten two on black", ""]))
    whole = conditioner.eval()(codes)
    assert torch.allclose(conditioner.train()(codes), whole, atol=1e-5)
    assert torch.allclose(conditioner.eval()(codes[:1]), whole[:1], atol=1e-5)


def test_order_and_spelling_count() -> None:
    conditioner = TextConditioner(64, width=64).eval()
    vectors = conditioner(torch.from_numpy(to_codes(["handwritten nine", "handwriten nine", "nine handwritten"])))
    typo, order = (vectors[1:] - vectors[0]).norm(dim=1)
    assert typo > 0 and order > 0


def test_more_words_than_it_reads() -> None:
    conditioner = TextConditioner(DIM, width=16, n_heads=2, n_words=3).eval()
    a, b, c = conditioner(torch.from_numpy(to_codes(["a b c", "a b c d e", "a b d"])))
    assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, c, atol=1e-4)


def test_an_untrained_network_predicts_grey() -> None:
    network = FoldedUNet(3, 16, DIM, width=16)
    images = network(torch.randn(2, 3, 16, 16), torch.rand(2), torch.randn(2, DIM))
    assert images.shape == (2, 3, 16, 16) and images.abs().max() < 1 and not math.isnan(images.sum().item())


def test_width_is_a_multiple() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        FoldedUNet(1, 28, width=20)


def test_its_curves_are_of_metrics_that_a_run_logs(train_here: Callable[..., Path]) -> None:
    small = ["model=flow_model", "model.denoiser.width=16", "model.denoiser.depth=1", "datamodule.img_size=8"]
    quick = ["trainer.max_steps=2", "trainer.log_every_n_steps=1", "test_after_training=false", "callbacks=checkpoint"]
    run_dir = train_here("run", *small, *quick, "logger=none")
    logged = {name for row in read_rows(run_dir / "metrics.jsonl") for name in row}
    assert {name for panel in FlowModel.curves for name in panel["lines"]} <= logged
