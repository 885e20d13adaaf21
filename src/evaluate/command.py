"""The verb `evaluate`: how good the images of models are, or anybody's, beside as many real ones."""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from src.datamodules.image_datamodule import ImageDataModule
from src.errors import UserError
from src.evaluate.data import LEAST, check_fit, find_data, load_data
from src.evaluate.inputs import Input, open_inputs
from src.evaluate.neighbours_picture import Row, draw_neighbours
from src.metrics.alarms import alarms
from src.metrics.copies import Nearest, copied, nearest_training_images
from src.metrics.drawn import cas_choice, classification_accuracy_score
from src.metrics.feature_net import Embedded, accuracy_of
from src.metrics.jackknife import GROUPS, standard_error, without_each_group
from src.metrics.quality import N_NEAREST, Quality, QualityMetrics, choice, these
from src.metrics.references import References, digest, load_references
from src.pictures.confusion import draw_label_confusion, drawable
from src.pictures.pixels import to_pixels
from src.run.checksum import splits_sha256
from src.run.commands import a_list, next_command, typed_overrides
from src.run.files import atomic_write
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.provenance import origin_of_run
from src.run.trust import trusted_packages
from src.sampling.options import out_folder

FORMAT = 1
CPU = torch.device("cpu")
N_SHOWN, N_NEIGHBOURS = 10, 4  # rows and training images of a panel
COPIES, FEW = 0.05, 5  # a share of copies, and a number of images on top, above which they are no accident
SURE = 2  # standard errors that a difference must exceed to be called one


@dataclass
class Real:
    """Real images, served at one size."""

    datamodule: ImageDataModule
    references: References
    sha256: str  # of the data
    held_out: Tensor  # the indices in `val` of the images that samples are measured beside, int64 [n]
    metrics: QualityMetrics
    nearest: Nearest  # of the first 1,000 of them
    cas_floor: float | None = None


@dataclass
class Result:
    """What is found about an input."""

    source: Input
    pixels: Tensor  # uint8 [N, C, H, W], of the first 1,000
    embedded: Embedded
    quality: Quality
    nearest: Nearest
    metrics: dict[str, float]
    floors: dict[str, float]
    alarms: dict[str, str]
    seconds: float


def evaluate(config: DictConfig) -> None:
    """Writes `evaluation.json` and pictures about what `config.ckpt_path` names, and prints a table.

    All inputs are measured on as many images of the same classes, beside as many held-out real images of these.

    Raises:
        UserError: an input cannot be used, or does not fit the data or the others.
    """
    origin = origin_of_run()
    console = Console(soft_wrap=True, emoji=False)
    out = out_folder(config.out)
    inputs = open_inputs(config.ckpt_path, config.work_dir, config.weights, trusted_packages(config))
    part = find_data(inputs, config.get("datamodule"))
    data = {size: load_data(part, size, config.data_dir) for size in dict.fromkeys(each.img_size for each in inputs)}
    for datamodule in data.values():
        check_fit(inputs, datamodule)
    counts = common_counts(inputs, datamodule)
    real = {size: measure_real(served, counts, config, inputs) for size, served in data.items()}
    results = [measure(each, real[each.img_size], counts, config.cas, console) for each in inputs]
    differences = compare(results, real, console)

    print_table(results, real, differences, console)
    pictures = [write_pictures(result, real[result.source.img_size], out, len(results) > 1) for result in results]
    record = {
        "format": FORMAT,
        **origin,
        "n": len(results[0].embedded.labels),
        "data": {
            "source": datamodule.source,
            "classes": list(datamodule.class_names),
            "sha256": real[datamodule.img_size].sha256,
            **{split: len(images) for split, images in (datamodule.sets | {"train": datamodule.whole_train}).items()},
            "features": real[datamodule.img_size].references.name,
            # Numbers compare to the last digit only where this is the same, too: nets differ a little by machine.
            "features_sha256": digest(real[datamodule.img_size].references.net.state_dict()),
        },
        "inputs": [in_json(result, files) for result, files in zip(results, pictures, strict=True)],
        "differences": differences,
    }
    with atomic_write(out / "evaluation.json") as file:
        file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    say_what_was_made(results, pictures, out, console)


