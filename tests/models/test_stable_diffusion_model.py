"""Fine-tuning a tiny Stable Diffusion: from pictures to an adapter that others read, without a network."""

import json
import logging
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from src.errors import UserError
from src.models import stable_diffusion_model
from src.models.diffusion_base import DiffusionBase
from src.models.encoded import latents_of
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.train import train
from tests.conftest import QUICK, ROOT, Typed, assert_same, compose_config, load
from tests.models.tiny_diffusion import write_stable_diffusion, write_stable_diffusion_3

pytestmark = pytest.mark.extras("diffusers", "peft", "transformers")

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
SHORT = [*QUICK[1:3], "model=stable_diffusion", "datamodule=folder", "logger=none", "datamodule.img_size=16"]
SHORT += ["datamodule.batch_size=4", "model.steps=2", "model.rank=4", "trainer.num_sanity_val_steps=0"]
SHORT += ["callbacks=checkpoint", "optimized_metric=null", "test_after_training=false"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"), block_out_channels=[8, 16])


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion_3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four captioned pictures, ten times for training, and once each for validation and test."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for name, colour in COLOURS.items():
        picture = np.full((16, 16, 3), 20, np.uint8)
        picture[4:12, 2:9] = colour
        for i, split in enumerate(["train"] * 10 + ["val", "test"]):
            Image.fromarray(picture).save(folder / f"{name}{i}.png")
            rows.append({"file_name": f"{name}{i}.png", "text": f"a {name} square", "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def composed(base: Path, pictures: Path, run_dir: Path, *typed: str) -> DictConfig:
    run_dir.mkdir(exist_ok=True, parents=True)
    where = [f"model.base={base}", f"datamodule.folder={pictures}", "datamodule.captions=text"]
    typed = (*where, f"data_dir={run_dir.parent}/data", f"work_dir={run_dir.parent}", *typed)
    return compose_config("train", *SHORT, *typed, run_dir=run_dir)


def trained(base: Path, pictures: Path, run_dir: Path, *typed: str) -> Path:
    train(composed(base, pictures, run_dir, *typed))
    return run_dir / "ckpts" / "last.ckpt"


@pytest.fixture(scope="module")
def run(sd: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch, whose adapter is scaled by 2."""
    folder = tmp_path_factory.mktemp("run") / "run"
    trained(sd, pictures, folder, "trainer.max_epochs=1", "model.alpha=8", "model.optimizer.lr=0.02")
    return folder


def drawn(checkpoint: Path, n: int = 2, **drawing: Any) -> torch.Tensor:
    model = CheckpointSampler(checkpoint, drawing=drawing).model
    return model.generate(model.encode(["a red square", "a blue square"][:n]), torch.Generator().manual_seed(0))


# What is learnt, and what is kept of it


def test_an_adapter_learns_four_pictures_by_heart(sd: Path, pictures: Path, tmp_path: Path) -> None:
    config = composed(
        *(sd, pictures, tmp_path / "run", "model.targets=all", "model.rank=32", "model.optimizer.lr=0.02"),
        *("datamodule.batch_size=20", "trainer.max_epochs=75", "callbacks=none", "model.condition_dropout=0"),
        *("trainer.check_val_every_n_epoch=75", "model/schedule=cosine", "trainer.limit_val_batches=1.0"),
    )
    losses = []
    step = stable_diffusion_model.StableDiffusionModel.step

    def spied(self: Any, batch: Any, batch_idx: int) -> Any:
        found = step(self, batch, batch_idx)
        losses.append(float(found[1]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion_model.StableDiffusionModel, "step", spied)
        train(config)
    assert np.mean(losses[-15:]) < 0.1 * np.mean(losses[:3])


def test_a_checkpoint_holds_the_adapter_alone(sd: Path, run: Path) -> None:
    checkpoint = load(run)  # weights_only=True
    assert checkpoint["state_dict"] and all(".lora_" in name for name in checkpoint["state_dict"])
    model = checkpoint["config"]["model"]
    assert (model["base"], model["sha256"]) == (str(sd), DiffusionBase(str(sd)).sha256)
    moments = checkpoint["optimizer_states"][0]["state"]
    assert len(moments) == len(checkpoint["state_dict"])
    n = sum(each.numel() for each in checkpoint["state_dict"].values())
    assert (run / "ckpts" / "last.ckpt").stat().st_size < 4 * 3 * n + 120_000


def test_a_checkpoint_draws_to_the_last_bit_what_it_drew(run: Path) -> None:
    sampler = CheckpointSampler(run / "ckpts" / "last.ckpt")
    again = CheckpointSampler(run / "ckpts" / "last.ckpt").model
    assert_same(sampler.model.state_dict(), load(run)["state_dict"])
    assert (sampler.model.noise_shape, sampler.block) == ((4, 8, 8), 64)
    codes = again.encode(["a red square"])
    ours, theirs = (m.generate(codes, torch.Generator().manual_seed(0)) for m in (sampler.model, again))
    assert torch.equal(ours, theirs)
    with again.as_base():
        assert not torch.equal(again.generate(codes, torch.Generator().manual_seed(0)), ours)
    assert torch.equal(again.generate(codes, torch.Generator().manual_seed(0)), ours)


RESUMED = ["model.dropout=0.3", "datamodule.flip=true", "model/schedule=cosine", "model.schedule_batches=15"]


@pytest.fixture(scope="module")
def whole(sd: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one and a half epochs, without a break."""
    return trained(sd, pictures, tmp_path_factory.mktemp("whole") / "run", *RESUMED, "trainer.max_steps=15")


@pytest.mark.parametrize("batch", [3, 10, 13])
def test_a_resumed_run_is_the_same_to_the_last_bit(
    sd: Path, pictures: Path, tmp_path: Path, whole: Path, batch: int
) -> None:
    from safetensors.torch import load_file

    part = trained(sd, pictures, tmp_path / "part", *RESUMED, f"trainer.max_steps={batch}")
    resumed = trained(sd, pictures, tmp_path / "resumed", *RESUMED, "trainer.max_steps=15", f"ckpt_path={part}")

    one, other = (torch.load(path, weights_only=True) for path in (whole, resumed))
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(one[key], other[key], key)
    adapters = [path.parents[1] / "lora" / "pytorch_lora_weights.safetensors" for path in (whole, resumed)]
    assert_same(*map(load_file, adapters))


def test_another_base_is_refused(sd: Path, run: Path, pictures: Path, tmp_path: Path) -> None:
    other = write_stable_diffusion(tmp_path / "other", seed=1, block_out_channels=[8, 16])
    last = run / "ckpts" / "last.ckpt"
    with pytest.raises(
        UserError, match=r"last\.ckpt was trained with another base \(.*\) than model\.base=.*: name that"
    ):
        trained(other, pictures, tmp_path / "resumed", "trainer.max_epochs=2", f"ckpt_path={last}")
    with pytest.raises(UserError, match=r"model\.base=.* has another checksum than model\.sha256"):
        trained(other, pictures, tmp_path / "typed", "model.sha256=abc")


def test_a_base_that_has_changed_or_gone_is_refused_by_the_verbs(sd: Path, pictures: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(sd, tmp_path / "base"))
    last = trained(base, pictures, tmp_path / "run", "trainer.max_steps=1")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("0.012", "0.02"), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the base that the model was trained with .* set STABLE_DIFFUSION=DIR"):
        CheckpointSampler(last)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"is not a folder.* set STABLE_DIFFUSION=DIR in \.env to where the base is"):
        CheckpointSampler(last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLE_DIFFUSION", str(sd))
        assert drawn(last).shape == (2, 3, 16, 16)


def test_a_checkpoint_that_names_a_hub_asks_no_network(run: Path, tmp_path: Path) -> None:
    checkpoint = load(run)
    checkpoint["config"]["model"]["base"] = "somebody/evil"
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"model\.base=somebody/evil is not on this machine"):
        CheckpointSampler(tmp_path / "evil.ckpt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", {"_target_": "os.system", "command": "touch x"}, r"asks for 'os\.system', which"),
        ("prompts", {"_target_": "diffusers.DiffusionPipeline.from_pretrained"}, r"asks for 'diffusers"),
        ("base", "${oc.env:HOME}", r"to be looked up; nothing was built"),
        ("rank", 10**12, r"cannot|memory|not enough|DefaultCPUAllocator|can't"),
        ("targets", ["../evil"], r"targets is .*, but the base has no linear layer"),
        ("scheduler", "evil", r"scheduler must be"),
    ],
)
def test_hostile_checkpoints(run: Path, tmp_path: Path, key: str, value: Any, message: str) -> None:
    checkpoint = load(run)
    checkpoint["config"]["model"][key] = value
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=message):
        CheckpointSampler(tmp_path / "evil.ckpt")


