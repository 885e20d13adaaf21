"""Published sets: no test image is trained on; files are found, checked and fetched, or the error says what is missing.

Where `DATA_DIR` holds a set it is that of the real files, else a smaller made one.
"""

import contextlib
import pickle
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from src.datamodules import published_datamodule
from src.datamodules.cifar10_datamodule import ARCHIVE, PICKLES, CIFAR10DataModule
from src.datamodules.fashion_mnist_datamodule import FashionMNISTDataModule
from src.datamodules.mnist_datamodule import MNISTDataModule
from src.datamodules.published_datamodule import PublishedDataModule
from tests.datamodules.conftest import (
    CIFAR10_SPLIT,
    DATA_DIR,
    GZIPPED,
    IDX,
    MADE_SPLIT,
    MNIST_SPLIT,
    changed,
    contents,
    folder_of,
    is_there,
    loaded,
    write_cifar10,
    write_idx,
)

FILES = MNISTDataModule.files


def official(folder: Path, kind: type[PublishedDataModule], split: str) -> list[tuple[bytes, int]]:
    """The images, with their labels, of the official `train` or `test` set."""
    if kind is CIFAR10DataModule:
        names = ["test_batch"] if split == "test" else [name for name in kind.files if name != "test_batch"]
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        return [(row.tobytes(), label) for b in batches for row, label in zip(b[b"data"], b[b"labels"], strict=True)]
    start = "t10k" if split == "test" else "train"
    images = np.frombuffer((folder / f"{start}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 784)
    labels = (folder / f"{start}-labels-idx1-ubyte").read_bytes()[8:]
    return [(row.tobytes(), label) for row, label in zip(images, labels, strict=True)]


@pytest.mark.parametrize("kind", [MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule])
def test_each_training_image_is_in_one_set_and_the_test_set_is_the_official_one(
    kind: type[PublishedDataModule], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data_dir, split = DATA_DIR, CIFAR10_SPLIT if kind is CIFAR10DataModule else MNIST_SPLIT
    if not is_there(kind):
        request.getfixturevalue("made")
        data_dir, split = tmp_path, MADE_SPLIT
        write_cifar10(tmp_path) if kind is CIFAR10DataModule else write_idx(tmp_path / kind.folder_name)
    datamodule = loaded(data_dir, kind, train_val_test_split=split)
    assert [len(data) for data in datamodule.sets.values()] == split
    sets = {
        name: [(i.numpy().tobytes(), y) for i, y in zip(data.images, data.labels.tolist(), strict=True)]
        for name, data in datamodule.sets.items()
    }
    assert sets["test"] == official(data_dir / folder_of(kind), kind, "test")
    assert sorted(sets["train"] + sets["val"]) == sorted(official(data_dir / folder_of(kind), kind, "train"))
    assert datamodule.sets["train"].labels.unique().tolist() == list(range(10))


def test_the_sets_are_the_same_for_every_run(tmp_path: Path, made: None) -> None:
    first = loaded(write_idx(tmp_path), seed=1)
    kept = {name: images.images for name, images in first.sets.items()}
    first.setup("test")
    torch.manual_seed(99)
    other = loaded(tmp_path, seed=2, img_size=28, batch_size=7)
    for name, images in kept.items():
        assert first.sets[name].images is images
        assert torch.equal(other.sets[name].images, images)
        assert torch.equal(other.sets[name].labels, first.sets[name].labels)


@pytest.mark.parametrize("split", [[55_000, 5_000, 9_999], [55_000, 4_999, 10_000], [60_000, 5_000, 5_000]])
@pytest.mark.parametrize("kind", [MNISTDataModule, CIFAR10DataModule])
def test_a_split_that_does_not_add_up_is_refused(kind: type[PublishedDataModule], split: list[int]) -> None:
    says = rf"train_val_test_split.*{kind.n_train}.*10000: try \[{kind.n_train - 5_000},5000,10000\]"
    with pytest.raises(ValueError, match=says):
        kind("data/", split)


# Files


def test_they_are_published_where_torchvision_says() -> None:
    for ours, theirs in ((MNISTDataModule, MNIST), (FashionMNISTDataModule, FashionMNIST)):
        assert {f"{name}.gz": md5 for name, (_, md5) in ours.files.items()} == dict(theirs.resources)
    assert list(FashionMNISTDataModule.class_names) == FashionMNIST.classes
    assert CIFAR10DataModule.files == dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert (ARCHIVE, CIFAR10DataModule.archive_md5, PICKLES) == (CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.base_folder)
    assert f"{CIFAR10DataModule.mirrors[0]}{ARCHIVE}" == CIFAR10.url


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["MNIST/raw", "."])
def test_files_are_read_where_they_lie(tmp_path: Path, made: None, no_network: None, folder: str, gzipped: bool):
    write_idx(tmp_path / folder, gzipped)
    before = contents(tmp_path)
    datamodule = loaded(tmp_path)
    assert datamodule.source == "mnist"
    assert datamodule.sets["test"].images.numpy().tobytes() == IDX["t10k-images-idx3-ubyte"][16:]
    assert contents(tmp_path) == before  # nothing unpacked, nothing added


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "text"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, made: None, gzipped: bool, damage: str) -> None:
    content = (GZIPPED if gzipped else IDX)["train-images-idx3-ubyte"]
    half = content[: len(content) // 2]
    bad = {"truncated": half, "empty": b"", "changed": changed(content), "text": b"404 not found"}[damage]
    write_idx(tmp_path, gzipped, **{"train-images": bad})
    before = contents(tmp_path)
    name = "train-images-idx3-ubyte" + (".gz" if gzipped else "")
    with pytest.raises(ValueError, match=rf"{tmp_path / name} is damaged") as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_one_sets_files_are_not_taken_for_anothers(tmp_path: Path) -> None:
    write_idx(tmp_path)  # directly in data_dir, where both may lie
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged"):
        FashionMNISTDataModule(tmp_path, MNIST_SPLIT).setup()


@pytest.mark.parametrize("kind", [FashionMNISTDataModule, CIFAR10DataModule])
def test_without_files_and_network_it_says_what_to_put_where(
    tmp_path: Path, made: None, no_network: None, kind: type[PublishedDataModule]
) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loaded(tmp_path, kind)
    message = str(error.value)
    assert message.startswith(f"{kind.title} is not in {tmp_path / kind.folder_name} and could not be downloaded")
    named = [ARCHIVE] if kind is CIFAR10DataModule else [f"{name}.gz" for name in FILES]
    assert "no route to host" in message and message.endswith(f"put {', '.join(named)} there")
    assert contents(tmp_path) == {}


# Download


class Mirror(BaseHTTPRequestHandler):
    """Serves the made files, in the way that `behaviour` says."""

    behaviour = "good"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        content = GZIPPED[name.removesuffix(".gz")]
        behaviour = self.behaviour if name.startswith("t10k-images") else "good"
        if behaviour == "no HTTP":
            self.wfile.write(b"please log in to this network\r\n\r\n")
        elif behaviour == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            sent = {"interrupted": content[: len(content) // 2], "wrong checksum": content[:-1] + b"?"}
            self.wfile.write(sent.get(behaviour, content))

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, made: None) -> Iterator[ThreadingHTTPServer]:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.asked = []
    monkeypatch.setattr(MNISTDataModule, "mirrors", [f"http://127.0.0.1:{server.server_port}/mnist/"])
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_missing_files_are_downloaded_once(tmp_path: Path, mirror: ThreadingHTTPServer) -> None:
    datamodule = loaded(tmp_path, offline_fallback=False)
    assert datamodule.source == "mnist"
    assert datamodule.sets["test"].images.numpy().tobytes() == IDX["t10k-images-idx3-ubyte"][16:]
    assert contents(tmp_path) == {f"MNIST/raw/{name}.gz": content for name, content in GZIPPED.items()}
    assert set(mirror.asked) == {f"{name}.gz" for name in FILES}

    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz").unlink()
    mirror.asked.clear()
    for _ in range(2):
        loaded(tmp_path, offline_fallback=False)
    assert set(mirror.asked) == {"train-labels-idx1-ubyte.gz"}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that takes no further connection, as a network does that drops packets."""
    monkeypatch.setattr(published_datamodule, "NETWORK_TIMEOUT_S", 0.1)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_of_a_servers_addresses_one_must_answer(
    silent: int, mirror: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has(*ports: int) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    has(silent, mirror.server_port)
    published_datamodule.check_answers("http://example.org/a/")
    has(*[silent] * 8)
    with pytest.raises(OSError, match=r"^example\.org does not answer$"):
        published_datamodule.check_answers("http://example.org/a/")


@pytest.mark.parametrize("behaviour", ["interrupted", "wrong checksum", "missing", "no HTTP"])
def test_a_file_appears_only_when_it_is_whole(
    tmp_path: Path, mirror: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "behaviour", behaviour)
        with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz could not be downloaded"):
            loaded(tmp_path, offline_fallback=False)
    left = contents(tmp_path)
    assert "MNIST/raw/t10k-images-idx3-ubyte.gz" not in left
    assert all(content == GZIPPED[Path(path).stem] for path, content in left.items())

    mirror.asked.clear()  # the next attempt goes on from there
    assert loaded(tmp_path, offline_fallback=False).source == "mnist"
    assert {Path(path).name for path in left} & set(mirror.asked) == set()
