"""What MLflow's registry hands out of models that read text, from a database file; test_mlflow.py has a server."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.mlflow_logging.registry import ModelRegistry
from src.models.flow_model import FlowModel
from src.models.image_model import ImageModel
from src.models.modules.conditioners import TextConditioner
from src.models.modules.unet import FoldedUNet
from src.models.prompts import FILLERS, LENGTH, clean
from src.pictures.grid import to_uint8
from src.run.checkpoints import build_model, read_checkpoint
from src.sampling.sampler import Noise

pytestmark = pytest.mark.extras("mlflow", "onnx", "onnxscript", "onnxruntime")


def registered(model: ImageModel, folder: Path) -> Any:
    """The model as MLflow loads it from its registry."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.create_run(client.create_experiment("any", f"file://{folder}/artifacts"))
    about = {"data": {"source": "made"}, "commit": "unknown"}
    ModelRegistry("text").register(client, run.info.run_id, model, {"test/fd": 1.0}, about)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        return mlflow.pyfunc.load_model("models:/text@champion")


@pytest.fixture(scope="module")
def model(text_checkpoint: Path) -> ImageModel:
    model: Any = build_model(read_checkpoint(text_checkpoint), text_checkpoint)
    model.draw_with({"steps": 2})
    return model


@pytest.fixture(scope="module")
def loaded(model: ImageModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return registered(model, tmp_path_factory.mktemp("registry"))


def test_it_draws_prompts_as_the_model_does(loaded: Any, model: ImageModel) -> None:
    prompts = ["A nine!", "ДВА, 二", "nine"]
    drawn = loaded.predict({"prompts": prompts}, params={"seed": 3})
    noise = torch.from_numpy(Noise(model.noise_shape, 3)(3))
    expected = to_uint8(model.generate(model.encode(prompts), noise=noise).numpy())
    assert drawn.dtype == np.uint8 and np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_label_stands_for_its_name(loaded: Any) -> None:
    import pandas as pd

    by_label, by_name = loaded.predict({"labels": [9, 2]}), loaded.predict({"prompts": ["nine", "two"]})
    assert by_label.shape == (2, 8, 8, 1) and np.array_equal(by_label, by_name)
    assert np.array_equal(by_label, loaded.predict(pd.DataFrame({"prompts": ["nine", "two"]})))


def test_signature_and_example_say_what_to_send(loaded: Any) -> None:
    inputs = loaded.metadata.signature.inputs.to_dict()
    assert inputs == [
        {"type": "string", "name": "prompts", "required": False},
        {"type": "long", "name": "labels", "required": False},
    ]
    assert loaded.input_example["prompts"][9] == "nine"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": ["nine"], "labels": [9]}, "prompts and labels are both there"),
        ({"texts": ["nine"]}, "there must be a column prompts, or labels"),
        ({"labels": [10]}, "labels must be 0 to 9, not 10"),
        ({"labels": ["nine"]}, "Incompatible input types for column labels"),
        ({"prompts": [9]}, "Incompatible input types for column prompts"),
        ({"prompts": ["nine", "?!"]}, r"prompts must have 1 to 128 letters, digits and spaces, not '\?!'"),
        ({"prompts": ["x" * 129]}, "prompts must have 1 to 128 letters"),
        ({"prompts": ["nine", None]}, "prompts must have 1 to 128 letters, digits and spaces, not 'nan'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(loaded: Any, asked: Any, said: str) -> None:
    with pytest.raises(Exception, match=said):
        loaded.predict(asked)


def test_a_model_of_captions_takes_prompts_alone(tmp_path: Path) -> None:
    model = FlowModel(
        FoldedUNet(1, 8, 16, width=16, depth=1), TextConditioner(16), n_classes=0, condition_dim=16, img_size=8, steps=1
    )
    loaded = registered(model, tmp_path)
    assert [each["name"] for each in loaded.metadata.signature.inputs.to_dict()] == ["prompts"]
    assert loaded.predict({"prompts": ["a red bird"]}).shape == (1, 8, 8, 1)
    with pytest.raises(Exception, match="missing inputs"):
        loaded.predict({"labels": [0]})


def test_text_is_cleaned_as_in_training() -> None:
    from src.mlflow_logging import registered_model

    rng = np.random.default_rng(0)
    strange = ["".join(map(chr, rng.integers(1, top, 20))) for top in (0x80, 0x800, 0xD800) for _ in range(300)]
    typed = [
        "",
        "  A  Nine!\n",
        "it's",
        "ﬁve ½ Straße İ e\u0301 ẞ",
        "二 ДВА",
        "\U0001f600 x\u200dy",
        *FILLERS,
        *strange,
    ]
    for text in typed:
        assert registered_model.clean(text) == clean(text), text


def test_a_text_of_any_length_is_refused_before_it_is_cleaned() -> None:
    """Combining marks are sorted by a method that would take hours for so many."""
    from src.mlflow_logging.registered_model import RegisteredGenerator

    generator = RegisteredGenerator()
    generator.condition = SimpleNamespace(shape=("N", LENGTH))
    with pytest.raises(ValueError, match="1 to 128 letters, digits and spaces"):
        generator.codes(["a nine" + "\u0301\u0316" * 500_000])
