"""FID, KID and Inception score, for comparison with papers."""

import socket
import tempfile
from typing import Annotated, Any

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from src.callbacks.quality import draw, is_whole, on_rank_zero, require_images
from src.config.explain import EXTRAS
from src.datamodules.loader import ImageSet
from src.errors import UserError
from src.metrics.evaluator import choice
from src.pictures.pixels import to_pixels

NETWORK_TIMEOUT_S = 10.0


class Pictures(TensorDataset):
    """Images uint8 [N, C, H, W], served one by one in three channels."""

    def __getitem__(self, index: Any) -> Tensor:  # type: ignore[override]
        return self.tensors[0][index].expand(3, -1, -1)


class LogInception(Callback):
    """Logs after the test `test/inception_fid`, `test/inception_kid` and `test/inception_score`.

    They are torch-fidelity's, on the weights of the original Inception (Heusel et al. 2017, Binkowski et al. 2018,
    Salimans et al. 2016), against the test split; with `_floor` those of as many training images.
    Inception has only seen photographs: `LogQuality` says more about digits. It is slow without a GPU: some ten images
    a second. It is left out where `trainer.limit_test_batches` is set.

    Args:
        n: images drawn; papers take 10,000 or more, as FID falls with their number.
    """

    needs_classes = True  # as it draws those of the test split

    def __init__(self, n: Annotated[int, Field(ge=10)] = 10_000) -> None:
        self.n = n

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out before training whether package and weights can be had."""
        require_images("callbacks.inception", pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        on_rank_zero(trainer, find_inception)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not is_whole(trainer):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        train, test = data.references["train"], data.references["test"]
        n = min(self.n, len(train))
        pixels = draw(trainer, pl_module, test.labels.repeat(n // len(test) + 1)[:n], seed=0)
        metrics = on_rank_zero(trainer, lambda: compare(pixels, train, test, pl_module.device))
        pl_module.log_dict(metrics, batch_size=self.n, sync_dist=True)


def compare(pixels: Tensor, train: ImageSet, test: ImageSet, device: torch.device) -> dict[str, float]:
    """The metrics of images uint8 [N, C, H, W] and of N training images, against those of the test split."""
    from torch_fidelity import calculate_metrics

    real, _ = train.__getitems__(choice(len(train), len(pixels)).tolist())
    reference = to_pixels(test.__getitems__(range(len(test)))[0])
    logged = {}
    with tempfile.TemporaryDirectory() as folder:  # the test split's features, which are needed twice
        for suffix, images in [("", pixels), ("_floor", to_pixels(real))]:
            found = calculate_metrics(
                input1=Pictures(images),
                input2=Pictures(reference),
                input2_cache_name="test",
                cache_root=folder,
                fid=True,
                kid=True,
                isc=True,
                kid_subset_size=min(1_000, len(images), len(reference)),
                cuda=device.type == "cuda",
                save_cpu_ram=True,  # no processes to load what is in memory
                verbose=False,
            )
            logged[f"test/inception_fid{suffix}"] = found["frechet_inception_distance"]
            logged[f"test/inception_kid{suffix}"] = found["kernel_inception_distance_mean"]
            logged[f"test/inception_score{suffix}"] = found["inception_score_mean"]
    return logged


def find_inception() -> None:
    """Loads Inception, which downloads its weights on first use; refuses where package or weights cannot be had."""
    try:
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as error:
        raise UserError(
            f"callbacks.inception needs torch-fidelity: type {EXTRAS}, or callbacks.inception=null"
        ) from error
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        layers = ["2048", "logits_unbiased"]  # FID and KID need the first, the score the second
        create_feature_extractor("inception-v3-compat", layers, cuda=False, verbose=False)
    except OSError as error:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        raise UserError(
            f"callbacks.inception needs Inception's weights, which could not be downloaded ({error}): put"
            f" {URL_INCEPTION_V3} into {torch.hub.get_dir()}/checkpoints, or set callbacks.inception=null"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
