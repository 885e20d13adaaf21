"""Libraries' errors in one sentence: the line that says what went wrong, not the first one."""

import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import wandb
import yaml
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset, dataloader

from src.config.explain import explain, is_users, telling
from src.errors import UserError

SETTINGS = """2 validation errors for Settings
resume
  Input should be 'allow', 'must', 'never' or 'auto' [type=literal_error, input_value='banana', input_type=str]
    For further information visit https://errors.pydantic.dev/2.14/v/literal_error
x_tags.0
  Value error, Tag 'a' is too long [type=value_error, input_value=['a'], input_type=list]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""
WORKER = """Caught KeyError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/usr/lib/python3/site-packages/torch/utils/data/_utils/worker.py", line 375, in _worker_loop
    data = fetcher.fetch(index)  # type: ignore[possibly-undefined]
           ^^^^^^^^^^^^^^^^^^^^
KeyError: 'label 7 is missing'
"""
SPAWNED = """

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "/usr/lib/python3/site-packages/torch/multiprocessing/spawn.py", line 90, in _wrap
    fn(i, *args)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
"""
NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error, NCCL 2.27.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 'invalid device ordinal'"""
DYNAMO = """RuntimeError when making fake tensor call
  Explanation: Dynamo failed to run FX node with fake tensors: got RuntimeError('a and b must have same reduction dim')
  Hint: Your code may result in an error when running in eager.

  Developer debug context:
"""
ONNX = """Failed to export the model with torch.export. \x1b[96mThis is step 1/3\x1b[0m of exporting the model to ONNX.
- Modify the model code for `torch.export.export` to succeed.

## Exception summary

<class 'torch._dynamo.exc.UserError'>: Could not guard on data-dependent expression Eq(u0, 1)"""
HUB = """404 Client Error. (Request ID: Root=1-6747-5c0;7e1b)

Repository Not Found for url: https://huggingface.co/api/models/nobody/nothing.
Please make sure you specified the correct `repo_id` and `repo_type`."""
TABLE = """(sqlite3.OperationalError) no such table: runs
[SQL: SELECT * FROM runs]
(Background on this error at: https://sqlalche.me/e/20/e3q8)"""
YAML = """while parsing a flow sequence
  in "configs/experiment/mine.yaml", line 3, column 8:
    betas: [0.5
           ^
expected ',' or ']', but got '<stream end>'
  in "configs/experiment/mine.yaml", line 4, column 1:
"""
CUDA = """CUDA error: device-side assert triggered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""
WEIGHTS = 'Error(s) in loading state_dict for Generator:\n\tMissing key(s) in state_dict: "net.0.weight". '
TIMEOUT = """wait timeout after 2000ms, keys: /default_pg/0//cpu//0/1
Exception raised from doWait at /pytorch/torch/csrc/distributed/c10d/TCPStore.cpp:660 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation) + 0x9d (0x7f56 in /usr/lib/libc10.so)"""
REGISTRY = "INTERNAL_ERROR:\nthe registry cannot be reached"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            SETTINGS,
            "resume: Input should be 'allow', 'must', 'never' or 'auto', not 'banana'"
            "; x_tags.0: Tag 'a' is too long, not ['a']",
        ),
        (WORKER, "KeyError: 'label 7 is missing'"),
        (SPAWNED, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (NCCL, "Cuda failure 'invalid device ordinal'"),
        (
            DYNAMO,
            "Dynamo failed to run FX node with fake tensors: got RuntimeError('a and b must have same reduction dim')",
        ),
        (ONNX, "<class 'torch._dynamo.exc.UserError'>: Could not guard on data-dependent expression Eq(u0, 1)"),
        (HUB, "Repository Not Found for url: https://huggingface.co/api/models/nobody/nothing."),
        (TABLE, "(sqlite3.OperationalError) no such table: runs"),
        (YAML, "expected ',' or ']', but got '<stream end>' in \"configs/experiment/mine.yaml\", line 4, column 1"),
        (CUDA, "CUDA error: device-side assert triggered"),
        (WEIGHTS, 'Error(s) in loading state_dict for Generator: Missing key(s) in state_dict: "net.0.weight".'),
        (TIMEOUT, "wait timeout after 2000ms, keys: /default_pg/0//cpu//0/1"),
        (REGISTRY, "INTERNAL_ERROR: the registry cannot be reached"),
        ("Interpolation key 'c' not found\n    full_key: a.b\n    object_type=dict", "Interpolation key 'c' not found"),
        ("mat1 and mat2 shapes cannot be multiplied (2x5 and 3x4)",) * 2,
        ("404 Client Error: Not Found for url: http://127.0.0.1/x",) * 2,
    ],
)
def test_the_line_that_says_what_went_wrong(text: str, told: str) -> None:
    assert telling(text) == told


class Broken(Dataset):
    """Whose pictures cannot be loaded."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        raise self.error


