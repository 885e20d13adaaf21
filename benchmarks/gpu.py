"""What one GPU does with the recipes, in one command: writes docs/gpu.md.

    python benchmarks/gpu.py [--minutes 9] [--out docs/gpu.md] [--rows WORD ...]

- speed:    a step of four recipes in several ways, on random images, without Lightning and logging
- MNIST:    seconds of a real run until 99 % of its digits are what was asked for
- CIFAR-10: a real run of 5 minutes, or of what is left of `--minutes`, with its numbers and its grid beside the page

Each row has a process of its own with a time limit, and the page is written again after each: a row that fails says
why, and the others stand. Compiled ones come last. `--rows peak "CUDA graph" "run mnist"` makes those alone whose names
have one of these in them.

`--device cpu` tries all of this in seconds, with tiny networks and scikit-learn's digits: its numbers mean nothing.
"""

import argparse
import gc
import math
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import command_line
from benchmarks.results import curve, reached
from benchmarks.step_cost import NAMES, Update, build, flow_update, gan_update
from src.datamodules.loader import Batch, EpochSampler, ImageSet
from src.models.penalties import Penalty
from src.run.files import replacing
from src.run.provenance import provenance
from src.run.run_record import read_rows

MNIST, CIFAR10, FLOW = "train_mnist_cnn_gan", "train_cifar10_gan", "train_cifar10_flow_gpu"
TEXT = "train_mnist_text2image"
CHANNELS = {MNIST: 1, CIFAR10: 3, FLOW: 3, TEXT: 1}
GAN, ONE = ("optimizer_g", "optimizer_d"), ("optimizer",)
OPTIMIZERS = {MNIST: GAN, CIFAR10: GAN, FLOW: ONE, TEXT: ONE}
ACCURACY = 0.99
WARM_UP = 3  # periods of lazy penalties before a step is timed or captured
ROUNDS = 3
IMAGES_AN_EPOCH = 45_000  # of CIFAR-10
FOR_TRAINING = 0.75  # of a run's time; the rest is for validations, grids and Lightning


@dataclass(frozen=True)
class How:
    """One way to run a step; `bf16` is autocast, with TF32 for what it leaves in float32."""

    name: str
    precision: str
    near: bool = False  # images are kept on the device
    contiguous: bool = False  # not channels-last, which is the networks' own layout
    graph: bool = False
    compiled: bool = False
    batch_size: int | None = None  # None: the recipe's
    seconds: float = 40  # most that it may take with all preparations


WAYS = [
    How("float32", "float32"),
    How("TF32", "TF32"),
    How("bf16", "bf16"),
    How("bf16, not channels-last", "bf16", contiguous=True),
    How("bf16, data on the device", "bf16", near=True),
    How("bf16, data on the device, CUDA graph", "bf16", near=True, graph=True),
    How("bf16, data on the device, CUDA graph, batches of 1024", "bf16", near=True, graph=True, batch_size=1024),
    How("bf16, data on the device, compiled", "bf16", near=True, compiled=True, seconds=120),
    How("bf16, data on the device, compiled, CUDA graph", "bf16", near=True, graph=True, compiled=True, seconds=120),
]
ESTIMATE = WAYS[5].name  # as run.py trains with trainer.cuda_graph=true
OF_TEXT = [how for how in WAYS if how.near and not how.compiled and how.batch_size is None]
SPEEDS = [(recipe, how) for recipe in CHANNELS for how in (OF_TEXT if recipe == TEXT else WAYS)]


@dataclass(frozen=True)
class Scale:
    """How large everything is on a kind of device."""

    matmul: int  # side of the matrices whose product shows the peak
    seconds: float  # of timing for each way
    images: int
    narrow: dict[str, list[str]]  # overrides of the recipes
    typed: dict[str, list[str]]  # of the real runs
    most: dict[str, float]  # seconds that a real run may take
    training: float  # seconds of training on CIFAR-10
    after_training: float  # seconds that its start and its test take


WHERE = ["trainer.gpus=1", "trainer.cuda_graph=true", "datamodule.device=auto"]
NARROW = ["model.generator.width=16", "model.discriminator.width=16"]
NARROW_FLOW = ["model.denoiser.width=16", "datamodule.batch_size=64"]
TINY = ["datamodule=digits", "trainer.limit_train_batches=4", "callbacks.quality.n_val=100", "trainer.gpus=0"]
SCALES = {
    "cuda": Scale(8192, 0.7, 20_000, {}, {MNIST: [*WHERE, "datamodule.offline_fallback=false"], FLOW: WHERE},
                  {MNIST: 180, FLOW: 420}, training=300, after_training=75),
    "cpu": Scale(128, 0.1, 200, {MNIST: NARROW, CIFAR10: NARROW, FLOW: NARROW_FLOW, TEXT: NARROW_FLOW},
                 {MNIST: [*NARROW, *TINY, "trainer.max_epochs=1"],
                  FLOW: [*NARROW_FLOW, *TINY, "callbacks.quality.n_test=100"]},
                 {MNIST: 120, FLOW: 120}, training=4, after_training=2),
}  # fmt: skip


