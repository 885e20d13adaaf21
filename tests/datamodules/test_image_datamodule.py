"""What every data set can do: train on fewer images, and mirror them if it is one of photos."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from src.datamodules import image_datamodule
from src.datamodules.digits_datamodule import DigitsDataModule
from src.datamodules.image_datamodule import ImageDataModule, Split, by_turns
from src.datamodules.loader import ImageSet
from src.datamodules.mnist_datamodule import MNISTDataModule
from src.errors import UserError
from tests.conftest import assert_same, build


class Uneven(ImageDataModule):
    """2 images of class 0, 5 of class 1 and 13 of class 2; each pixel of an image is its number."""

    channels = 1
    n_classes = 3
    source = "uneven"

    def load(self) -> dict[str, Split]:
        labels = torch.tensor([0] * 2 + [1] * 5 + [2] * 13)
        images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).repeat(1, 1, 2, 2)
        return {"train": (images, labels), "val": (images[:4], labels[:4]), "test": (images[:6], labels[:6])}


def loaded(**kwargs) -> Uneven:
    datamodule = Uneven([20, 4, 6], **{"batch_size": 1, "img_size": 2} | kwargs)
    datamodule.setup()
    return datamodule


def numbers(datamodule: ImageDataModule, split: str = "train") -> list[int]:
    return datamodule.sets[split].images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("subset", "counts"),
    [(3, [1, 1, 1]), (6, [2, 2, 2]), (10, [2, 4, 4]), (12, [2, 5, 5]), (15, [2, 5, 8]), (20, [2, 5, 13])],
)
def test_a_subset_is_as_even_as_the_classes_allow(subset: int, counts: list[int]) -> None:
    datamodule = loaded(subset=subset)
    assert datamodule.sets["train"].labels.bincount().tolist() == counts
    drawn = numbers(datamodule)
    served = torch.cat([labels for _, labels in datamodule.train_dataloader()])
    assert served.sort().values.tolist() == datamodule.sets["train"].labels.sort().values.tolist()
    assert len(set(drawn)) == subset
    assert list(datamodule.class_names) == ["0", "1", "2"]
    whole = loaded().sets["train"].labels  # each image kept its label
    assert datamodule.sets["train"].labels.tolist() == whole[drawn].tolist()


def test_as_many_of_each_class() -> None:
    assert loaded(subset_per_class=2).sets["train"].labels.bincount().tolist() == [2, 2, 2]
    assert numbers(loaded(subset_per_class=2)) == numbers(loaded(subset=6))
    with pytest.raises(ValueError, match="subset_per_class is 3, but there are only 2 training images of class '0'"):
        loaded(subset_per_class=3)


def test_a_subset_is_the_same_for_every_seed_and_part_of_the_larger_ones() -> None:
    first = numbers(loaded(subset=9, seed=1))
    torch.manual_seed(5)
    assert numbers(loaded(subset=9, seed=2)) == first
    assert numbers(loaded(subset=14))[:9] == first
    assert first != sorted(first)  # drawn, not the first of each class
    assert numbers(loaded(subset=9), "val") == list(range(4)) and numbers(loaded(subset=9), "test") == list(range(6))


def test_a_process_that_could_not_fill_a_batch_is_refused() -> None:
    """Otherwise it would train on nothing and not say so."""
    datamodule = loaded(subset=8, batch_size=5)
    datamodule.trainer = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(UserError, match=r"datamodule\.batch_size is 5, but each of the 2 processes has only 4"):
        datamodule.train_dataloader()


def test_turns_are_a_permutation() -> None:
    labels = torch.tensor([2, 2, 2, 7, 7, 0])
    order = by_turns(labels)
    assert sorted(order.tolist()) == list(range(6))
    turns = labels[order].tolist()
    assert sorted(turns[:3]) == [0, 2, 7] and sorted(turns[3:5]) == [2, 7] and turns[5:] == [2]


def test_training_images_are_mirrored_and_no_others() -> None:
    class Mirrored(Uneven):
        flip = True

        def load(self) -> dict[str, Split]:
            rng = torch.Generator().manual_seed(0)
            return {
                name: (torch.randint(256, (n, 1, 4, 4), generator=rng).byte(), torch.zeros(n, dtype=torch.int64))
                for name, n in zip(["train", "val", "test"], self.train_val_test_split, strict=True)
            }

    def as_stored(split: str) -> float:
        """The share of the served images that are stored ones as they are, while the others are mirrored ones."""
        stored = datamodule.sets[split].images.float() / 127.5 - 1
        served = torch.cat([images for images, _ in getattr(datamodule, f"{split}_dataloader")()])
        plain, mirrored = (
            (served.flatten(1)[:, None] == side.flatten(1)).all(-1).any(1) for side in (stored, stored.flip(-1))
        )
        assert (plain ^ mirrored).all()
        return plain.float().mean().item()

    datamodule = Mirrored([400, 50, 50], batch_size=10, img_size=4)
    datamodule.setup()
    assert 0.4 < as_stored("train") < 0.6
    assert as_stored("val") == as_stored("test") == 1


def test_training_images_are_shifted_by_a_share_of_their_side_and_no_others() -> None:
    class Shifted(Uneven):
        crop = 0.25

        def load(self) -> dict[str, Split]:
            image = torch.zeros(1, 8, 8, dtype=torch.uint8)
            image[0, 4, 4] = 255
            images, labels = image.expand(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64)
            return {
                name: (images[:n], labels[:n]) for name, n in zip(["train", "val", "test"], [20, 4, 6], strict=True)
            }

    datamodule = Shifted([20, 4, 6], batch_size=5, img_size=8)
    datamodule.setup()

    def where(split: str) -> set[tuple[int, int]]:
        served = torch.cat([images for images, _ in getattr(datamodule, f"{split}_dataloader")()])
        return {(int(y), int(x)) for _, _, y, x in (served == 1).nonzero()}

    drawn = where("train")
    assert len(drawn) > 5 and all(2 <= at <= 6 for place in drawn for at in place)
    assert where("val") == where("test") == {(4, 4)}
    assert datamodule.references["train"].n_places == 1


# Where images are kept

MIB = 2**20


class Photos(ImageDataModule):
    """Mirrored and shifted, as no batch of theirs is what is stored."""

    channels = 3
    n_classes = 2
    source = "photos"
    flip = True
    crop = 0.25

    def load(self) -> dict[str, Split]:
        rng = torch.Generator().manual_seed(0)
        return {
            name: (torch.randint(256, (n, 3, 8, 8), generator=rng).byte(), torch.arange(n) % 2)
            for name, n in zip(["train", "val", "test"], self.train_val_test_split, strict=True)
        }


def trained_on(device: str, where: str = "auto", rank: int = 0) -> Photos:
    """Loaded, in a process whose trainer computes on a device."""
    datamodule = Photos([40, 8, 8], batch_size=5, img_size=8, seed=3, device=where)
    datamodule.setup()
    strategy = SimpleNamespace(root_device=torch.device(device))
    datamodule.trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy)
    return datamodule


def served(datamodule: Photos) -> list[list[Tensor]]:
    """Two epochs of training, validation and test."""
    train = datamodule.train_dataloader()
    batches = []
    for epoch in (0, 1):
        train.sampler.set_epoch(epoch)
        batches += [*train]
    return [*batches, *datamodule.val_dataloader(), *datamodule.test_dataloader()]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Every device is taken for a GPU with 1 MiB free; returns those that were asked."""
    asked = []
    monkeypatch.setattr(image_datamodule, "free_on_gpu", lambda device: asked.append(device) or MIB)
    return asked


