"""The verb `evaluate`: how good the images of models and files are, beside as many real ones."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from src.evaluate.data import load_data
from src.evaluate.inputs import ModelInput, open_inputs
from src.evaluate.measure import SURE, Result, compare, measure, measure_real
from src.evaluate.neighbours import draw_neighbours
from src.pictures.confusion import draw_confusion
from src.run.commands import a_list, next_command, typed_overrides
from src.run.files import atomic_write
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.provenance import provenance
from src.run.trust import trusted_packages
from src.sampling.options import HOW, drawing_options, out_folder


def evaluate(config: DictConfig) -> None:
    """Writes `evaluation.json` and pictures about what `config.ckpt_path` names, and prints a table.

    All inputs are measured on as many images of the same classes, beside as many held-out real images of these.

    Raises:
        UserError: an input cannot be used, or does not fit the data or the others.
    """
    origin = provenance()
    console = Console(soft_wrap=True, emoji=False)
    out = out_folder(config.out)
    drawing = drawing_options(config, *HOW)
    score = None
    if config.clip is not None:
        from src.metrics.clip_score import ClipScore

        score = ClipScore(config.clip, "clip", torch.device("cpu"))
    inputs = open_inputs(config.ckpt_path, config.work_dir, config.weights, trusted_packages(config), drawing)
    data = load_data(inputs, config.get("datamodule"), config.data_dir)
    datamodule = next(iter(data.values()))
    known = [counts for each in inputs if (counts := each.available(datamodule)) is not None]
    counts = torch.stack(known).amin(0) if known else None  # images of each class that every input has
    # One text a class for all inputs and for real images, else they would not compare.
    texts = next((each.about["prompts"] for each in inputs if each.about.get("prompts")), datamodule.class_names)
    clip = None if score is None else lambda pixels, labels: score(pixels, [texts[label] for label in labels.tolist()])
    real = {size: measure_real(served, counts, config, clip) for size, served in data.items()}
    results = [measure(each, real[each.img_size], console) for each in inputs]
    differences = compare(results, console)

    print_table(results, differences, console)
    described = [write_pictures(result, out, len(results) > 1) for result in results]
    evaluator = results[0].real.evaluator
    record = {
        "format": 1,
        **origin,
        "n": evaluator.n,
        "data": {
            "source": datamodule.source,
            "classes": list(datamodule.class_names),
            "sha256": results[0].real.sha256,
            **{split: len(images.labels) for split, images in evaluator.real.items()},
            "features": evaluator.name,
            # Numbers compare to the last digit only where this is the same, too: nets differ a little by machine.
            "features_sha256": evaluator.net.sha256(),
        },
        "clip": score and score.about | {"texts": list(texts)},
        "inputs": described,
        "differences": differences,
    }
    with atomic_write(out / "evaluation.json") as file:
        file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    made = [("evaluation", str(out / "evaluation.json"))]
    made += [(name, str(out / file)) for each in described for name, file in each["pictures"].items()]
    if len(results) == 1:
        compared = a_list([inputs[0].path, "OTHER"])
        typed = [each for each in typed_overrides() if not each.startswith(("task=", "ckpt_path=", "out="))]
        made.append(("compare", next_command("task=evaluate", f"ckpt_path={compared}", *typed)))
    best = min(results, key=lambda result: result.metrics["fd"]).source
    if best.source is not None:  # a model, which draws more
        made.append(("sample", next_command("task=sample", f"ckpt_path={best.path}")))
    for label, text in made:
        console.print(f"{label:<11} {text}", highlight=False, markup=False)


def print_table(results: Sequence[Result], differences: dict[str, dict[str, Any]], console: Console) -> None:
    """A row for each metric, a column for each input, and the real images behind them."""
    real = {result.source.img_size: result.real for result in results}
    evaluator = results[0].real.evaluator
    table = Table(title=f"{evaluator.n:,} images each, against the test split of {escape(evaluator.datamodule.source)}")
    table.add_column("metric", no_wrap=True)
    for result in results:
        table.add_column(escape(result.source.name), overflow="fold", justify="right")
    for size in real:
        table.add_column("real images" + (f", {size} px" if len(real) > 1 else ""), justify="right")
    for name in results[0].metrics:
        won = differences.get(name, {"sure": False})
        winner = won["best"] if won["sure"] else None
        cells = [f"{each.metrics[name]:,.4g}{' *' if each.source.name == winner else ''}" for each in results]
        cells += [f"{each.floors[name]:,.4g}" for each in real.values()]
        way = " ↑" if name in HIGHER_IS_BETTER else " ↓" if name in LOWER_IS_BETTER else ""
        table.add_row(name + way, *cells)
    if not console.is_terminal:  # a file has room
        console.width = max(console.width, 28 + 18 * (len(results) + len(real)))
    console.print(table)
    if differences:
        console.print(f"* better than each of the others by more than {SURE} standard errors of the difference")
    elif len(results) > 1:
        console.print("images of several sizes: compare each with the real images of its size")
    for result in results:
        if isinstance(result.source, ModelInput):
            said = f"{result.source.name}: {result.source.sampler.about.in_words()}"
            console.print(said, highlight=False, markup=False)
        for text in result.alarms.values():
            console.print(f"warning: {result.source.name}: {text}", style="yellow", highlight=False, markup=False)


def write_pictures(result: Result, out: Path, several: bool) -> dict[str, Any]:
    """Writes the confusion matrix and the neighbours of an input; returns what `evaluation.json` says of it."""
    source, confusion = result.source, result.quality.confusion
    drawn = {
        "confusion": draw_confusion(confusion.numpy(), result.real.evaluator.datamodule.class_names),
        "neighbours": draw_neighbours(
            result.pixels, result.embedded.features, result.quality.nearest, result.real.evaluator
        ),
    }
    ending = f"_{re.sub(r'[^A-Za-z0-9.-]+', '_', source.name)}" if several else ""
    files = {"confusion": f"label_confusion{ending}.png", "neighbours": f"neighbours{ending}.png"}
    for key, name in files.items():
        with atomic_write(out / name) as file:
            Image.fromarray(drawn[key]).save(file)
    return {
        "name": source.name,
        "path": str(source.path),
        "sha256": source.sha256(),
        "about": source.about,
        "img_size": source.img_size,
        "metrics": _finite(result.metrics),
        "floors": _finite(result.real.floors),
        "alarms": result.alarms,
        "confusion": confusion.tolist(),
        "pictures": files,
        "seconds": result.seconds,
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    # JSON has no NaN, such as the variance of classes of one image each.
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