def common_counts(inputs: Sequence[Input], datamodule: ImageDataModule) -> Tensor | None:
    """How many images of each class every input has, int64 [n_classes]; None: as many as one likes."""
    known = [counts for each in inputs if (counts := each.available(datamodule)) is not None]
    return torch.stack(known).amin(0) if known else None


def within(labels: Tensor, counts: Tensor | None) -> Tensor:
    """The indices of labels [N] in their order, of each class no more than its count."""
    if counts is None:
        return torch.arange(len(labels))
    kept = torch.cat([(labels == label).nonzero().flatten()[:n] for label, n in enumerate(counts.tolist())])
    return kept.sort().values


def measure_real(
    datamodule: ImageDataModule, counts: Tensor | None, config: DictConfig, inputs: Sequence[Input]
) -> Real:
    """The reference, and the floor: held-out images, no more of a class than every input has.

    Raises:
        UserError: the inputs have too few images, or the features mean too little.
    """
    splits = datamodule.sets | {"train": datamodule.whole_train}
    references = load_references(
        splits,
        datamodule.source,
        datamodule.n_classes,
        datamodule.img_size,
        Path(config.data_dir).expanduser() / "features",
        CPU,
    )
    val = references.real["val"]
    kept = within(val.labels, counts)
    if len(kept) < LEAST:
        raise UserError(
            f"ckpt_path names too few images: {len(kept)} of classes that {datamodule.source!r} has"
            f"{' and all of the files share' if len(inputs) > 1 else ''}, but at least {LEAST} are needed"
        )
    metrics = QualityMetrics(references.real | {"val": these(val, kept)}, datamodule.n_classes, config.n)
    held_out = kept[choice(len(kept), metrics.n)]
    train = references.real["train"].features
    nearest = nearest_training_images(metrics.held_out.features[:N_NEAREST], train, N_NEIGHBOURS)
    real = Real(datamodule, references, splits_sha256(splits), held_out, metrics, nearest)
    if config.cas:
        real.cas_floor = cas_floor(real, counts)
    return real


def cas_images(datamodule: ImageDataModule, counts: Tensor | None) -> Tensor:
    """The indices of the training images with whose labels a classifier's images are drawn."""
    chosen = cas_choice(len(datamodule.whole_train))
    return chosen[within(datamodule.whole_train.labels[chosen], counts)]


def cas_floor(real: Real, counts: Tensor | None) -> float:
    """The score of as many real training images as there are generated ones."""
    train = real.datamodule.whole_train
    chosen = cas_images(real.datamodule, counts)
    if len(chosen) == len(cas_choice(len(train))):
        return accuracy_of(real.references.real["test"])  # as after training: what the feature net has
    pixels = to_pixels(train.__getitems__(chosen.tolist())[0])
    args = pixels, train.labels[chosen], real.datamodule.n_classes, real.datamodule.sets["test"], CPU
    return classification_accuracy_score(*args)


def measure(source: Input, real: Real, counts: Tensor | None, cas: bool, console: Console) -> Result:
    """Everything about one input."""
    begun = time.perf_counter()
    metrics, references = real.metrics, real.references
    pixels = source.images(metrics.labels, "test", console)
    with console.status(f"measuring {escape(source.name)}"):
        embedded = references.net.embed(pixels, metrics.labels)
        quality = metrics.measure(embedded)
        train = references.real["train"].features
        nearest = nearest_training_images(embedded.features[:N_NEAREST], train, N_NEIGHBOURS)
        found = quality.metrics | {"copied": copied(nearest, real.nearest)}
        floors = metrics.floor.metrics | {"copied": copied(real.nearest, real.nearest)}
    if cas:
        labels = real.datamodule.whole_train.labels[cas_images(real.datamodule, counts)]
        images = source.images(labels, "cas", console)
        args = images, labels, real.datamodule.n_classes, real.datamodule.sets["test"], CPU
        found["cas"] = classification_accuracy_score(*args)
        assert real.cas_floor is not None
        floors["cas"] = real.cas_floor
    raised = alarms(quality, metrics.floor, real.datamodule.class_names) | source.alarms(found)
    share = found["copied"]
    if share > COPIES + FEW / len(nearest.closeness):
        text = f"training images are copied ({share:.1%} of the images are nearer to one than 99% of real images are)"
        raised.setdefault("copies", text)
    if source.data_sha256 not in (None, real.sha256):
        raised["data"] = (
            f"it was trained on other images than these of {real.datamodule.source}, or on other splits of them: it may"
            " have seen what it is tested on"
        )
    seconds = round(time.perf_counter() - begun, 1)
    return Result(source, pixels[:N_NEAREST], embedded, quality, nearest, found, floors, raised, seconds)