# The rows. Each returns plain values, or raises an error that says why there are none.


def peak(device: str) -> dict[str, float]:
    """FLOP/s of a large matrix product, the best of several, by precision."""
    side, found = SCALES[device].matmul, {}
    for precision in ("float32", "TF32", "bf16"):
        set_precision(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(10):
            wait(device)
            start = time.perf_counter()
            a @ b
            wait(device)
            seconds.append(time.perf_counter() - start)
        found[precision] = 2 * side**3 / min(seconds)
    return found


def speed(device: str, experiment: str, how: How) -> dict[str, float]:
    """What a step of a recipe costs: seconds, images/s, FLOP of its matrix products and convolutions, memory in MiB."""
    if how.graph and device != "cuda":
        raise RuntimeError("needs CUDA")
    scale = SCALES[device]
    set_precision(how.precision)
    overrides = [*scale.narrow.get(experiment, []), *([NAMES] if experiment == TEXT else [])]
    if how.batch_size:
        overrides.append(f"datamodule.batch_size={how.batch_size}")
    if how.graph:  # else they count their steps in main memory
        overrides += [f"+model.{optimizer}.capturable=true" for optimizer in OPTIMIZERS[experiment]]
    model, data = build(experiment, overrides, CHANNELS[experiment])
    model.to(device)
    if how.contiguous:
        model.to(memory_format=torch.contiguous_format)
    more, everies = "bf16" if how.precision == "bf16" else "", []
    next_batch = batches(device, experiment, how.near, data, scale.images)
    if OPTIMIZERS[experiment] == ONE:
        networks, update = [model.network.denoiser], flow_update(model, more)
        served = next_batch

        def next_batch(i: int) -> Batch:
            return model.prepared(served(i))
    else:
        model.penalties = {name: Direct(each) for name, each in model.penalties.items()}
        everies = [each.every for each in model.penalties.values()]
        networks, update = [model.generator, model.discriminator], gan_update(model, more)
    period = math.lcm(*everies)
    batch = next_batch(0)
    for i in range(period):  # the first use of each kernel, and the optimizers' state
        update(batch, i)
    with FlopCounterMode(display=False) as counter:
        for i in range(period):
            update(batch, i)

    if device == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    if how.compiled:
        for network in networks:
            network.compile()
    if how.graph:
        replay = captured(update, batch, everies)

        def step(i: int) -> None:
            for kept, new in zip(batch, next_batch(i), strict=True):
                kept.copy_(new)
            replay(i)
    else:

        def step(i: int) -> None:
            update(next_batch(i), i)

    seconds = time_of(step, period, scale.seconds, device)
    kib = torch.cuda.max_memory_allocated() / 1024 if device == "cuda" else peak_rss()
    return {
        "seconds": seconds,
        "images_per_s": data.batch_size / seconds,
        "flop": counter.get_total_flops() / period,
        "memory": kib / 1024,
    }


def set_precision(precision: str) -> None:
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def batches(device: str, experiment: str, near: bool, data: Any, n: int) -> Callable[[int], Batch]:
    """A function that makes the i-th batch of random images on a device, as a data module does."""
    rng = torch.Generator().manual_seed(0)
    n = max(n, data.batch_size)
    pixels = torch.randint(256, (n, CHANNELS[experiment], data.img_size, data.img_size), generator=rng).byte()
    images = ImageSet(pixels, torch.randint(10, (n,), generator=rng), data.img_size)
    order = [*EpochSampler(images, num_replicas=1, rank=0, seed=0, flip=data.get("flip", False))]
    images = images.to(torch.device(device)) if near else images

    def made(i: int) -> Batch:
        first = i % (n // data.batch_size) * data.batch_size
        drawn, labels = images.__getitems__(order[first : first + data.batch_size])
        return drawn.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return made


class Direct(Penalty):
    """A penalty on a network as it is written: what is compiled has no second derivative, nor has a counter's hook."""

    def __init__(self, penalty: Penalty) -> None:
        super().__init__(penalty.every)
        self.penalty = penalty

    def __call__(self, discriminator: Any, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        return self.penalty(discriminator.forward, real, fake, labels)


def captured(update: Update, batch: Batch, everies: Sequence[int]) -> Callable[[int], None]:
    """A function that runs the i-th update of `batch` as one CUDA graph: there is one for each set of penalties due.

    What Python counts (the average's ramp, the schedule's factor) stays as it is at the capture: the arithmetic is a
    training's, its course is not.
    """

    def due(i: int) -> tuple[bool, ...]:
        return tuple((i + 1) % every == 0 for every in everies)

    period, stream = math.lcm(*everies), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(WARM_UP * period):
            update(batch, i)
    torch.cuda.current_stream().wait_stream(stream)
    graphs: dict[tuple[bool, ...], torch.cuda.CUDAGraph] = {}
    for i in range(period):
        if due(i) not in graphs:
            graphs[due(i)] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[due(i)], stream=stream):
                update(batch, i)
    return lambda i: graphs[due(i)].replay()


def time_of(step: Callable[[int], None], period: int, seconds: float, device: str) -> float:
    """Seconds of a step, the median of several rounds of whole periods."""

    def run(n: int) -> float:
        wait(device)
        start = time.perf_counter()
        for i in range(n):
            step(i)
        wait(device)
        return (time.perf_counter() - start) / n

    run(WARM_UP * period)
    n = period * math.ceil(seconds / ROUNDS / (period * run(period)))
    return statistics.median(run(n) for _ in range(ROUNDS))


def mnist_run(scale: Scale, folder: Path, limit: float) -> dict[str, float]:
    """Trains the MNIST recipe until a validation finds the accuracy; returns what its files say."""
    stop = {
        "_target_": "pytorch_lightning.callbacks.EarlyStopping",
        "monitor": "val/label_accuracy",
        "mode": "max",
        "stopping_threshold": ACCURACY,
        "patience": 1000,
    }
    typed = [f"+callbacks.enough.{key}={value}" for key, value in stop.items()]
    start = time.perf_counter()
    rows, error = run(folder, MNIST, [*typed, "test_after_training=false", *scale.typed[MNIST]], limit)
    found = {"command_seconds": time.perf_counter() - start, **in_training(rows)}
    validations = curve(folder) if rows else []
    if not validations:
        raise RuntimeError(error or "no validation")
    found["best"] = max(row["label_accuracy"] for row in validations)
    seconds = reached({"curve": validations}, ACCURACY)
    if seconds != "never":
        found["seconds"] = float(seconds)
    return found


def cifar10_run(scale: Scale, folder: Path, limit: float, images_per_s: float) -> dict[str, Any]:
    """Trains the CIFAR-10 recipe for so many seconds and tests it; returns what its files say."""
    training = min(scale.training, limit - scale.after_training)
    if training < 1:
        raise RuntimeError("no time left")
    epochs = max(1, int(training * FOR_TRAINING * images_per_s / IMAGES_AN_EPOCH))
    between = math.ceil(epochs / 4)  # epochs from one validation to the next
    epochs = max(1, epochs // between) * between  # the last epoch has one
    days, seconds = divmod(math.ceil(training), 24 * 3600)
    typed = [
        f"trainer.max_time={days:02}:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        f"trainer.max_epochs={epochs}",
        f"trainer.check_val_every_n_epoch={between}",
        f"callbacks.sample_grid.every_n_epochs={between}",
        "callbacks.interpolation=null",
    ]
    rows, error = run(folder, FLOW, [*typed, *scale.typed[FLOW]], limit)
    tests = [row for row in rows if "test/fd" in row]
    if not tests:
        raise RuntimeError(error or "no test")
    names = ("label_accuracy", "fd", "recall")
    metrics = {f"{name}{end}": tests[-1][f"test/{name}{end}"] for name in names for end in ("", "_floor")}
    validations = curve(folder)
    grids = sorted((folder / "samples").glob("*.png"))
    return {
        "training": validations[-1]["seconds"] if validations else None,
        "batches": max(row["step"] for row in rows),
        "typed": " ".join(typed),
        "grid": grids[-1] if grids else None,
        **metrics,
        **in_training(rows),
    }


def run(folder: Path, experiment: str, typed: list[str], limit: float) -> tuple[list[dict[str, Any]], str]:
    """`python run.py experiment=...` with its run folder, stopped after `limit` seconds.

    Returns:
        The rows of its `metrics.jsonl`, and what went wrong.
    """
    command = [sys.executable, str(ROOT / "run.py"), f"experiment={experiment}.yaml", f"hydra.run.dir={folder}"]
    command += ["logger=none", "print_config=false", "callbacks.progress_bar=null", *typed]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            error = f"it took more than {limit:.0f} s"
        else:
            output.seek(0)
            lines = output.read().splitlines()
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            error = (errors or lines or [f"it ended with {code}"])[-1] if code else ""
    path = folder / "metrics.jsonl"
    return list(read_rows(path)) if path.exists() else [], error


def in_training(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Images/s of training, as the run logged it."""
    logged = [row["train/images_per_s"] for row in rows if row.get("train/images_per_s")]
    return {"images_per_s": statistics.median(logged)} if logged else {}


# Each in a process of its own


def in_process(limit: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which has `limit` seconds.

    Raises:
        RuntimeError: it failed, and why.
    """
    context = multiprocessing.get_context("forkserver")  # so that none inherits another's state on the GPU
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            raise RuntimeError(f"it took more than {limit:.0f} s")
        value, error = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if error:
        raise RuntimeError(error)
    return value


def answer(pipe: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        pipe.send((function(*arguments), ""))
    except Exception as error:
        pipe.send((None, in_a_line(error)))


def in_a_line(error: Exception) -> str:
    """What went wrong; errors of this script are a RuntimeError."""
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    return kind + (str(error).strip().splitlines() or [""])[0]


# The page

PAGE = """# What one GPU does
{warning}
Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with {versions}.

## Speed

A step trains on one batch: of a GAN, one update of G and one of D, with the lazy penalty on every n-th; of the flow
models, one update of their network. It runs without Lightning, validation and logging, on random images that are
fetched as a data module does, and prompts drawn for them. Batches are as large as the recipe's, where the row does not
say otherwise. Medians of {rounds} rounds.

- *float32*: without TF32. *TF32*: in matrix products and convolutions; torch's default has it in convolutions alone.
  *bf16*: autocast, with TF32 for what stays in float32. The recipes' networks are channels-last.
- *CUDA graph*: the whole step, two graphs where a penalty is due on every n-th batch. `trainer.cuda_graph=true` leaves
  the optimizers' steps outside.
- *of the peak*: FLOP of matrix products and convolutions, divided by what the largest product of two matrices
  [{matmul}, {matmul}] reaches on this device in the same precision:
  {peak}.
- *memory*: the most that tensors took at once.

| recipe | how | ms a step | images/s | of the peak | memory in MiB |
|---|---|---|---|---|---|
{speeds}

## Seconds until {accuracy:.0f} % label accuracy on MNIST

{mnist}

## CIFAR-10 in minutes

{cifar10}
"""
WARNING = """
**Tried on a CPU, with tiny networks and other data: these numbers mean nothing.**
"""


class Page:
    """The rows so far."""

    def __init__(self, out: Path, device: str, chosen: Callable[[str], bool]) -> None:
        self.out = out
        self.device = device
        self.chosen = chosen
        self.started = time.perf_counter()
        self.origin = provenance(command_line())
        self.found: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def add(self, name: str, row: Callable[[], Any]) -> None:
        """Makes a row, if it is chosen, and writes the page."""
        if not self.chosen(name):
            return
        try:
            self.found[name] = row()
        except Exception as error:  # whatever it is, the other rows stand
            text = in_a_line(error).replace("|", "/")
            self.failed[name] = text if len(text) < 100 else f"{text[:100]}..."
        print(f"{time.perf_counter() - self.started:5.0f} s  {name}: {self.failed.get(name, 'done')}", flush=True)
        with replacing(self.out) as partial:
            partial.write_text(self.text(), encoding="utf-8")

    def why(self, name: str) -> str:
        return self.failed.get(name, "not yet there" if self.chosen(name) else "not asked for")

    def text(self) -> str:
        peaks = self.found.get("peak", {})
        shown = ", ".join(f"{value / 1e12:.3g} TFLOP/s in {name}" for name, value in peaks.items())
        return PAGE.format(
            **self.origin,
            warning=WARNING if self.device == "cpu" else "",
            seconds=time.perf_counter() - self.started,
            rounds=ROUNDS,
            matmul=SCALES[self.device].matmul,
            peak=shown or self.why("peak"),
            speeds="\n".join(
                self.speed_row(recipe, how) for recipe, how in SPEEDS if self.chosen(f"{recipe} {how.name}")
            ),
            accuracy=100 * ACCURACY,
            mnist=self.mnist(),
            cifar10=self.cifar10(),
        )

    def speed_row(self, recipe: str, how: How) -> str:
        name = f"{recipe} {how.name}"
        if name not in self.found:
            cells = [self.why(name), "", "", ""]
        else:
            row = self.found[name]
            top = self.found.get("peak", {}).get(how.precision)
            share = f"{row['flop'] / row['seconds'] / top:.1%}" if top else ""
            cells = [f"{row['seconds'] * 1e3:.2f}", f"{row['images_per_s']:,.0f}", share, f"{row['memory']:,.0f}"]
        return f"| {' | '.join([f'`{recipe}`', how.name, *cells])} |"

    def mnist(self) -> str:
        row = self.found.get("run mnist")
        if row is None:
            return f"No figure: {self.why('run mnist')}."
        seconds = row.get("seconds")
        reach = (
            f"**{seconds:.0f} s** of training" if seconds else f"Not reached: the best validation had {row['best']:.2%}"
        )
        return (
            f"{reach}. The command took {row['command_seconds']:.0f} s, with its start, and with the classifier that"
            f" measures quality where it was not yet there{per_second(row)}.\n\n"
            f"`python run.py experiment={MNIST}.yaml {' '.join(SCALES[self.device].typed[MNIST])}`, stopped at the"
            " first validation that finds it."
        )

    def cifar10(self) -> str:
        row = self.found.get("run cifar10")
        if row is None:
            return f"No figure: {self.why('run cifar10')}."
        trained = f"{row['training']:.0f} s" if row["training"] else "less than an epoch"
        lines = [
            f"Trained for {trained} until its last validation, {row['batches']:,} batches{per_second(row)}. In the"
            " test, with the same number for real images:",
            "",
            "| label accuracy | FD | recall |",
            "|---|---|---|",
            f"| {row['label_accuracy']:.1%} ({row['label_accuracy_floor']:.1%}) | {row['fd']:.2f}"
            f" ({row['fd_floor']:.2f}) | {row['recall']:.2f} ({row['recall_floor']:.2f}) |",
            "",
            f"`python run.py experiment={FLOW}.yaml {row['typed']} {' '.join(SCALES[self.device].typed[FLOW])}`",
        ]
        if row["grid"]:
            lines += ["", f"![Samples, one row a class]({row['grid']})"]
        return "\n".join(lines)


def per_second(row: dict[str, float]) -> str:
    return f", at {row['images_per_s']:,.0f} images/s" if "images_per_s" in row else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="after which no row goes on")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.md")
    parser.add_argument("--device", choices=list(SCALES), default="cuda")
    parser.add_argument(
        "--rows", nargs="+", metavar="WORD", default=[""], help="only rows with one of these in the name"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this machine has no GPU that torch can use: --device cpu tries the script, with tiny settings")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    scale = SCALES[args.device]
    page = Page(args.out, args.device, lambda name: any(word in name for word in args.rows))

    def left(most: float) -> float:
        """Seconds that a row may take which wants `most`."""
        seconds = min(most, 60 * args.minutes - (time.perf_counter() - page.started))
        if seconds < 1:
            raise RuntimeError("no time left")
        return seconds

    def add_speeds(is_compiled: bool) -> None:
        for recipe, how in SPEEDS:
            if how.compiled == is_compiled:
                page.add(
                    f"{recipe} {how.name}",
                    lambda r=recipe, h=how: in_process(left(h.seconds), speed, args.device, r, h),  # type: ignore[misc]
                )

    page.add("peak", lambda: in_process(left(30), peak, args.device))
    add_speeds(is_compiled=False)
    with tempfile.TemporaryDirectory() as folder:
        page.add("run mnist", lambda: mnist_run(scale, Path(folder) / "mnist", left(scale.most[MNIST])))

        def cifar10() -> dict[str, Any]:
            step = page.found.get(f"{FLOW} {ESTIMATE}") or page.found.get(f"{FLOW} {WAYS[4].name}")
            if not step:
                raise RuntimeError(f"it needs the row {FLOW} {ESTIMATE}, for the length of its schedule")
            found = cifar10_run(scale, Path(folder) / "cifar10", left(scale.most[FLOW]), step["images_per_s"])
            if found["grid"]:
                grid = args.out.with_name(f"{args.out.stem}_cifar10.png")
                shutil.copy(found["grid"], grid)
                found["grid"] = grid.name
            return found

        page.add("run cifar10", cifar10)
    add_speeds(is_compiled=True)
    print(f"wrote {args.out}: {len(page.found)} rows, and {len(page.failed)} that say why they have no figure")


if __name__ == "__main__":
    # Imported once for all processes.
    multiprocessing.set_forkserver_preload(["torch.utils.flop_counter", "pytorch_lightning", "hydra", "pydantic"])
    main()