def test_images_lie_on_the_gpu_that_trains_and_metrics_have_theirs_in_main_memory(
    gpu: list[torch.device], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        datamodule = trained_on("meta")
        batches = served(datamodule)
    assert {each.device.type for batch in batches for each in batch} == {"meta"}
    assert [len(images) for images, _ in batches] == [5] * 8 + [8] * 2
    assert datamodule.train_dataloader().dataset.images is datamodule.train_dataloader().dataset.images  # moved once
    assert datamodule.train_dataloader().dataset.images.dtype == torch.uint8
    assert {each.images.device.type for each in [*datamodule.sets.values(), datamodule.references["train"]]} == {"cpu"}
    assert len(datamodule.sha256()) == 64
    assert caplog.messages == ["images are on meta: 0 MiB"]


def test_batches_from_another_device_are_the_same_and_resume_where_they_stopped(
    gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(data: ImageSet, device: torch.device) -> ImageSet:
        return replace(data, images=data.images.clone(), labels=data.labels.clone())

    monkeypatch.setattr(ImageSet, "to", to)  # a copy elsewhere
    there, here = trained_on("cpu", rank=1), trained_on("cpu", where="cpu", rank=1)
    assert there.train_dataloader().dataset.images.data_ptr() != there.sets["train"].images.data_ptr()
    assert_same(served(there), served(here))

    whole, loader = [*here.train_dataloader()], there.train_dataloader()
    stopped = iter(loader)
    assert_same([next(stopped), next(stopped)], whole[:2])
    resumed = there.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert_same([*resumed], whole[2:])


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_asks_its_own_gpu(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(str(device)) or 40_000, 10**9))
    datamodule = trained_on(f"cuda:{rank}", rank=rank)
    needed = 56 * (3 * 8 * 8 + 8)
    assert needed > 40_000 / 4
    with caplog.at_level("INFO"):
        loader = datamodule.train_dataloader()
    assert asked == [f"cuda:{rank}"]
    assert loader.dataset is datamodule.sets["train"]
    assert "images stay in main memory: 0 MiB are more than a quarter of what is free on cuda" in caplog.text


def test_without_a_gpu_images_stay_in_main_memory(caplog: pytest.LogCaptureFixture) -> None:
    datamodule = trained_on("cpu")
    with caplog.at_level("INFO"):
        assert datamodule.train_dataloader().dataset is datamodule.sets["train"]
    assert caplog.messages == ["images stay in main memory: what trains is not a GPU with memory of its own"]
    caplog.clear()
    assert trained_on("meta", where="cpu").train_dataloader().dataset.images.device.type == "cpu"
    assert not caplog.messages  # nobody asked


def test_a_gpu_that_runs_out_of_memory_gets_a_sentence(
    gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(data: ImageSet, device: torch.device) -> ImageSet:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has")

    monkeypatch.setattr(ImageSet, "to", full)
    with pytest.raises(UserError, match=r"^datamodule\.device=auto found no room .* use datamodule\.device=cpu$"):
        trained_on("meta").val_dataloader()


@pytest.mark.parametrize("kind", [DigitsDataModule, MNISTDataModule])
def test_digits_cannot_be_mirrored(kind: type[ImageDataModule]) -> None:
    with pytest.raises(UserError, match=f"flip is not an option of {kind.__name__}: remove it"):
        build(kind, flip=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_val_test_split": [1_000, 128, 257]}, r"must add up to 1797, but .* makes 1385: try \[1412,128,257\]"),
        ({"train_val_test_split": [1_797]}, "train_val_test_split must be a list of three positive whole numbers"),
        ({"train_val_test_split": [1_540, 0, 257]}, "train_val_test_split must be a list of three positive whole num"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 64.0}, "batch_size must be a whole number of at least 1, not 64.0"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, not True"),
        ({"batch_sise": 64}, "batch_sise is not an option of DigitsDataModule.* choose one of .*batch_size"),
        ({"batch_size": 1_413}, "batch_size is 1413, but there are only 1412 training images"),
        ({"img_size": 0}, "img_size must be a whole number of at least 1, not 0"),
        ({"subset": 0}, "subset must be a whole number of at least 1 or null, not 0"),
        ({"subset": 1_413}, "subset is 1413, but there are only 1412 training images: use fewer"),
        ({"subset": 100, "batch_size": 101}, "batch_size is 101, but there are only 100 training images"),
        ({"subset_per_class": 6}, "batch_size is 64, but there are only 60 training images"),
        ({"subset_per_class": True}, "subset_per_class must be a whole number of at least 1 or null, not True"),
        ({"subset_per_class": 142}, "subset_per_class is 142, which makes 1420 images of 10 classes.* only 1412"),
        ({"subset_per_class": 140}, "subset_per_class is 140, but there are only 13. training images of class '[0-9]'"),
        ({"subset": 100, "subset_per_class": 10}, "subset must be null where subset_per_class is set"),
        ({"device": "cuda"}, "device must be cpu or auto, not 'cuda'"),
        (
            {"device": "auto", "num_workers": 2},
            r"part\.num_workers must be 0 with device=auto.*set num_workers=0, or devic",
        ),
        (
            {"device": "auto", "pin_memory": True},
            r"part\.pin_memory must be false with device=auto.*set pin_memory=false",
        ),
        ({"num_workers": -1}, "num_workers must be a whole number from 0 to 1024, at least 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(DigitsDataModule, **arguments).setup()


def test_the_checksum_is_of_every_pixel_and_label_whatever_the_subset() -> None:
    datamodule = loaded(subset=3)
    before = datamodule.sha256()
    assert before == loaded().sha256() and before != datamodule.sha256(b"start") and len(before) == 64
    for split in (datamodule.references["train"], datamodule.sets["val"], datamodule.sets["test"]):
        for name in ("images", "labels"):
            kept = getattr(split, name)
            changed = kept.clone()
            changed[1] += 1
            setattr(split, name, changed)
            assert datamodule.sha256() != before
            setattr(split, name, kept)