def compare(results: Sequence[Result], real: dict[int, Real], console: Console) -> dict[str, dict[str, Any]]:
    """For each metric by which images can be better, the best input, and how sure that is.

    Returns:
        For each metric `best`, the input's name, `ahead`, by how much the next one is worse, `standard_error` of that
        difference, and `sure`, whether it is more than twice as large as the error, for every other input. Empty for
        one input, and for inputs of several sizes, whose floors differ.
    """
    if len(results) < 2 or len(real) > 1:
        return {}
    (metrics,) = (each.metrics for each in real.values())
    estimates: list[list[dict[str, float]]] = [[] for _ in results]
    work = ((i, found) for i, each in enumerate(results) for found in without_each_group(metrics, each.embedded))
    for i, measured in track(work, "comparing", total=GROUPS * len(results), console=console):
        estimates[i].append(measured)
    found = {}
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        if name not in estimates[0][0]:  # `cas` would take as many classifiers
            continue
        sign = 1 if name in HIGHER_IS_BETTER else -1
        values = [sign * result.metrics[name] for result in results]
        best = int(np.argmax(values))
        leads = []
        for i in range(len(results)):
            if i != best:
                pairs = zip(estimates[best], estimates[i], strict=True)
                error = standard_error(torch.tensor([a[name] - b[name] for a, b in pairs], dtype=torch.float64))
                leads.append((values[best] - values[i], error))
        ahead, error = min(leads)
        found[name] = {
            "best": results[best].source.name,
            "ahead": ahead,
            "standard_error": error,
            "sure": all(lead > SURE * its_error for lead, its_error in leads),
        }
    return found


def print_table(
    results: Sequence[Result], real: dict[int, Real], differences: dict[str, dict[str, Any]], console: Console
) -> None:
    """A row a metric, a column an input, and the real images behind them."""
    sizes = list(real)
    source = real[sizes[0]].datamodule.source
    n = len(results[0].embedded.labels)
    table = Table(title=f"{n:,} images each, against the test split of {escape(source)}")
    table.add_column("metric", no_wrap=True)
    for result in results:
        table.add_column(escape(result.source.name), overflow="fold", justify="right")
    for size in sizes:
        table.add_column("real images" + (f", {size} px" if len(sizes) > 1 else ""), justify="right")
    for name in results[0].metrics:
        cells = []
        for result in results:
            won = differences.get(name)
            best = won is not None and won["sure"] and won["best"] == result.source.name
            cells.append(f"{result.metrics[name]:,.4g}{' *' if best else ''}")
        cells += [f"{next(r for r in results if r.source.img_size == size).floors[name]:,.4g}" for size in sizes]
        way = " ↑" if name in HIGHER_IS_BETTER else " ↓" if name in LOWER_IS_BETTER else ""
        table.add_row(name + way, *cells)
    if not console.is_terminal:  # a file has room
        console.width = max(console.width, 28 + 18 * (len(results) + len(sizes)))
    console.print(table)
    if differences:
        console.print(f"* better than each of the others by more than {SURE} standard errors of the difference")
    elif len(results) > 1:
        console.print("images of several sizes: compare each with the real images of its size")
    for result in results:
        for text in result.alarms.values():
            console.print(f"warning: {result.source.name}: {text}", style="yellow", highlight=False, markup=False)


