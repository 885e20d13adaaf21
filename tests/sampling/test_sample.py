"""Images from a checkpoint alone: the same bytes from a seed, in bounded memory, and nothing half-written."""

import json
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.datamodules.picture_files import find_pictures
from src.errors import UserError
from src.pictures.grid import to_uint8
from src.run.checkpoints import build_model, read_checkpoint
from src.sample import sample
from src.sampling.labels import folder_names
from src.sampling.sampler import Noise
from src.sampling.samples_file import write_samples
from tests.conftest import ROOT, compose_config
from tests.forked import run_forked

Drawn = Callable[..., Path]


@pytest.fixture
def drawn(checkpoint: Path, tmp_path: Path) -> Drawn:
    """Samples from the trained checkpoint into a folder of the given name."""

    def run(name: str, *typed: str) -> Path:
        sample(compose_config("sample", f"ckpt_path={checkpoint}", *typed, f"out={tmp_path}/{name}", run_dir=tmp_path))
        return tmp_path / name

    return run


def test_a_seed_gives_the_same_bytes_whatever_the_batch_size(drawn: Drawn) -> None:
    typed = ["labels=[5,3]", "n_per_label=70", "seed=1"]
    files = [drawn(f"{size}", *typed, f"batch_size={size}") / "samples.npz" for size in (1, 7, 64, 65, 1000)]
    assert len({file.read_bytes() for file in files}) == 1
    assert drawn("other", *typed[:2], "seed=2").joinpath("samples.npz").read_bytes() != files[0].read_bytes()


def test_what_is_drawn_first_does_not_depend_on_how_much_follows(drawn: Drawn) -> None:
    few, many = (np.load(drawn(n, "labels=[5]", f"n_per_label={n}") / "samples.npz")["images"] for n in ("64", "200"))
    assert np.array_equal(few, many[:64])


def test_the_images_are_the_models_own(drawn: Drawn, checkpoint: Path) -> None:
    found = np.load(drawn("a", "labels=[5]", "truncation=0.5", "weights=raw") / "samples.npz")
    model = build_model(read_checkpoint(checkpoint), checkpoint)
    noise = torch.from_numpy(Noise((100,), 0)(16)) / 2
    expected = to_uint8(model.generate(torch.full([16], 5), noise=noise, average=False).numpy())
    assert np.abs(found["images"].astype(int) - expected).max() <= 1  # where rounding is close
    assert found["labels"].tolist() == [5] * 16


def test_no_truncation_is_one_image_a_class(drawn: Drawn) -> None:
    found = np.load(drawn("a", "labels=[5,7]", "n_per_label=3", "truncation=0") / "samples.npz")["images"]
    assert (found[:3] == found[0]).all() and (found[3:] == found[3]).all() and (found[0] != found[3]).any()


def test_pngs_are_the_same_images_and_can_be_trained_on(drawn: Drawn) -> None:
    out = drawn("a", "labels=[9,0]", "n_per_label=2", "png=true")
    images = np.load(out / "samples.npz")["images"]
    names = ["9/00000.png", "9/00001.png", "0/00002.png", "0/00003.png"]
    assert sorted(str(path.relative_to(out / "png")) for path in out.rglob("png/*/*")) == sorted(names)
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / "png" / name)), image[:, :, 0])


def test_the_printed_command_draws_a_class_whose_name_is_another_ones_number(
    train_here: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in range(1, 13):
        (tmp_path / "data" / str(name)).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 20 * name).save(tmp_path / "data" / str(name) / f"{i}.png")
    typed = ["datamodule=folder", "datamodule.img_size=8", "datamodule.channels=1", "datamodule.batch_size=4"]
    typed += [f"datamodule.folder={tmp_path}/data", "logger=none", "callbacks.quality=null"]
    typed += ["callbacks.model_checkpoint.monitor=null", "trainer.max_steps=1", "test_after_training=false"]
    train_here("twelve", *typed, "optimized_metric=null")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample ")]
    typed = [each for each in shlex.split(line) if "=" in each and not each.startswith("task=")]
    assert 'labels=["#5"]' in typed
    sample(compose_config("sample", *typed, f"out={tmp_path}/out", "png=true", run_dir=tmp_path))
    assert {path.parent.name for path in tmp_path.glob("out/png/*/*")} == {"6"}


