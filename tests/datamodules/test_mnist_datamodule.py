"""MNIST: no test image is trained on, files are found and checked, and what stands in for them says so.

Where `DATA_DIR` holds MNIST the sets are those of the real files, else of smaller made ones. How files are found,
checked and fetched is tested on made ones.
"""

import contextlib
import gzip
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from src.datamodules import published_datamodule
from src.datamodules.mnist_datamodule import MNISTDataModule

DATA_DIR = Path(os.environ.get("DATA_DIR") or "data")
FILES = MNISTDataModule.files
HAS_MNIST = all((DATA_DIR / "MNIST" / "raw" / name).is_file() for name in FILES)
SPLIT, MADE_SPLIT = [55_000, 5_000, 10_000], [100, 20, 40]


def make_files() -> dict[str, bytes]:
    """Four idx files of random images, whose labels are 0, 1, ..., 9, 0, 1, ..."""
    files = {}
    for name, n in [("train", sum(MADE_SPLIT[:2])), ("t10k", MADE_SPLIT[2])]:
        images, labels = np.random.default_rng(n).bytes(n * 784), bytes(i % 10 for i in range(n))
        files[f"{name}-images-idx3-ubyte"] = b"\0\0\x08\3" + np.array([n, 28, 28], ">u4").tobytes() + images
        files[f"{name}-labels-idx1-ubyte"] = b"\0\0\x08\1" + np.array([n], ">u4").tobytes() + labels
    return files


MADE = make_files()
GZIPPED = {name: gzip.compress(content, mtime=0) for name, content in MADE.items()}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data module takes the made files for MNIST."""
    monkeypatch.setattr(MNISTDataModule, "files", {name: (md5(MADE[name]), md5(GZIPPED[name])) for name in FILES})
    monkeypatch.setattr(MNISTDataModule, "n_train", sum(MADE_SPLIT[:2]))
    monkeypatch.setattr(MNISTDataModule, "n_test", MADE_SPLIT[2])


def write(folder: Path, gzipped: bool = False, **instead: bytes) -> Path:
    """Writes the made files; `instead` replaces the contents of those that begin so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (GZIPPED if gzipped else MADE).items():
        content = next((value for start, value in instead.items() if name.startswith(start)), content)
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(content)
    return folder


def loaded(data_dir: Path, **kwargs) -> MNISTDataModule:
    datamodule = MNISTDataModule(data_dir, **{"train_val_test_split": MADE_SPLIT, "batch_size": 10} | kwargs)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The sets


@pytest.fixture
def mnist(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, list[int]]:
    """A folder with MNIST, real where there is one, and its split."""
    if HAS_MNIST:
        return DATA_DIR, SPLIT
    request.getfixturevalue("made")
    return write(tmp_path), MADE_SPLIT


