"""Bases of strangers: other layouts are read, and what is damaged, foreign or hostile is refused in one sentence."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.models.diffusion_base import DiffusionBase, find_base
from src.models.encoded import Texts
from src.models.stable_diffusion_model import StableDiffusionModel
from tests.models.tiny_diffusion import N_TOKENS, write_stable_diffusion, write_stable_diffusion_3

pytestmark = pytest.mark.extras("diffusers", "peft", "transformers")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may ask the network."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not asked


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion_3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def copy(sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd, tmp_path / "copy"))


def model_of(base: Path, **options: Any) -> StableDiffusionModel:
    options = {"img_size": 16, "rank": 2, "steps": 2, "cache_dir": base.parent / "cache"} | options
    return StableDiffusionModel(str(base), **options).eval()


def drawn(model: StableDiffusionModel, prompts: list[str]) -> torch.Tensor:
    return model.generate(model.encode(prompts), torch.Generator().manual_seed(0))


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | values), encoding="utf-8")


# It draws as diffusers does


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm", "euler", "heun", "unipc"])
def test_stable_diffusion_draws_as_its_own_pipeline(sd: Path, scheduler: str) -> None:
    import diffusers

    model = model_of(sd, steps=3, scheduler=scheduler, guidance=3.0)
    model.draw_with({"negative": "a blue one"})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sd, local_files_only=True)
    kind = getattr(diffusers, model.base.family.schedulers[scheduler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    compare(model, pipeline, negative_prompt="a blue one")


def test_stable_diffusion_3_draws_as_its_own_pipeline(sd3: Path) -> None:
    import diffusers

    options = {"text_encoder_3": None, "tokenizer_3": None, "local_files_only": True}
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(sd3, **options)
    compare(model_of(sd3, steps=3, guidance=3.0), pipeline)


def test_stable_diffusion_leaves_out_a_shift_of_latents_as_its_own_pipeline(copy: Path) -> None:
    import diffusers

    change(copy / "vae" / "config.json", scaling_factor=0.4, shift_factor=0.8)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(copy, local_files_only=True)
    compare(model_of(copy, steps=3, guidance=3.0), pipeline)


def compare(model: StableDiffusionModel, pipeline: Any, **options: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    noise = model.draw_noise(1, torch.Generator().manual_seed(0))
    size = {"height": model.img_size, "width": model.img_size}
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt", **size, **options}
    theirs = pipeline("the red nine", latents=noise.clone(), **how).images
    ours = model.generate(model.encode(["the red nine"]), noise=noise)
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_others(sd: Path) -> None:
    model = model_of(sd, img_size=16)
    assert model.images_at_once == 1024
    model.images_at_once = 2
    noise = model.draw_noise(5, torch.Generator().manual_seed(0))
    codes = model.encode(["a", "b", "a", "b", "c"])
    together = model.generate(codes, noise=noise)
    torch.testing.assert_close(together[2:4], model.generate(codes[2:4], noise=noise[2:4]), rtol=0, atol=0)


def test_between_two_prompts_lie_both(sd: Path) -> None:
    model = model_of(sd)
    noise = model.draw_noise(2, torch.Generator().manual_seed(0))
    a, b = (model.encode([text] * 2) for text in ("red", "blue"))
    between = model.interpolate(a, b, torch.tensor([0.0, 1.0]), noise)
    torch.testing.assert_close(between[0], model.generate(a, noise=noise)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(between[1], model.generate(b, noise=noise)[1], rtol=0, atol=1e-6)


# Other layouts


def fp16_variant(folder: Path) -> None:
    for part, stem in [
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ]:
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")


def sharded(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2


def with_safety_checker(folder: Path) -> None:
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / "safety_checker").mkdir()


def slow_tokenizer(folder: Path) -> None:
    """As first published: a vocabulary and its merges."""
    whole = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]), encoding="utf-8")
    merges = [" ".join(each) if isinstance(each, list) else each for each in whole["model"]["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


@pytest.mark.parametrize("changed", [fp16_variant, sharded, with_safety_checker, slow_tokenizer])
def test_the_same_base_in_other_files_draws_the_same(sd: Path, copy: Path, changed: Callable[[Path], None]) -> None:
    changed(copy)
    assert torch.equal(drawn(model_of(copy), ["the nine"]), drawn(model_of(sd), ["the nine"]))
    assert DiffusionBase(str(copy)).sha256 != DiffusionBase(str(sd)).sha256


@pytest.mark.parametrize(
    "unet",
    [
        {"use_linear_projection": True, "attention_head_dim": [2, 4]},
        {"cross_attention_dim": 32, "layers_per_block": 2},
        {
            "block_out_channels": [8, 16, 16],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        },
    ],
)
def test_a_network_of_another_shape_is_read_from_its_configuration(tmp_path: Path, unet: dict[str, Any]) -> None:
    model = model_of(write_stable_diffusion(tmp_path / "base", **unet), img_size=18)
    assert drawn(model, ["a", "b"]).shape == (2, 3, 18, 18)


def test_what_the_network_predicts_is_read_from_its_scheduler(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    velocity = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    model = model_of(write_stable_diffusion(tmp_path / "base", velocity))
    assert (model.base.prediction, model.drawing["scheduler"]) == ("v_prediction", "ddim")
    assert model.noise_levels[-1] < 1e-4 or len(model.noise_levels) == 1000
    assert drawn(model, ["a"]).isfinite().all()


# What is refused


def refused(base: Path | str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        model_of(Path(base))
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 500


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model_index.json", r"has no model_index\.json: name a folder in diffusers' layout"),
        ("unet/config.json", r"lacks unet/config\.json, as if it was only half downloaded"),
        ("unet/diffusion_pytorch_model.safetensors", r"lacks unet/diffusion_pytorch_model\.safetensors: copy"),
        ("text_encoder/model.safetensors", r"lacks text_encoder/model\.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", r"lacks vae/diffusion_pytorch_model\.safetensors"),
        ("scheduler/scheduler_config.json", r"lacks scheduler/scheduler_config\.json"),
        ("tokenizer/tokenizer.json", r"has a tokenizer of 2 tokens for a text encoder of 76: put its tokenizer\.json"),
    ],
)
def test_what_lacks_a_file(copy: Path, file: str, message: str) -> None:
    (copy / file).unlink()
    refused(copy, message)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_half_downloaded_weights(copy: Path, file: str, share: float) -> None:
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: int(len(content) * share)])
    refused(copy, rf"has a damaged {file} \(.*\): copy or download it again")


def test_a_folder_that_is_not_there_and_one_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.base must be set: type model\.base=DIR"):
        StableDiffusionModel()
    refused(tmp_path / "none", r"is not a folder: name one that holds a Stable Diffusion")
    refused(tmp_path, r"has no model_index\.json")
    (tmp_path / "v1-5.safetensors").touch()
    refused(tmp_path, r"v1-5\.safetensors becomes one by StableDiffusionPipeline\.from_single_file")
    with pytest.raises(UserError, match=r"is not on this machine: type hf download some/body"):
        DiffusionBase("some/body")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            r"of kind 'StableDiffusionXLPipeline', which cannot",
        ),
        ("model_index.json", {"_class_name": ["a"]}, r"a model of kind .*, which cannot be"),
        (
            "model_index.json",
            {"unet": ["evil", "Model"]},
            r"states evil\.Model for its unet, which is no diffusers\.UNet",
        ),
        ("model_index.json", {"unet": None}, r"states None for its unet"),
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            r"states diffusers\.AutoencoderTiny for its vae",
        ),
        ("model_index.json", {"text_encoder": ["../../evil", "CLIPTextModel"]}, r"states \.\./\.\./evil\.CLIPText"),
        ("unet/config.json", {"in_channels": 9}, r"a network of 9 channels for latents of 4, as for inpainting"),
        (
            "unet/config.json",
            {"quantization_config": {"quant_method": "x"}},
            r"asks for quantization_config in unet/con",
        ),
        ("unet/config.json", {"addition_embed_type": "text_time"}, r"has a network with addition_embed_type"),
        ("unet/config.json", {"block_out_channels": [16, 64]}, r"has a unet that cannot be loaded"),
        ("unet/config.json", {"layers_per_block": 2}, r"has a unet that"),
        ("unet/config.json", {"cross_attention_dim": 32}, r"has a unet that cannot be loaded"),
        (
            "text_encoder/config.json",
            {"auto_map": {"AutoModel": "evil.Model"}},
            r"asks for auto_map in text_encoder/con",
        ),
        ("text_encoder/config.json", {"attn_implementation": "evil/kernel"}, r"asks for attn_implementation in"),
        (
            "text_encoder/config.json",
            {"text_config": {"_attn_implementation": "evil/kernel"}},  # transformers takes its own from there
            r"asks for _attn_implementation in text_encoder/con",
        ),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, r"asks for vocab_file in tokenizer/tok"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, r"predicts 'sample', not epsilon"),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "none"},
            r"scheduler that cannot be used|cannot be drawn",
        ),
    ],
)
def test_what_is_of_another_kind_or_leads_elsewhere(copy: Path, file: str, values: Any, message: str) -> None:
    change(copy / file, **values)
    refused(copy, message)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("vae/config.json", {"block_out_channels": 7}),
        ("unet/config.json", {"layers_per_block": 10**7}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7}),
        ("vae/config.json", {"latent_channels": "4"}),
        ("vae/config.json", {"scaling_factor": None}),
        ("vae/config.json", {"scaling_factor": 0}),
        ("text_encoder/config.json", {"vocab_size": "many"}),
        ("text_encoder/config.json", {"max_position_embeddings": [77]}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -4}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
    ],
)
def test_numbers_that_cannot_be_computed_with(copy: Path, file: str, values: Any) -> None:
    change(copy / file, **values)
    refused(copy, rf"has a damaged {file} \({next(iter(values))}.*\): copy or download it again")


@pytest.mark.parametrize("beta", [float("nan"), 9.0])
def test_noise_of_no_level(copy: Path, beta: float) -> None:
    change(copy / "scheduler" / "scheduler_config.json", beta_end=beta)
    refused(copy, r"its betas leave no level of noise between 0 and 1")


def test_weights_that_are_no_numbers(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(file).items()}, file, {"format": "pt"})
    refused(copy, r"has a unet whose weights are not finite")


def test_a_text_encoder_of_another_width_does_not_fit(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_stable_diffusion(tmp_path / "other", cross_attention_dim=32)
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(other / "text_encoder", copy / "text_encoder")
    refused(copy, r"has parts that do not fit each other")
    assert not caplog.records  # torch's own have a traceback


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff", "[" * 100_000])
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_damaged_tables(copy: Path, file: str, text: str) -> None:
    (copy / file).write_text(text, encoding="latin-1")
    refused(copy, rf"has a damaged {file}")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "a\\b.safetensors", "code.bin", ""])
def test_a_table_of_shards_leads_nowhere_else(copy: Path, name: str) -> None:
    sharded(copy)
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    change(index, weight_map=weights | {next(iter(weights)): name})
    refused(
        copy, r"has a damaged unet/diffusion_pytorch_model\.safetensors\.index\.json, which must name the files beside"
    )


def test_a_shard_is_missing(copy: Path) -> None:
    sharded(copy)
    sorted((copy / "unet").glob("*.safetensors"))[1].unlink()
    refused(copy, r"lacks unet/diffusion_pytorch_model-00002-of-\d+\.safetensors, as if it was only half downloaded")


def test_weights_that_may_run_code_are_not_read(copy: Path, tmp_path: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(
        b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/x'\ntR."
    )
    refused(copy, r"lacks unet/diffusion_pytorch_model\.safetensors \(diffusion_pytorch_model\.bin may run code\)")
    assert not (tmp_path / "x").exists()


def test_an_adapter_beside_the_weights_is_not_followed(copy: Path) -> None:
    (copy / "text_encoder" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "evil/model"}', encoding="utf-8"
    )
    refused(copy, r"has an adapter_config\.json beside its text_encoder: remove that file")


def test_a_base_is_known_by_its_checksum(sd: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = DiffusionBase(str(sd)).sha256
    assert find_base(str(copy), sha256).sha256 == sha256  # a copy is the same
    change(copy / "scheduler" / "scheduler_config.json", beta_end=0.02)
    with pytest.raises(UserError, match=r"is not the base that the model was trained with .* set STABLE_DIFFUSION=DIR"):
        find_base(str(copy), sha256)
    monkeypatch.setenv("STABLE_DIFFUSION", str(sd))
    assert find_base("somebody/elsewhere", sha256).folder == sd


def test_a_name_of_the_hub_that_is_on_this_machine_asks_no_network(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    known = tmp_path / "models--some--body"
    shutil.copytree(sd, known / "snapshots" / ("0" * 40))
    (known / "refs").mkdir()
    (known / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    found = find_base("some/body", DiffusionBase(str(sd)).sha256)
    assert (found.name, found.folder) == ("some/body", known / "snapshots" / ("0" * 40))


def test_texts_are_embedded_once_and_those_that_are_cut_are_counted(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ["", "a nine", "z" * (N_TOKENS - 2), "z " * (N_TOKENS - 1)]
    texts = Texts(DiffusionBase(str(sd)))
    assert texts.expect(listed, tmp_path, torch.device("cpu")) == {listed[3]}
    (embedded,) = texts(listed)
    assert embedded.shape == (4, N_TOKENS, 16)

    again = Texts(DiffusionBase(str(sd)))
    monkeypatch.setattr(DiffusionBase, "text_parts", lambda self: pytest.fail("the text encoder is loaded again"))
    assert again.expect(listed, tmp_path, torch.device("cpu")) == {listed[3]}
    assert torch.equal(again(listed)[0], embedded)
