"""Oxford 102 Flowers: photos of flowers, packed at 64 pixels, or as they are published."""

import contextlib
import gzip
import io
import logging
import os
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only

from src.config.types import Count
from src.datamodules.image_datamodule import Crop, Sizes, Split, split_off
from src.datamodules.picture_files import some
from src.datamodules.picture_pixels import decode
from src.datamodules.published_datamodule import PublishedDataModule, check_md5

log = logging.getLogger(__name__)

ARCHIVE, LABELS, SETS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
PHOTOS = "jpg"  # the folder in the archive
PACKED, PACKED_SIZE = "flowers64/flowers64.npz", 64
# In the order of the official labels, which begin with 1.
NAMES = """\
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid, bird
of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris, globe-flower,
purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower, fritillary, red
ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william, carnation,
garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold,
buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff,
gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily,
rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus,
columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss,
foxglove, bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily\
"""


class FlowersDataModule(PublishedDataModule):
    """Oxford 102 Flowers (Nilsback & Zisserman 2008): photos in colour, cut to their central square, `img_size` pixels.

    Of the 8,189 photos these are the 2,040 of the official training and validation sets, 20 of each class; the rest is
    as uneven as it was found. All splits have as many photos of each class, always the same ones.

    `data_dir` holds `flowers64/flowers64.npz`, which has these photos at 64 pixels, or the official files under
    `flowers-102/`, where torchvision has them, too, and where they are downloaded. Images larger than 64 pixels are
    taken from the official files if they are there.

    Args:
        train_val_test_split: makes 2,040, each a multiple of the 102 classes.
        flip: mirror each training image, left to right, in every other epoch on average.
        crop: shift each training image at random by up to this share of its side; the border mirrors it.
        **kwargs: as in `PublishedDataModule`.
    """

    channels = 3
    class_names = tuple(" ".join(NAMES.split()).split(", "))
    n_classes = len(class_names)
    source = "flowers"
    title = "Oxford 102 Flowers"
    folder_name = "flowers-102"
    mirrors = ("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",)
    n_photos = 2_040
    by_class = True
    files = {
        ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
        LABELS: "e0620be6f572b9609742df49c70aed4d",
        SETS: "a5357ecc9cb78c4bef273ce3793fc85c",
    }
    packed_md5 = "bba5dae7ac15b2c6dcbc6c18752f2002"

    def __init__(
        self,
        data_dir: str | Path,
        train_val_test_split: Sizes = (1_632, 204, 204),
        img_size: Count = 64,
        flip: bool = True,
        crop: Crop = 0.0,
        **kwargs: Any,
    ) -> None:
        sizes = list(train_val_test_split)
        if sum(sizes) != self.n_photos or any(size % self.n_classes for size in sizes):
            raise ValueError(
                f"train_val_test_split is {sizes}, but must make {self.n_photos}, each a multiple of the"
                f" {self.n_classes} classes: try [1632,204,204]"
            )
        self.n_train, self.n_test = sum(sizes[:2]), sizes[2]
        super().__init__(data_dir, sizes, img_size=img_size, **kwargs)
        self.flip = flip
        self.crop = crop

    def missing(self) -> dict[str, str]:
        return {} if (self.data_dir / PACKED).is_file() else self._official_missing()

    def read(self) -> tuple[Split, Split]:
        path = self.data_dir / PACKED
        if path.is_file() and (self.img_size <= PACKED_SIZE or self._official_missing()):
            if self.img_size > PACKED_SIZE:
                rank_zero_only(log.warning)(
                    f"{path} has photos of {PACKED_SIZE} pixels, which are enlarged to {self.img_size}: put the"
                    f" official files into {self.folder} for sharper ones"
                )
            content = path.read_bytes()
            check_md5(content, self.packed_md5, path)
            with np.load(io.BytesIO(content)) as packed:
                images, labels = torch.from_numpy(packed["images"]), torch.from_numpy(packed["labels"])
            images = images.permute(0, 3, 1, 2).contiguous()
        else:
            sets = self._matlab(SETS)
            numbers = np.sort(np.concatenate([sets["trnid"].ravel(), sets["valid"].ravel()]))
            labels = torch.from_numpy(self._matlab(LABELS)["labels"].ravel()[numbers - 1].astype(np.int64)) - 1
            images = self._decoded([f"image_{number:05}.jpg" for number in numbers])
        trained, test = split_off(images, labels, [self.n_train, self.n_test], by_class=True)
        return trained, test

    def _official_missing(self) -> dict[str, str]:
        there = [name for name in self.files if (self.folder / name).is_file()]
        if (self.folder / PHOTOS).is_dir():
            there.append(ARCHIVE)
        return {name: md5 for name, md5 in self.files.items() if name not in there}

    def _matlab(self, name: str) -> dict[str, np.ndarray]:
        from scipy.io import loadmat  # type: ignore[import-untyped]  # takes a moment

        content = (self.folder / name).read_bytes()
        check_md5(content, self.files[name], self.folder / name)
        return loadmat(io.BytesIO(content))

    def _decoded(self, names: list[str]) -> torch.Tensor:
        """Photos as uint8 [N, 3, img_size, img_size]; unpacks them beside the archive, where torchvision has them."""
        folder, archive = self.folder / PHOTOS, self.folder / ARCHIVE
        if not folder.is_dir():
            try:
                with tempfile.TemporaryDirectory(dir=self.folder) as partial, tarfile.open(archive, "r:gz") as members:
                    members.extractall(partial, filter="data")
                    with contextlib.suppress(OSError):  # another process has made it
                        os.replace(Path(partial) / PHOTOS, folder)
            except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{archive} is damaged ({error}): delete it, and it is downloaded again") from error
        if lacks := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} lacks {some(lacks, ', ', 3)}: delete it, and it is made again")
        return decode([folder / name for name in names], self.channels, self.img_size, None)[0]
