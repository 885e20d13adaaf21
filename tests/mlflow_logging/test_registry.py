"""Which version is better, and which settings cannot be meant; test_mlflow.py registers for real."""

from typing import Any

import pytest

from src.errors import UserError
from src.mlflow_logging.logger import SteadyMLFlowLogger
from src.mlflow_logging.registry import ModelRegistry
from tests.conftest import build

TAGS = {"test/fd": "0.5", "data": "digits", "data_sha256": "abc", "img_size": "32"}


@pytest.mark.parametrize(
    ("options", "ours", "theirs", "better", "why"),
    [
        ({}, {}, None, True, "it is the first"),
        ({}, {"test/fd": "0.4"}, {}, True, "test/fd 0.4 is better than 0.5"),
        ({}, {"test/fd": "0.6"}, {}, False, "test/fd 0.6 is not better than 0.5"),
        ({}, {}, {}, False, "is not better"),
        ({}, {"test/fd": "nan"}, {}, False, "test/fd is not known"),
        ({}, {"test/fd": "nan"}, None, False, "test/fd is not known"),
        ({}, {"test/fd": "0.4", "data": "mnist"}, {}, False, "another data set"),
        ({}, {"test/fd": "0.4", "data_sha256": "def"}, {}, False, "other images"),
        ({}, {"test/fd": "0.4", "img_size": "28"}, {}, False, "another image size"),
        ({}, {"test/fd": "0.4"}, {"test/fd": "good"}, False, "no tag test/fd"),
        ({"judged_by": "test/cas", "mode": "max"}, {"test/cas": "0.9"}, {"test/cas": "0.8"}, True, "better than 0.8"),
        ({"judged_by": "test/cas", "mode": "max"}, {"test/cas": "0.7"}, {"test/cas": "0.8"}, False, "not better"),
        ({"judged_by": "test/cas", "mode": "max"}, {"test/cas": "0.7"}, {}, False, "no tag test/cas"),
    ],
)
def test_a_version_is_better_or_not(
    options: dict[str, Any], ours: dict[str, str], theirs: dict[str, str] | None, better: bool, why: str
) -> None:
    tags = None if theirs is None else TAGS | theirs

    is_better, reason = ModelRegistry(**options).compare(TAGS | ours, tags)

    assert is_better is better
    assert why in reason


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"registered_model": ""}, "registered_model must be a name"),
        ({"registered_model": "a/b"}, "registered_model must be a name"),
        ({"registered_model": "generator-{dataset}"}, "registered_model must be a name"),
        ({"alias": "latest"}, "alias must be a word other than latest"),
        ({"alias": "v3"}, "alias must be a word other than latest"),
        ({"alias": "the best"}, "alias must be a word"),
        ({"judged_by": "val/fd"}, "judged_by must be a metric of the test such as test/fd, not 'val/fd'"),
        ({"mode": "lower"}, "mode must be min or max, not 'lower'"),
        ({"mode": "max"}, "mode is max, by which the worst test/fd would win: set logger.mlflow.mode=min"),
        ({"judged_by": "test/label_accuracy"}, "the worst test/label_accuracy would win"),
        *(
            ({"tracking_uri": uri}, r"tracking_uri \(or else MLFLOW_TRACKING_URI\) must be a server's .* given up")
            for uri in ("mlruns", "./mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "C:/mlruns")
        ),
        ({"tracking_uri": "http://me:secret@127.0.0.1:9"}, "must not name .*: set MLFLOW_TRACKING_USERNAME and"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        build(SteadyMLFlowLogger, **{"experiment_name": "any", "save_dir": "logs", "registered_model": "any"} | options)
    assert "secret" not in str(error.value)


def test_the_name_carries_the_data() -> None:
    model: Any = type("Model", (), {"img_size": 28})()
    assert ModelRegistry().name_for({"source": "fashion-mnist"}, model) == "generator-fashion-mnist-28px"
    assert ModelRegistry("faces").name_for({"source": "my:faces"}, model) == "faces"
    assert ModelRegistry("{data}").name_for({"source": "my:faces/small"}, model) == "my-faces-small"