def read(error: Exception) -> Callable[[], Any]:
    """Raises an error in a process that loads data."""

    def load() -> None:
        try:
            list(DataLoader(Broken(error), num_workers=1))
        except Exception as raised:
            traceback.clear_frames(raised.__traceback__)  # else a worker that only the garbage collector ends takes 5 s
            raise

    return load


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (read(KeyError("label 7")), "KeyError: 'label 7'"),
        (read(ValueError("a.png is damaged")), "a.png is damaged"),
        (read(UserError("a.png is damaged: remove it")), "a.png is damaged: remove it"),
        (
            lambda: wandb.Settings(resume="banana"),
            "resume: Input should be 'allow', 'must', 'never' or 'auto', not 'ban",
        ),
        (lambda: torch.nn.Linear(1, 2).load_state_dict({}), 'Missing key(s) in state_dict: "weight", "bias"'),
        (lambda: json.loads("{"), "JSONDecodeError: Expecting property name enclosed in double quotes"),
    ],
)
def test_an_error_of_a_library_is_one_line_that_says_it(fails: Callable[[], Any], told: str) -> None:
    with pytest.raises(Exception) as raised:
        fails()
    said = explain(raised.value)
    assert told in said
    assert not any(words in said for words in ("Traceback", "validation error", "further information"))


def test_a_configuration_that_is_not_yaml_is_a_mistake() -> None:
    with pytest.raises(yaml.YAMLError) as raised:
        OmegaConf.create("model:\n  betas: [0.5")
    assert is_users(raised.value)
    assert explain(raised.value).startswith(
        "cannot read a configuration: expected ',' or ']', but got '<stream end>' in"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[/build/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:57: Connection reset by peer. This is"
            " typically caused by a remote worker hanging",
            "(Read error [127.0.0.1]:57: Connection reset by peer)",
        ),
        (
            "NCCL error in: /pytorch/ProcessGroupNCCL.cpp:1700, remote process exited or there was a network error",
            "(NCCL error in: /pytorch/ProcessGroupNCCL.cpp:1700, remote process exited)",
        ),
        (
            "recvValue failed on SocketImpl(fd=6, remote=[localhost]:29): Failed to recv, got 0 bytes."
            " Connection was likely closed. Did the remote server shutdown or crash?",
            "(recvValue failed on SocketImpl(fd=6, remote=[localhost]:29): Failed to recv, got 0 bytes)",
        ),
    ],
)
def test_a_process_that_others_wait_for_is_gone(text: str, said: str) -> None:
    told = explain(RuntimeError(text))
    assert told.startswith(f"another process of this run has ended or cannot be reached {said}: ")
    assert told.endswith("type ckpt_path=last to go on from the last checkpoint")


@pytest.mark.parametrize("raised", ["ConnectionResetError(104, 'Connection reset by peer')", "EOFError"])
def test_a_worker_that_dies_while_it_sends_a_batch_is_gone(raised: str) -> None:
    code = compile(f"raise {raised}", dataloader.__file__, "exec")
    with pytest.raises((OSError, EOFError)) as info:
        exec(code)
    assert explain(info.value).startswith("a worker process that loads data is gone, often for lack of memory")
    with pytest.raises((OSError, EOFError)) as info:
        exec(f"raise {raised}")
    assert "worker" not in explain(info.value)