def test_no_image_is_in_two_sets_and_the_test_set_is_the_official_one(mnist: tuple[Path, list[int]]) -> None:
    folder, split = mnist
    datamodule = loaded(folder, train_val_test_split=split)
    assert datamodule.source == "mnist"
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == split

    raw = folder / "MNIST" / "raw" if HAS_MNIST else folder
    official = {
        name: np.frombuffer((raw / f"{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 784)
        for name in ("train", "t10k")
    }
    images = {name: images.images.view(-1, 784).numpy() for name, images in datamodule.sets.items()}
    assert np.array_equal(images["test"], official["t10k"])
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    assert datamodule.sets["test"].labels.tolist() == labels.tolist()
    # Each official training image is used once: train and val together are a permutation of them.
    together = sorted(row.tobytes() for row in np.concatenate([images["train"], images["val"]]))
    assert together == sorted(row.tobytes() for row in official["train"])
    seen = [{row.tobytes() for row in images[name]} for name in ("train", "val", "test")]
    assert seen[0] & seen[1] == seen[0] & seen[2] == seen[1] & seen[2] == set()


def test_the_sets_are_the_same_for_every_run(mnist: tuple[Path, list[int]]) -> None:
    folder, split = mnist
    first = loaded(folder, train_val_test_split=split, seed=1)
    kept = {name: images.images for name, images in first.sets.items()}
    first.setup("test")
    torch.manual_seed(99)
    other = loaded(folder, train_val_test_split=split, seed=2, img_size=28, batch_size=7)
    for name, images in kept.items():
        assert first.sets[name].images is images
        assert torch.equal(other.sets[name].images, images)
        assert torch.equal(other.sets[name].labels, first.sets[name].labels)


def test_images_keep_their_labels(tmp_path: Path, made: None) -> None:
    datamodule = loaded(write(tmp_path))
    official = np.frombuffer(MADE["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 784)
    label_of = {row.tobytes(): i % 10 for i, row in enumerate(official)}
    for name in ("train", "val"):
        images = datamodule.sets[name]
        assert [label_of[i.numpy().tobytes()] for i in images.images] == images.labels.tolist()


@pytest.mark.parametrize("split", [[55_000, 5_000, 9_999], [55_000, 4_999, 10_000], [60_000, 5_000, 5_000]])
def test_a_split_that_does_not_add_up_is_refused(split: list[int]) -> None:
    with pytest.raises(ValueError, match=r"train_val_test_split.*60000.*10000.*55000, ?5000, ?10000"):
        MNISTDataModule(train_val_test_split=split)


# Files


def test_its_checksums_are_those_that_torchvision_knows() -> None:
    assert {f"{name}.gz": md5 for name, (_, md5) in FILES.items()} == dict(MNIST.resources)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["MNIST/raw", "."])
def test_files_are_read_where_they_lie(tmp_path: Path, made: None, no_network: None, folder: str, gzipped: bool):
    write(tmp_path / folder, gzipped)
    before = contents(tmp_path)
    datamodule = loaded(tmp_path)
    assert datamodule.source == "mnist"
    assert datamodule.sets["test"].images.numpy().tobytes() == MADE["t10k-images-idx3-ubyte"][16:]
    assert contents(tmp_path) == before  # nothing unpacked, nothing added


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "text"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, made: None, gzipped: bool, damage: str) -> None:
    content = (GZIPPED if gzipped else MADE)["train-images-idx3-ubyte"]
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    bad = {"truncated": content[:middle], "empty": b"", "changed": changed, "text": b"404 not found"}[damage]
    write(tmp_path, gzipped, **{"train-images": bad})
    before = contents(tmp_path)
    name = "train-images-idx3-ubyte" + (".gz" if gzipped else "")
    with pytest.raises(ValueError, match=str(tmp_path / name)) as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


# No files and no network


def test_the_digits_stand_in_and_say_so(tmp_path: Path, no_network: None, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a [b] :cat: c"
    datamodule = loaded(folder, train_val_test_split=SPLIT, batch_size=64)
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert "a [b] :cat: c" in shown
    assert "WARNING" in shown and "NOT MNIST" in shown and "1,797 digits" in shown
    assert "no route to host" in shown and "offline_fallback=false" in shown
    assert datamodule.source == "digits-fallback"
    assert datamodule.train_val_test_split == [1_412, 128, 257]
    assert [len(datamodule.sets[name]) for name in ("train", "val", "test")] == [1_412, 128, 257]
    datamodule.prepare_data()  # Lightning asks again
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "images", "batches"),
    [
        ({}, 1_412, 55_000 // 64),
        ({"train_val_test_split": [50_000, 10_000, 10_000], "batch_size": 48}, 1_412, 50_000 // 48),
        ({"batch_size": 2_000}, 1_412, 27),  # more than there are digits
        ({"subset": 5_000}, 1_412, 5_000 // 64),
        ({"subset": 1_000}, 1_000, 1_000 // 64),
        ({"subset_per_class": 100}, 1_000, 1_000 // 64),
        ({"subset_per_class": 500}, 1_412, 5_000 // 64),
    ],
)
def test_an_epoch_of_the_digits_is_as_long_as_one_of_mnist(
    tmp_path: Path, no_network: None, arguments: dict[str, object], images: int, batches: int
) -> None:
    datamodule = loaded(tmp_path, **{"train_val_test_split": SPLIT, "batch_size": 64, "img_size": 8} | arguments)
    assert len(datamodule.sets["train"]) == images
    assert len(datamodule.whole_train) == 1_412
    loader = datamodule.train_dataloader()
    assert len(loader) == batches
    counts = np.bincount(list(loader.sampler), minlength=images)
    assert counts.max() - counts.min() <= 1  # each image equally often
    assert len(datamodule.val_dataloader().dataset) == 128


def test_without_the_fallback_the_error_says_what_to_put_where(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loaded(tmp_path, train_val_test_split=SPLIT, offline_fallback=False)
    assert str(tmp_path / "MNIST" / "raw") in str(error.value)
    assert all(f"{name}.gz" in str(error.value) for name in FILES)


def test_one_missing_file_is_the_one_that_is_asked_for(tmp_path: Path, made: None, no_network: None) -> None:
    (write(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"put t10k-labels-idx1-ubyte\.gz there"):
        loaded(tmp_path, offline_fallback=False)


# Download


class Mirror(BaseHTTPRequestHandler):
    """Serves the made files, in the way that `behaviour` says."""

    behaviour = "good"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        content = GZIPPED[name.removesuffix(".gz")]
        damaged = name.startswith("t10k-images")
        if damaged and self.behaviour == "no HTTP":
            self.wfile.write(b"please log in to this network\r\n\r\n")
            return
        if damaged and self.behaviour == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if damaged and self.behaviour == "interrupted":
            content = content[: len(content) // 2]
        if damaged and self.behaviour == "wrong checksum":
            content = content[:-1] + b"?"
        self.wfile.write(content)

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
    assert datamodule.sets["test"].images.numpy().tobytes() == MADE["t10k-images-idx3-ubyte"][16:]
    assert contents(tmp_path) == {f"MNIST/raw/{name}.gz": content for name, content in GZIPPED.items()}
    asked = list(mirror.asked)
    assert set(asked) == {f"{name}.gz" for name in FILES}
    loaded(tmp_path, offline_fallback=False)
    assert mirror.asked == asked


def test_only_what_is_missing_is_downloaded(tmp_path: Path, mirror: ThreadingHTTPServer) -> None:
    (write(tmp_path) / "train-labels-idx1-ubyte").unlink()
    assert loaded(tmp_path, offline_fallback=False).source == "mnist"
    assert set(mirror.asked) == {"train-labels-idx1-ubyte.gz"}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that takes no further connection, as a network does that drops packets."""
    monkeypatch.setattr(published_datamodule, "NETWORK_TIMEOUT_S", 0.1)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
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