# For others to use


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_plain_diffusers_draws_the_same_with_the_adapter(
    kind: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import diffusers

    base = request.getfixturevalue(kind)
    typed = ["trainer.max_epochs=1", "model.alpha=8", "model.optimizer.lr=0.02", "model.guidance=3.0"]
    model = CheckpointSampler(trained(base, pictures, tmp_path / "run", *typed)).model
    options = {"local_files_only": True} | ({"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {})
    pipeline = getattr(diffusers, model.base.kind).from_pretrained(base, **options)
    pipeline.set_progress_bar_config(disable=True)
    noise = model.draw_noise(1, torch.Generator().manual_seed(0))
    how = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}

    before = pipeline("a red square", latents=noise.clone(), **how).images
    pipeline.load_lora_weights(tmp_path / "run" / "lora", weight_name="pytorch_lora_weights.safetensors")
    after = pipeline("a red square", latents=noise.clone(), **how).images

    codes = model.encode(["a red square"])
    torch.testing.assert_close(model.generate(codes, noise=noise) / 2 + 0.5, after, rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-3
    with model.as_base():
        torch.testing.assert_close(model.generate(codes, noise=noise) / 2 + 0.5, before, rtol=0, atol=1e-5)


def test_the_other_file_has_the_same_weights_under_other_names(run: Path) -> None:
    from safetensors.torch import load_file

    ours = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    theirs = load_file(run / "lora" / "kohya_lora_weights.safetensors")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert torch.equal(ours[f"{name}.lora_A.weight"], theirs[f"{flat}.lora_down.weight"])
    assert torch.equal(ours[f"{name}.lora_B.weight"], theirs[f"{flat}.lora_up.weight"])
    assert theirs[f"{flat}.alpha"] == 8
    assert len(theirs) == len(ours) * 3 // 2


def test_the_card_says_how_to_use_it(sd: Path, run: Path) -> None:
    card = (run / "lora" / "README.md").read_text(encoding="utf-8")
    head, _, rest = card.removeprefix("---\n").partition("---\n")
    assert f"base_model: {sd.name}" in head and "library_name: diffusers" in head
    assert str(sd.parent) not in card  # nobody else has that folder
    assert "An adapter of rank 4 (alpha 8) for a StableDiffusionPipeline, trained on 40 pictures" in rest
    assert DiffusionBase(str(sd)).sha256 in rest


def test_the_whole_network_can_be_trained(sd: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    last = trained(sd, pictures, tmp_path / "run", "trainer.max_steps=2", "model.rank=null")
    model = CheckpointSampler(last).model
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "unet", use_safetensors=True)
    ours = {name: each.detach() for name, each in model.network.denoiser.named_parameters()}
    assert_same(ours, {name: each.detach() for name, each in unet.named_parameters()})
    assert not model.has_base and len(ours) == len(load(tmp_path / "run")["state_dict"])


def test_the_text_encoder_can_have_an_adapter_too(sd: Path, pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    typed = ["model.train_text_encoder=true", "model.optimizer.lr=0.02"]
    whole = trained(sd, pictures, tmp_path / "whole", *typed, "trainer.max_steps=4")
    part = trained(sd, pictures, tmp_path / "part", *typed, "trainer.max_steps=2")
    trained(sd, pictures, tmp_path / "resumed", *typed, "trainer.max_steps=4", f"ckpt_path={part}")
    assert_same(load(tmp_path / "whole")["state_dict"], load(tmp_path / "resumed")["state_dict"])

    weights = load_file(tmp_path / "whole" / "lora" / "pytorch_lora_weights.safetensors")
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"  # as all others call it
    assert weights[name].abs().max() > 0
    assert not list((tmp_path / "data" / "embeddings").glob("texts-*"))
    assert drawn(whole).isfinite().all()


# What is computed once


def test_latents_are_those_of_the_images_and_of_their_mirror_images(sd: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    images = torch.rand(3, 3, 16, 16) * 2 - 1
    served = lambda rows: torch.stack([images[i] if i >= 0 else images[~i].flip(-1) for i in rows])  # noqa: E731
    what = (served, "hash", 3, (4, 8, 8), True, tmp_path, torch.device("cpu"))
    found = latents_of(DiffusionBase(str(sd)), *what)
    assert found.shape == (2, 3, 4, 8, 8)
    vae = AutoencoderKL.from_pretrained(sd / "vae")
    for each, shown in zip(found, (images, images.flip(-1)), strict=True):
        expected = vae.encode(shown).latent_dist.mean * 0.18215
        torch.testing.assert_close(each, expected.detach())
    (file,) = tmp_path.iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBase, "load", lambda *_: pytest.fail("the VAE is loaded again"))
        assert torch.equal(latents_of(DiffusionBase(str(sd)), *what), found)
    file.write_bytes(file.read_bytes()[:100])  # is made anew
    assert torch.equal(latents_of(DiffusionBase(str(sd)), *what), found)


def test_training_holds_neither_vae_nor_text_encoder(sd: Path, pictures: Path, tmp_path: Path) -> None:
    loaded: list[str] = []
    load_part = DiffusionBase.load

    def spied(self: Any, part: str) -> Any:
        loaded.append(part)
        return load_part(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBase, "load", spied)
        trained(sd, pictures, tmp_path / "first", "trainer.max_steps=1")
        assert loaded == ["unet", *["vae"] * 3, "text_encoder"]
        del loaded[:]
        trained(sd, pictures, tmp_path / "second", "trainer.max_steps=1")
        assert loaded == ["unet"]


# Options and mistakes

FLIPS = {
    "optimizer.lr=1e-2": "",
    "optimizer.betas=[0.5,0.9]": "",
    "optimizer.weight_decay=0.9": "model.optimizer.lr=0.1",
    "rank=2": "",
    "alpha=1.0": "",
    "dropout=0.5": "",
    "targets=[to_q]": "",
    "train_text_encoder=true": "",
    "condition_dropout=0.9": "",
    "clip_grad_norm=1e-3": "model.optimizer.betas=[0.0,0.0]",
    "guidance=1.0": "",
    "steps=1": "",
    "scheduler=euler": "",
}
# Those of classes are flipped in test_classes_are_phrased; these change speed, memory or what is refused.
NOT_LEARNT = ("gradient_checkpointing", "max_enlargement", "base")


@pytest.mark.parametrize("changed", FLIPS)
def test_an_option_changes_what_is_drawn(sd: Path, pictures: Path, tmp_path: Path, changed: str) -> None:
    first = ["trainer.max_steps=3", "model.optimizer.lr=0.02", *filter(None, [FLIPS[changed]])]
    one = drawn(trained(sd, pictures, tmp_path / "one", *first))
    other = drawn(trained(sd, pictures, tmp_path / "other", *first, f"model.{changed}"))
    assert not torch.equal(one, other)


def test_gradient_checkpointing_changes_memory_alone(sd: Path, pictures: Path, tmp_path: Path) -> None:
    typed = ["trainer.max_steps=3", "model.gradient_checkpointing="]
    trained(sd, pictures, tmp_path / "one", f"{typed[1]}false", typed[0])
    trained(sd, pictures, tmp_path / "other", f"{typed[1]}true", typed[0])
    one, other = (load(tmp_path / name)["state_dict"] for name in ("one", "other"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name])


def test_bfloat16_trains_and_draws(sd: Path, pictures: Path, tmp_path: Path) -> None:
    typed = ["trainer.max_epochs=1", "trainer.precision=bf16-mixed"]
    grid = "src.callbacks.text_callbacks.LogPromptGrid"
    typed += [f"+callbacks.prompt_grid={{_target_: {grid}, n_per_prompt: 2}}"]
    last = trained(sd, pictures, tmp_path / "run", *typed)
    assert {each.dtype for each in load(tmp_path / "run")["state_dict"].values()} == {torch.float32}
    assert drawn(last).isfinite().all()
    assert (tmp_path / "run" / "pictures" / "prompt_imgs" / "epoch_0000.png").exists()


def test_classes_are_phrased(sd: Path, tmp_path: Path) -> None:
    """Without captions, texts are made of the names of the classes, and images are measured as any others."""
    for name in COLOURS:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            picture = np.full((16, 16, 3), COLOURS[name], np.uint8)
            picture[: i % 16] = 0
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{i}.png")
    typed = ["datamodule.captions=null", "callbacks=default", "callbacks.quality.cas=false", "trainer.max_epochs=1"]
    typed += ["callbacks.guidance=null", "callbacks.prompt_accuracy=null", "callbacks.interpolation=null"]
    typed += ["callbacks.sample_grid.n_per_class=2", "test_after_training=true", "model.prompts.templates=['one {}']"]
    typed += ["model.steps=1", "callbacks.model_summary=null", "callbacks.prompt_grid.n_per_prompt=2"]
    trained(sd, tmp_path / "pictures", tmp_path / "run", *typed)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert {"test/fd", "test/label_accuracy", "test/copied", "test/loss"} <= results["metrics"].keys()
    grid = Image.open(tmp_path / "run" / "samples" / "epoch_0000.png")
    assert grid.size == (2 * 18 + 2, 4 * 18 + 2)
    both = Image.open(tmp_path / "run" / "pictures" / "prompt_imgs" / "epoch_0000.png")
    assert both.width > 2 * (2 * 18 + 2) + 24
    model = CheckpointSampler(tmp_path / "run" / "ckpts" / "last.ckpt").model
    assert list(model.prompts_of_classes) == sorted(COLOURS)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["datamodule.crop=0.1"], r"datamodule\.crop must be 0 with model=stable_diffusion"),
        (["datamodule.img_size=32"], r"img_size is 32, but 48 pictures have sides of less than 30 pixels"),
        (["datamodule.img_size=15"], r"model\.img_size is 15, but must be a multiple of 2 for this base"),
        (["datamodule.channels=1"], r"model\.channels is 1, but the base draws in colour"),
        (["model.targets=[]"], r"model\.targets must be .*, not \[\]"),
        (
            ["model.targets=[to_x]"],
            r"model\.targets is \['to_x'\], but the base has no linear layer .* choose among .*to_q",
        ),
        (["model.rank=null", "model.train_text_encoder=true"], r"model\.train_text_encoder is true, but rank is null"),
        (["model.rank=0"], r"model\.rank must be a whole number of at least 1 or null"),
        (["model.scheduler=best"], r"model\.scheduler must be one of ddim, pndm"),
        (["trainer.precision=bf16-true"], r"trainer\.precision is bf16-true, in which an adapter cannot be trained"),
        (["datamodule=digits", "~datamodule.folder", "~datamodule.captions"], r"the base draws in colour"),
    ],
)
def test_mistakes(sd: Path, pictures: Path, tmp_path: Path, typed: list[str], message: str) -> None:
    if typed[0] == "datamodule=digits":
        config = compose_config("train", *SHORT, *typed[:1], f"model.base={sd}", run_dir=tmp_path)
    else:
        config = composed(sd, pictures, tmp_path / "run", *typed)
    with pytest.raises(UserError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)


def test_a_scheduler_of_another_family_is_refused(sd3: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler is 'ddim', but this base is drawn with one of euler, heun"):
        trained(sd3, pictures, tmp_path / "run", "model.scheduler=ddim")


def test_memory_is_said_before_training_and_refused_where_it_does_not_do(
    sd: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    trained(sd, pictures, tmp_path / "one", "trainer.max_steps=1")
    assert re.search(
        r"training takes about 0\.0 GB of [\d.]+ on cpu: weights 0\.0, gradients and optimizer of", caplog.text
    )
    monkeypatch.setattr(stable_diffusion_model, "free_memory", lambda device: -(10**6))
    with pytest.raises(UserError, match=r"there is not enough memory on cpu: weights and optimizer take .*=bf16-mixed"):
        trained(sd, pictures, tmp_path / "two", "trainer.max_steps=1")


def test_a_batch_that_is_too_large_ends_in_a_sentence(sd: Path, pictures: Path, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion_model.StableDiffusionModel, "step", fails)
        with pytest.raises(UserError, match=r"not enough memory on cpu for this batch: lower datamodule\.batch"):
            trained(sd, pictures, tmp_path / "run", "trainer.max_steps=1")


def test_captions_that_are_too_long_are_counted(sd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = []
    for i in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": "z " * 40 if i < 2 else f"picture {i}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trained(sd, tmp_path, tmp_path / "runs" / "one", "trainer.max_steps=1", "datamodule.batch_size=1")
    assert "2 of 6 captions have more tokens than the base reads: the rest is left out" in caplog.text


def test_verbs_say_what_they_cannot_do(run: Path, typed: Typed) -> None:
    last = f"ckpt_path={run / 'ckpts' / 'last.ckpt'}"
    code, said = typed("task=export", last)
    assert code == 2 and "cannot be exported, as the file would lack its base; use the adapter" in said
    code, said = typed("task=sample", last, "prompts=[red]", "scheduler=best")
    assert code == 2 and "scheduler is 'best', but this base is drawn with one of ddim, pndm" in said
    code, said = typed("task=sample", last, "prompts=[red]", "solver=heun")
    assert code == 2 and "solver=heun is not an option of a StableDiffusionModel" in said
    typing = ["prompts=[a red one,a blue one]", "n_per_label=2", "negative=green", "guidance=2", "steps=1"]
    code, said = typed("task=sample", last, *typing, "scheduler=euler", f"out={run / 'drawn'}")
    assert code == 0, said
    with np.load(run / "drawn" / "samples.npz") as file:
        assert file["images"].shape == (4, 16, 16, 3)
        assert file["prompts"].tolist() == ["a red one"] * 2 + ["a blue one"] * 2


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    code = "import sys, src.models.stable_diffusion_model, src.train\n"
    code += "print([m for m in sys.modules if m in ('diffusers', 'peft', 'accelerate')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