def test_pngs_are_read_back_as_the_classes_that_they_are_of(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    names = ["../../up", "T-shirt/top", "Größe 1", *(str(i) for i in range(7))]
    content["data"]["classes"] = names
    torch.save(content, tmp_path / "named.ckpt")
    typed = [f"ckpt_path={tmp_path}/named.ckpt", "n_per_label=1", "png=true", f"out={tmp_path}/out"]
    sample(compose_config("sample", *typed, run_dir=tmp_path))
    found = find_pictures(tmp_path / "out" / "png")
    assert {picture.label: picture.path.parent.name for picture in found.pictures} == dict(
        zip(names, folder_names(names), strict=True)
    )
    assert len(found.pictures) == 10 and not found.in_words()


@pytest.mark.parametrize(("typed", "cells"), [(["labels=[5]"], (16, 16)), (["labels=[5,3]"], (2, 16))])
def test_the_grid_shows_some_of_many(drawn: Drawn, typed: list[str], cells: tuple[int, int]) -> None:
    out = drawn("a", *typed, "n_per_label=300")
    picture = np.asarray(Image.open(out / "grid.png"))
    assert picture.shape == (cells[0] * 34 + 2, cells[1] * 34 + 2, 3)
    images = np.load(out / "samples.npz")["images"]
    last_row = images[240] if len(typed[0]) == 10 else images[300]
    assert np.array_equal(picture[-34:-2, 2:34, 0], last_row[:, :, 0])


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    import tracemalloc

    def parts():
        for _ in range(1_000):
            yield np.zeros((1_000, 16, 16, 1), np.uint8), np.zeros(1_000, np.int64)

    tracemalloc.start()
    write_samples(tmp_path / "samples.npz", (1_000_000, 16, 16, 1), parts())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # of 264 MB
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive:
        assert [(each.filename, each.file_size) for each in archive.infolist()] == [
            ("images.npy", 256_000_128),
            ("labels.npy", 8_000_128),
        ]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(b"mine")

    def parts():
        yield np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(path, (2, 2, 2, 1), parts())
    assert path.read_bytes() == b"mine" and [each.name for each in tmp_path.iterdir()] == ["samples.npz"]


def test_classes_can_be_named(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["data"]["classes"] = ["cat", "dog", *"23456789"]
    torch.save(content, tmp_path / "named.ckpt")

    def draw(labels: str) -> list[int]:
        typed = [f"ckpt_path={tmp_path}/named.ckpt", f"labels={labels}", "n_per_label=1", f"out={tmp_path}"]
        sample(compose_config("sample", *typed, run_dir=tmp_path))
        return np.load(tmp_path / "samples.npz")["labels"].tolist()

    assert draw("[dog,9,cat]") == [1, 9, 0] and draw("dog") == [1] and draw("['#2']") == [2]
    with pytest.raises(UserError, match=r"^labels: there is no class 'bird': use a name such as '9'"):
        draw("[bird]")


def test_an_old_checkpoint_still_draws(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["data"], content["commit"]  # which checkpoints have not always had
    torch.save(content, tmp_path / "old.ckpt")
    sample(compose_config("sample", f"ckpt_path={tmp_path}/old.ckpt", f"out={tmp_path}", run_dir=tmp_path))
    assert len(np.load(tmp_path / "samples.npz")["labels"]) == 160


def test_the_command_ends_with_what_it_made_and_what_to_type_next(checkpoint: Path, tmp_path: Path) -> None:
    done = run_forked("task=sample", f"ckpt_path={checkpoint}", "labels=[5]", "out=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 images from" in done.stdout and "here/samples.npz" in done.stdout and "here/grid.png" in done.stdout
    others = next(line for line in done.stdout.splitlines() if line.startswith("others"))
    assert "labels=[5]" in others and "seed=1" in others and str(ROOT / "run.py") in others
    assert json.dumps(sorted(p.name for p in (tmp_path / "here").iterdir())) == '["grid.png", "samples.npz"]'
