"""The keys of each verb, and what they refuse."""

import pytest

from src.config.keys import KEYS, check_keys
from src.errors import UserError
from tests.conftest import ROOT, compose_config

# The verb, what is typed, and what the sentence says.
MISTAKES = [
    ("train", "name=5", "name must be text or null, not 5"),
    ("train", "tags=[5]", r"tags must be a list of words such as \[baseline\], not \[5\]"),
    ("train", "seed=4294967296", r"seed must be a whole number from 0 to 2\*\*32 - 1"),
    ("train", "test_after_training=1", "test_after_training must be true or false, not 1"),
    ("train", "optimized_metric=5", "optimized_metric must be text or null"),
    ("train", "ckpt_path=[a]", r"ckpt_path must be a file \(or last, the newest run's\) or null"),
    ("train", "trusted_packages=null", "trusted_packages must be a list of packages such as .*, not null"),
    ("train", "trusted_packages=[7]", "trusted_packages must be a list of packages"),
    ("sample", "png=1", "png must be true or false, not 1"),
    ("sample", "n_per_label=1.5", "n_per_label must be a whole number of at least 1, not 1.5"),
    ("sample", "seed=9223372036854775808", "seed must be a whole number of at least 0"),
    ("interpolate", "steps=1", "steps must be a whole number of at least 2"),
    ("interpolate", "n_noises=1", "n_noises must be a whole number of at least 2"),
    ("interpolate", "truncation=1.5", "truncation must be a number from 0 to 1"),
    ("interpolate", "truncation=true", "truncation must be a number from 0 to 1"),
    ("interpolate", "weights=mean", "weights must be ema or raw"),
    ("evaluate", "n=5", "n must be a whole number of at least 10"),
    ("evaluate", "cas=5", "cas must be true or false"),
    ("evaluate", "ckpt_path=null", r"ckpt_path must be a file \(or last.*\) or a list, each a path, not null"),
    ("evaluate", "out=5", "out must be a folder"),
    ("export", "formats=[onxx]", "formats must be some of onnx, int8, torch, tensorrt, such as .*, not .'onxx'"),
    ("export", "formats=[[onnx]]", r"formats must be some of .*, not \[\['onnx'\]\]"),
    ("export", "formats=[]", r"formats must be some of .*, not \[\]"),
    ("export", "calibration=0", "calibration must be a whole number from 1 to 100000"),
    ("export", "calibration=1000000", "calibration must be a whole number from 1 to 100000"),
    ("export", "seed=-1", "seed must be a whole number of at least 0"),
    ("export", "latency=often", "latency must be true or false"),
    ("export", "license=", "license must be a name such as MIT"),
    ("export", "out=null", "out must be a folder, not null"),
    ("export", "out=", "out must be a folder, not ''"),
    ("serve", "host=", "host must be an address of this machine such as 127.0.0.1"),
    ("serve", "grace=1e9", "grace must be a number above 0"),
    ("serve", "origins=[5]", r"origins must be a list of sites such as origins=\[https://example.com,"),
    ("serve", "origins=[]", "origins must be a list of sites such as"),
    ("report", "runs=5", r"runs must be a run folder, a list such as runs=\[a,b\], a quoted pattern or last, not 5"),
    ("report", "out=", "out must be a file such as report.html or null, not ''"),
    ("report", "runs=[]", "runs must be a run folder, a list"),
    ("report", "runs=['']", "runs must be a run folder, a list"),
]


@pytest.mark.parametrize(("task", "typed", "says"), MISTAKES, ids=[f"{task} {typed}" for task, typed, _ in MISTAKES])
def test_a_value_that_a_key_cannot_have(task: str, typed: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        check_keys(compose_config(task, typed))


@pytest.mark.parametrize("task", KEYS)
def test_each_verb_states_the_types_of_its_keys(task: str) -> None:
    config = compose_config(task)
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    assert {str(key) for key in config} - groups == KEYS[task].keys()
    check_keys(config)
