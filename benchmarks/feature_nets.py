"""How much FD and label accuracy differ between feature nets that were trained alike: an error bar on every number.

    python benchmarks/feature_nets.py [--nets 4] [--out docs/feature_nets.md]

Trains the feature net of each data set several times: with one thread, with two, whose sums are rounded in another
order, and from other seeds. Each net measures the same two sets of 5,000 held-out real images: as they are, which is
the floor, and blurred. The data must be in `DATA_DIR` or `data/`.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from benchmarks.record import command_line, publish
from src.config.instantiate import instantiate
from src.datamodules.image_datamodule import ImageDataModule
from src.metrics import feature_net
from src.metrics.evaluator import Evaluator
from src.metrics.feature_net import FeatureNet, resized
from src.metrics.references import References, embed_served
from src.run.provenance import provenance

SETS = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32}  # and the pixels at which their experiments serve them
HEAD = """# How much numbers differ between feature nets

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with torch {torch}.
FD and label accuracy are measured by a small classifier that is trained on first use ([quality.md](quality.md)). On one
machine and with one number of threads it is the same to the bit; elsewhere sums are rounded in another order, which
training makes larger. Below, each net measures the same images. A difference between two runs that different nets have
measured means nothing if it is smaller than twice the spread.
"""


def trained(data: ImageDataModule, threads: int, seed: int) -> FeatureNet:
    """A feature net of the project's recipe."""
    train = data.references["train"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with patch.object(feature_net, "SEED", seed):
            return feature_net.train_classifier(
                train.images, train.labels, data.n_classes, train.images.shape[-1], torch.device("cpu"), data.source
            )
    finally:
        torch.set_num_threads(before)


def blurred(pixels: Tensor) -> Tensor:
    """Images uint8 [N, C, H, W] as they look after three quarters of their size."""
    size = pixels.shape[-1]
    return resized(resized(pixels.float(), size * 3 // 4), size).round().byte()


def measured(data: ImageDataModule, net: FeatureNet) -> tuple[float, float, float, float]:
    """FD and label accuracy of held-out images, and of these blurred."""
    real = {split: embed_served(net, images) for split, images in data.references.items()}
    evaluator = Evaluator(data, References(data.source, net, real), 5_000, torch.device("cpu"))
    held_out = data.references["val"]
    pixels, labels = held_out.images[evaluator.held_out], held_out.labels[evaluator.held_out]
    found: list[float] = []
    for each in (pixels, blurred(pixels)):
        metrics = evaluator.measure(net.embed(each, labels)).metrics
        found += [metrics["fd"], metrics["label_accuracy"]]
    return tuple(found)


def section(name: str, img_size: int, nets: list[tuple[int, int]]) -> str:
    """The table of a data set: a row for each net, given as its threads and its seed."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [f"datamodule={name}", f"data_dir={os.environ.get('DATA_DIR') or ROOT / 'data'}"])
    config.datamodule.img_size = img_size
    data = instantiate(config, "datamodule")
    data.prepare_data()
    data.setup()
    titles = ["threads", "seed", "weights", "FD of real images", "accuracy", "FD of blurred images", "accuracy"]
    lines = [f"## {data.source}", "", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    all_found = []
    for threads, seed in nets:
        net = trained(data, threads, seed)
        found = measured(data, net)
        all_found.append(found)
        shown = [f"{number:.2%}" if i % 2 else f"{number:.4f}" for i, number in enumerate(found)]
        lines.append("| " + " | ".join([str(threads), str(seed), net.sha256()[:8], *shown]) + " |")
        print(lines[-1], flush=True)
    spreads = []
    for i, column in enumerate(zip(*all_found, strict=True)):
        mean, spread = statistics.mean(column), statistics.stdev(column)
        spreads.append(f"{100 * spread:.2f} points" if i % 2 else f"{spread:.4f} ({spread / mean:.0%})")
    lines.append("| standard deviation | | | " + " | ".join(spreads) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=4, help="how many of each data set, 2 or more")
    parser.add_argument("--out", type=Path, help="also write the page to this file, such as docs/feature_nets.md")
    args = parser.parse_args()
    begun = time.perf_counter()
    nets = [(1, 0), (2, 0), *((1, seed) for seed in range(1, args.nets - 1))]
    sections = [section(name, size, nets) for name, size in SETS.items()]
    made = provenance()
    head = HEAD.format(
        command=command_line(),
        commit=made["commit"],
        machine=made["machine"],
        torch=torch.__version__,
        seconds=time.perf_counter() - begun,
    )
    page = "\n".join([head, *sections])
    publish(page, args.out)


if __name__ == "__main__":
    main()
