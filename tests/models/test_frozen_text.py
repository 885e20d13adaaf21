"""Text that a published CLIP or T5 reads: real ones, but for their size and their random weights."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from src.errors import UserError
from src.models.modules.frozen_text import Embeddings, FrozenTextConditioner
from src.models.pretrained import Pretrained
from src.models.prompts import to_codes
from src.run.checks import follow_files
from src.sampling.checkpoint_sampler import CheckpointSampler
from src.train import train
from tests.conftest import QUICK, SMALL_TEXT_MODEL, Typed, assert_same, build_model, compose_config, load
from tests.models.tiny_encoders import WIDTH, write_clip, write_t5

FROZEN = [*QUICK[:3], *SMALL_TEXT_MODEL, "model/text_encoder=frozen", "logger=none", "model.ema_half_life=500"]
FROZEN += [
    "callbacks=checkpoint",
    "optimized_metric=null",
    "test_after_training=false",
    "trainer.limit_train_batches=3",
]
needs_transformers = pytest.mark.extras("transformers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@dataclass
class Spy:
    """Counts how often encoders are loaded, and which texts they embed."""

    loaded: int = 0
    embedded: list[str] | Any = None


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, load_encoder = Spy(embedded=[]), Pretrained.text_encoder

    def text_encoder(self: Pretrained) -> Any:
        spy.loaded += 1
        embed = load_encoder(self)

        def spied(text: str) -> Tensor:
            spy.embedded.append(text)
            return embed(text)

        return spied

    monkeypatch.setattr(Pretrained, "text_encoder", text_encoder)
    return spy


def embeddings(encoder: Path, cache_dir: Path) -> Embeddings:
    files = Pretrained(str(encoder), "encoder")
    return Embeddings(str(encoder), files.sha256, files.width, cache_dir)


def conditioner(encoder: Path, cache_dir: Path, **options: int) -> FrozenTextConditioner:
    found = FrozenTextConditioner.follow_files({"encoder": str(encoder)})
    torch.manual_seed(0)
    return FrozenTextConditioner(**found, cache_dir=cache_dir, dim=16, **options)


def composed(encoder: Path, run_dir: Path, *typed: str) -> DictConfig:
    run_dir.mkdir(exist_ok=True)
    typed = (f"model.conditioner.encoder={encoder}", f"data_dir={run_dir.parent}/data", *typed)
    return compose_config("train", *FROZEN, *typed, run_dir=run_dir)


def trained(encoder: Path, run_dir: Path, *typed: str) -> Path:
    train(composed(encoder, run_dir, *typed))
    return run_dir / "ckpts" / "last.ckpt"


# What embeddings are


@needs_transformers
def test_clip_and_t5_embed_as_their_own_library_does(clip: Path, t5: Path) -> None:
    import transformers

    tokens = transformers.CLIPTokenizer.from_pretrained(clip)("the nine", return_tensors="pt")
    with torch.no_grad():
        pooled = transformers.CLIPModel.from_pretrained(clip).eval().get_text_features(**tokens).pooler_output
    found = Pretrained(str(clip), "encoder")
    assert torch.equal(found.text_encoder()("the nine"), pooled[0]) and found.width == len(pooled[0]) == WIDTH

    tokens = transformers.T5Tokenizer.from_pretrained(t5)("the nine", return_tensors="pt")
    with torch.no_grad():
        every = transformers.T5EncoderModel.from_pretrained(t5).eval()(**tokens).last_hidden_state
    found = Pretrained(str(t5), "encoder")
    assert torch.equal(found.text_encoder()("the nine"), every[0].mean(0)) and found.width == every.shape[2]


@needs_transformers
def test_an_embedding_does_not_depend_on_others(clip: Path, tmp_path: Path) -> None:
    alone = embeddings(clip, tmp_path / "a")(["a nine"])
    beside = embeddings(clip, tmp_path / "b")(["the seven of somebody with a long name", "a nine", ""])
    assert torch.equal(alone[0], beside[1])
    assert not torch.allclose(beside[0], beside[1], atol=1e-2) and not beside[2].any()
    assert embeddings(clip, tmp_path)(["x" * 128]).isfinite().all()  # more tokens than this encoder reads


@needs_transformers
def test_each_text_is_embedded_once_and_a_second_run_loads_nothing(clip: Path, tmp_path: Path, spy: Spy) -> None:
    first = conditioner(clip, tmp_path)
    first.expect(["a nine", "a seven", "a nine", ""])
    codes = torch.from_numpy(to_codes(["a nine", "a seven", "a nine", "another", "another", ""]))
    vectors = first(codes)
    assert torch.equal(first(codes), vectors)
    assert spy.embedded == ["a nine", "a seven", "another"]  # the last was not expected

    second = conditioner(clip, tmp_path)
    second.expect(["a seven", "a nine"])
    assert torch.equal(second.embeddings(["a seven"]), first.embeddings(["a seven"]))
    assert spy.loaded == 2  # once before and once after what was expected
    first.expect(["another"])
    assert len(spy.embedded) == 3
    assert torch.equal(conditioner(clip, tmp_path)(codes), vectors) and spy.loaded == 2


@needs_transformers
def test_runs_add_to_the_file_of_their_encoder(
    clip: Path, t5: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = embeddings(clip, tmp_path), embeddings(clip, tmp_path)
    assert not one(["zero"]).equal(other(["one"]))  # both have looked at the file that is not there
    one.expect(["a"])
    other.expect(["b"])
    embeddings(t5, tmp_path).expect(["c"])
    files = {path.name.partition("-")[0]: path for path in tmp_path.iterdir()}
    with np.load(files[clip.name]) as file:
        assert file["texts"].tolist() == ["a", "b"] and file["embeddings"].shape == (2, WIDTH)
    assert len(files) == 2

    content = bytearray(files[clip.name].read_bytes())
    content[200] ^= 255
    files[clip.name].write_bytes(content)
    assert torch.equal(embeddings(clip, tmp_path)(["a"]), one(["a"]))
    assert f"{files[clip.name]} cannot be used" in caplog.text


@needs_transformers
def test_what_is_trained(clip: Path, tmp_path: Path) -> None:
    linear, deep = conditioner(clip, tmp_path), conditioner(clip, tmp_path, n_layers=3, width=5)
    assert [list(p.shape) for p in linear.parameters()] == [[1, 16], [16, WIDTH], [16]]
    assert [list(p.shape) for p in deep.parameters()] == [[1, 16], [5, WIDTH], [5], [5, 5], [5], [16, 5], [16]]
    codes = torch.from_numpy(to_codes(["a nine", ""]))
    vectors = linear(codes)
    assert torch.equal(vectors[1], linear.of_nothing[0]) and not torch.equal(vectors[0], vectors[1])
    vectors.sum().backward()
    linear(codes).sum().backward()  # no graph of the encoder's is left
    assert linear.of_nothing.grad is not None and linear.embeddings(["a nine"]).requires_grad is False


# Training and drawing


@needs_transformers
def test_the_encoder_is_in_no_checkpoint_and_no_average(clip: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained(clip, tmp_path / "run", "trainer.max_steps=2"), weights_only=True)
    names = [name for name in checkpoint["state_dict"] if "conditioner" in name]
    parts = ["of_nothing", "out.0.weight", "out.0.bias"]
    assert names == [f"{where}.conditioner.{part}" for where in ("network", "ema.network") for part in parts]
    described = checkpoint["config"]["model"]["conditioner"]
    assert described["encoder"] == str(clip) and described["n_features"] == WIDTH
    assert described["sha256"] == Pretrained(str(clip), "encoder").sha256

    config = composed(clip, tmp_path / "run")
    follow_files(config)
    model = build_model(config)
    assert model.ema.network.conditioner.embeddings is model.network.conditioner.embeddings
    trainable = {id(p) for group in model.configure_optimizers()[0].param_groups for p in group["params"]}
    assert trainable == {id(p) for p in model.network.parameters()}


@needs_transformers
def test_a_resumed_run_is_the_run_that_was_not_stopped(clip: Path, tmp_path: Path, spy: Spy) -> None:
    whole = load(trained(clip, tmp_path / "whole", "trainer.max_epochs=2").parents[1])
    known = len(spy.embedded)
    assert spy.loaded == 1 and known == len(set(spy.embedded))
    first = trained(clip, tmp_path / "first", "trainer.max_epochs=1")
    assert spy.loaded == 1  # the file of the other run has all of them
    shutil.rmtree(tmp_path / "data")
    rest = load(trained(clip, tmp_path / "rest", "trainer.max_epochs=2", f"ckpt_path={first}").parents[1])
    assert len(spy.embedded) == 2 * known
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_same(whole[key], rest[key], key)


@needs_transformers
@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_run_draws_other_images_for_other_prompts(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, spy: Spy
) -> None:
    encoder = request.getfixturevalue(kind)
    path = trained(encoder, tmp_path / "run", "trainer.max_epochs=1", "trainer.limit_train_batches=22")
    assert spy.loaded == 1
    model = CheckpointSampler(path).model
    noise = model.draw_noise(1, torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    drawn = model.generate(model.encode(["a nine", "a seven", "NINE!", "what nobody has said"]), noise=noise)
    assert spy.loaded == 2  # for the last
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3) and not torch.allclose(drawn[0], drawn[3], atol=1e-3)
    assert torch.allclose(drawn[2:3], model.generate(torch.tensor([9]), noise=noise[:1]), atol=1e-5)


@pytest.fixture(scope="module")
def run(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, whose encoder is `copy` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(clip, folder / "copy")
    return trained(folder / "copy", folder / "run", "trainer.max_epochs=1")


@pytest.fixture
def elsewhere(run: Path) -> Iterator[Path]:
    """Where the encoder of `run` is for a while."""
    encoder = run.parents[2] / "copy"
    yield encoder.rename(encoder.with_name("moved"))
    shutil.rmtree(encoder, ignore_errors=True)
    encoder.with_name("moved").rename(encoder)


@needs_transformers
def test_a_checkpoint_draws_known_texts_without_its_encoder_and_others_with_it(
    run: Path, elsewhere: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CheckpointSampler(run).model
    assert model.generate(model.encode(["a handwritten nine"])).isfinite().all()
    new = model.encode(["what nobody has said"])
    folder = elsewhere.with_name("copy")
    with pytest.raises(UserError, match=rf"encoder={folder} is not a folder.*set TEXT_ENCODER=DIR in \.env"):
        model.generate(new)
    monkeypatch.setenv("TEXT_ENCODER", str(elsewhere))
    assert model.generate(new).isfinite().all()


@needs_transformers
def test_another_encoder_is_refused(run: Path, elsewhere: Path, typed: Typed) -> None:
    other = write_clip(elsewhere.with_name("copy"), seed=1)
    model = CheckpointSampler(run).model
    ours, theirs = (Pretrained(str(each), "encoder").sha256[:8] for each in (other, elsewhere))
    said = rf"encoder={other} is not the text encoder .* begins with {ours}, not {theirs}\), or set TEXT_ENCODER=DIR"
    with pytest.raises(UserError, match=said):
        model.generate(model.encode(["what nobody has said"]))

    resuming = [*FROZEN, f"model.conditioner.encoder={other}", "trainer.max_epochs=2", f"data_dir={run.parents[2]}"]
    code, stderr = typed(*resuming, f"ckpt_path={run}")
    assert code == 2 and f"trained with another text encoder ({other}, whose checksum begins with {theirs})" in stderr
    assert stderr.count("error: ") == 1 and not list((run.parents[2] / "embeddings").glob("*"))


@needs_transformers
def test_no_exported_file_and_no_registered_model(run: Path, typed: Typed) -> None:
    for formats in ("null", "[torch]", "[onnx,int8]"):
        code, stderr = typed("task=export", f"ckpt_path={run}", f"formats={formats}")
        assert code == 2
        assert f"error: ckpt_path={run} cannot be exported, as its text encoder is not a part of it: draw" in stderr

    from src.mlflow_logging.registry import ModelRegistry

    model = CheckpointSampler(run).model
    said = r"its text encoder is not a part of it: set logger\.mlflow\.registered_model=null"
    with pytest.raises(ValueError, match=said):
        ModelRegistry().register(None, "run", model, {"test/fd": 1.0}, {})


@pytest.mark.extras("transformers", "fastapi", "prometheus_client", "onnxscript")
def test_a_service_draws_with_the_checkpoint(run: Path) -> None:
    from src.serve.command import open_for_serving

    sampler = open_for_serving(run, "ema", (), {"guidance": 2.0})
    assert isinstance(sampler, CheckpointSampler) and sampler.about.drawing["guidance"] == 2.0


@needs_transformers
def test_captions_are_embedded_before_training(clip: Path, tmp_path: Path, spy: Spy) -> None:
    config = composed(clip, tmp_path / "run")
    follow_files(config)
    model = build_model(config)
    model.expect([torch.from_numpy(to_codes(["a red cube", "a blue ball"])).int()])
    every = set(spy.embedded)
    assert {"a red cube", "a blue ball", "could you sketch the numeral 9 for me"} <= every
    assert len(every) == len(spy.embedded) == 2 + len(model.prompts.phrases())


# What cannot be


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("null", "model.conditioner.encoder must be set: type model.conditioner.encoder=DIR"),
        ("/no/such/folder", "model.conditioner.encoder=/no/such/folder is not a folder"),
        ("some/name", "model.conditioner.encoder needs huggingface_hub: pip install -r requirements-text.txt"),
        ("FOLDER", "model.conditioner.encoder needs transformers: pip install -r requirements-text.txt"),
    ],
)
def test_a_missing_encoder_or_package_is_one_sentence(
    encoder: str, said: str, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip_text_model"}', encoding="utf-8")
    (folder / "model.safetensors").touch()
    encoder = str(folder) if encoder == "FOLDER" else encoder
    code, stderr = typed(*FROZEN, f"model.conditioner.encoder={encoder}", f"data_dir={tmp_path}")
    assert code == 2 and f"error: {said}" in stderr and stderr.count("error: ") == 1 and "Traceback" not in stderr


def test_a_model_of_classes_has_no_text_to_read(typed: Typed) -> None:
    code, stderr = typed("model=flow_model", "model/text_encoder=frozen", "datamodule=digits")
    assert (
        code == 2 and "error: model/text_encoder=frozen needs a model that reads text: type model/condition" in stderr
    )


@needs_transformers
def test_a_hub_out_of_reach_is_one_sentence(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    code, stderr = typed(*FROZEN, "model.conditioner.encoder=some/encoder")
    assert code == 2 and stderr.count("error: ") == 1 and "Traceback" not in stderr
    assert "encoder=some/encoder is not a folder, and could not be downloaded from the Hugging Face hub (Conn" in stderr
    assert "or copy the model to this machine and type model.conditioner.encoder=DIR" in stderr


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")


def without_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "text_projection.weight"}, folder / "model.safetensors")


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")


@needs_transformers
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_tokenizer, "has a tokenizer of 2 tokens for a text encoder of 76: put its tokenizer.json"),
        (pickled, "holds no model.safetensors, and other formats may run code"),
        (of_another_kind, "holds a model of type 'bert': choose a CLIP or T5"),
        (without_weights, r"lacks weights of a CLIPTextModelWithProjection \(text_projection.weight\)"),
        (damaged, "cannot be loaded"),
    ],
)
def test_what_is_no_text_encoder_is_refused(spoil: Any, said: str, clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "spoilt"))
    spoil(folder)
    with pytest.raises(UserError, match=f"encoder={folder} {said}"):
        Pretrained(str(folder), "encoder").text_encoder()


@needs_transformers
def test_code_that_comes_with_an_encoder_is_not_run(clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "stranger"))
    (folder / "evil.py").write_text("open('ran', 'w'); raise SystemExit", encoding="utf-8")
    auto_map = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | {"auto_map": auto_map}), encoding="utf-8")
    embed = Pretrained(str(folder), "encoder").text_encoder()
    assert torch.equal(embed("a nine"), Pretrained(str(clip), "encoder").text_encoder()("a nine"))
    assert not Path("ran").exists()


@needs_transformers
def test_where_nothing_can_be_written_training_goes_on(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        embeddings(clip, tmp_path / "file").expect(["a nine"])
    assert "cannot be written" in caplog.text and "set data_dir=DIR" in caplog.text