def write_pictures(result: Result, real: Real, out: Path, several: bool) -> dict[str, str]:
    """The confusion matrix and the neighbours; returns their files' names."""
    names = real.datamodule.class_names
    ending = f"_{re.sub(r'[^A-Za-z0-9.-]+', '_', result.source.name)}" if several else ""
    drawn = {
        "confusion": draw_label_confusion(result.quality.confusion.numpy(), names),
        "neighbours": draw_neighbours(panels(result, real)),
    }
    files = {"confusion": f"label_confusion{ending}.png", "neighbours": f"neighbours{ending}.png"}
    for key, name in files.items():
        with atomic_write(out / name) as file:
            Image.fromarray(drawn[key]).save(file)
    return files


def panels(result: Result, real: Real) -> list[tuple[str, list[Row]]]:
    """Samples that are nearest to a training image, one of each class, and the held-out images that are nearest."""
    names, labels = drawable(real.datamodule.class_names), real.metrics.labels
    train = real.datamodule.whole_train
    val = real.datamodule.sets["val"]
    held_out = to_pixels(val.__getitems__(real.held_out[:N_NEAREST].tolist())[0])

    def rows(images: Tensor, nearest: Nearest, index: Sequence[int]) -> list[Row]:
        made = []
        for i in index:
            neighbours = to_pixels(train.__getitems__(nearest.indices[i].tolist())[0])
            image, others = (pixels.permute(0, 2, 3, 1).numpy() for pixels in (images[i : i + 1], neighbours))
            made.append(Row(image[0], names[int(labels[i])], others, float(nearest.closeness[i])))
        return made

    asked = labels[:N_NEAREST].tolist()
    first = [asked.index(label) for label in dict.fromkeys(sorted(asked))][:N_SHOWN]
    closest = result.nearest.closeness.argsort()[:N_SHOWN].tolist()
    real_closest = real.nearest.closeness.argsort()[:N_SHOWN].tolist()
    n = len(asked)
    return [
        (
            f"The {len(closest)} of {n:,} images that are nearest\nto a training image, and beside them the nearest."
            "\nNumber: distance to the first of these, over the\ndistance from there to another training image",
            rows(result.pixels, result.nearest, closest),
        ),
        ("The first image of each class,\nnot chosen", rows(result.pixels, result.nearest, first)),
        (
            f"For comparison: the {len(real_closest)} of {n:,} real images,\nheld out from training, that are nearest",
            rows(held_out, real.nearest, real_closest),
        ),
    ]


def in_json(result: Result, pictures: dict[str, str]) -> dict[str, Any]:
    """What is kept of a result."""
    source = result.source
    return {
        "name": source.name,
        "path": str(source.path),
        "sha256": source.sha256(),
        "about": source.about(),
        "img_size": source.img_size,
        "metrics": finite(result.metrics),
        "floors": finite(result.floors),
        "alarms": result.alarms,
        "confusion": result.quality.confusion.tolist(),
        "pictures": pictures,
        "seconds": result.seconds,
    }


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """The same with None for what is no number, such as the variance of classes of one image each."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def say_what_was_made(
    results: Sequence[Result], pictures: Sequence[dict[str, str]], out: Path, console: Console
) -> None:
    """Where everything lies, and what to type next."""
    lines = [("evaluation", str(out / "evaluation.json"))]
    for files in pictures:
        lines += [("confusion", str(out / files["confusion"])), ("neighbours", str(out / files["neighbours"]))]
    if len(results) == 1:
        compared = a_list([results[0].source.path, "OTHER"])
        typed = [each for each in typed_overrides() if not each.startswith(("task=", "ckpt_path=", "out="))]
        lines.append(("compare", next_command("task=evaluate", f"ckpt_path={compared}", *typed)))
    best = min(results, key=lambda result: result.metrics["fd"]).source
    if best.source is not None:  # a model, which draws more
        lines.append(("sample", next_command("task=sample", f"ckpt_path={best.path}")))
    for label, text in lines:
        console.print(f"{label:<11} {text}", highlight=False, markup=False)
