"""A new run begins with the weights of another that fit, and with nothing else of it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.run.checkpoints import read_checkpoint, take_weights
from tests.conftest import QUICK, Train, Typed, assert_same, build_model, compose_config, load

TEN = [str(label) for label in range(10)]


def model_of(*overrides: str) -> Any:
    torch.manual_seed(1)
    return build_model(compose_config("train", *QUICK[:1], *overrides))


def embeddings(model: Any) -> list[str]:
    modules = model.named_modules()
    return [f"{name}.weight" for name, m in modules if isinstance(m, torch.nn.Embedding) and not name.startswith("ema")]


def test_the_same_model_takes_over_all(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, before = model_of("model.ema_half_life=500"), read_checkpoint(checkpoint)
    take_weights(before, model, TEN, checkpoint)
    raw = {name: weight for name, weight in before["state_dict"].items() if not name.startswith("ema.")}
    assert_same({name: model.state_dict()[name] for name in raw}, raw)
    # The average begins there, and has seen nothing.
    assert_same(dict(model.ema.network.state_dict()), dict(model.generator.state_dict()))
    assert model.ema.images_seen == 0
    assert caplog.messages == [f"init_from={checkpoint}: {len(raw)} of {len(raw)} weights taken over"]


def test_classes_are_matched_by_name(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, before = model_of("model.n_classes=3"), read_checkpoint(checkpoint)
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    take_weights(before, model, ["7", "cat", "2"], checkpoint)
    assert len(embeddings(model)) == 2
    for name in embeddings(model):
        theirs, ours = before["state_dict"][name], model.state_dict()[name]
        if theirs.shape[1:] == ours.shape[1:]:
            assert torch.equal(ours[0], theirs[7]) and torch.equal(ours[2], theirs[2])
            assert torch.equal(ours[1], first[name][1])
            assert f"{name}" in caplog.text and "the rows of 2 of 3 classes" in caplog.text


def test_classes_of_other_names_begin_anew(checkpoint: Path) -> None:
    model, before = model_of(), read_checkpoint(checkpoint)
    first = {name: model.state_dict()[name].clone() for name in embeddings(model)}
    take_weights(before, model, [f"cloth {label}" for label in TEN], checkpoint)
    for name, weight in first.items():
        assert torch.equal(model.state_dict()[name], weight)


def test_a_flow_model_takes_classes_by_name_and_no_class_as_it_is() -> None:
    flow = ["model=flow_model", "model.denoiser.width=16", "model.denoiser.depth=1"]
    theirs, ours = model_of(*flow), model_of(*flow, "seed=2")
    conditioner = theirs.network.conditioner
    torch.nn.init.normal_(conditioner.of_nothing)
    before = {"state_dict": theirs.state_dict(), "data": {"classes": TEN}}
    take_weights(before, ours, TEN[::-1], "a.ckpt")
    assert torch.equal(ours.network.conditioner.embedding.weight, conditioner.embedding.weight.flip(0))
    assert torch.equal(ours.network.conditioner.of_nothing, conditioner.of_nothing)


@pytest.mark.parametrize("data", ["digits", {"classes": 10}, {}, None])
def test_a_file_may_say_anything_about_its_data(checkpoint: Path, data: Any) -> None:
    before = read_checkpoint(checkpoint) | {"data": data}
    model = model_of()
    take_weights(before, model, TEN, checkpoint)
    name = "generator.model.0.weight"
    assert torch.equal(model.state_dict()[name], before["state_dict"][name])


def test_what_is_of_another_size_begins_anew(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, before = model_of("datamodule.img_size=16"), read_checkpoint(checkpoint)
    take_weights(before, model, TEN, checkpoint)
    state = model.state_dict()
    same = [n for n, w in before["state_dict"].items() if n in state and state[n].shape == w.shape]
    assert 0 < len(same) < len(state)
    assert_same({name: state[name] for name in same}, {name: before["state_dict"][name] for name in same})
    assert f"{len(same)} of {len(state)} weights taken over; begun anew: " in caplog.text
    assert "generator.model.11.weight" in caplog.text


def test_nothing_that_fits_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"init_from=.* has no weights that fit this model"):
        take_weights(read_checkpoint(checkpoint), torch.nn.Linear(2, 2), TEN, checkpoint)  # type: ignore[arg-type]


def test_a_run_of_its_own(checkpoint: Path, train_here: Train) -> None:
    few = ["logger=none", "trainer.limit_train_batches=1", "trainer.max_epochs=1", "callbacks.quality=null"]
    few += ["callbacks.model_checkpoint.monitor=null", "model.optimizer_g.lr=1e-9", "model.optimizer_d.lr=1e-9"]
    run_dir = train_here("run", *few, f"init_from={checkpoint}")
    made, before = load(run_dir), read_checkpoint(checkpoint)
    assert made["global_step"] == 1 and made["config"]["init_from"] == str(checkpoint.resolve())
    assert made["optimizer_states"][0]["state"][0]["step"] == 1
    name = "generator.model.0.weight"
    assert torch.allclose(made["state_dict"][name], before["state_dict"][name], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init_from=nope.ckpt"], "init_from=nope.ckpt does not exist"),
        (["init_from=last"], "init_from=last finds no"),
        (["init_from=https://"], "init_from=https:// names no server"),
        (["init_from=text.ckpt"], "init_from="),
        (["init_from=a.ckpt", "ckpt_path=b.ckpt"], "type one of them"),
    ],
)
def test_what_cannot_be_begun_from(typed: Typed, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint", encoding="utf-8")
    code, stderr = typed(*QUICK, "logger=none", *arguments)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and says in errors[0], stderr
    assert "ckpt_path=text" not in stderr
