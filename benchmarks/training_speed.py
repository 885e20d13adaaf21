"""Training speed against bare PyTorch, as ratios within one run.

    python benchmarks/training_speed.py [--batches 400] [--rounds 7] [--threads 2] [--out docs/speed.md]

Trains the same two networks on the same images in several ways, each in a process of its own. The ways take turns, so a
busy machine slows all of them alike. MNIST must be in `DATA_DIR` or `data/`:

- project:     `src.train.train` as `python run.py experiment=train_mnist_gan.yaml` runs it, with its default logging
- bare:        a plain loop over the same tensors with the same arithmetic and fused Adam
- template:    the usual way: PIL transforms one image at a time in a DataLoader, plain Adam, two G forwards
- recipe:      as `project`, with `experiment=train_mnist_cnn_gan.yaml`
- recipe_bare: a plain loop with that recipe's arithmetic

Also compares a validation with an epoch of training, and the time to the first batch with the time to import torch,
Lightning and wandb.
"""

import argparse
import copy
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.loggers import WandbLogger
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import command_line, publish
from src.config.command_line import in_hydras_grammar
from src.config.instantiate import instantiate
from src.datamodules.loader import ImageSet
from src.models.modules.discriminators import Discriminator
from src.models.modules.generators import Generator
from src.run.provenance import provenance
from src.run.trainer import native_precision

BATCH = 64
KINDS = ("project", "bare", "template", "recipe", "recipe_bare")
EXPERIMENTS = {"project": "train_mnist_gan", "recipe": "train_mnist_cnn_gan"}
TABLE = """# Speed

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with {versions}.
Medians of {rounds} rounds of {batches} batches, of a run the second epoch's; all take turns in each round. Timings on a
shared machine are noisy, so compare the ratios. The models are the GANs `train_mnist_gan` and `train_mnist_cnn_gan`.

| training the baseline | images/s | project / this |
|---|---|---|
| this project, as `experiment=train_mnist_gan.yaml` runs it, with its default logging | {project_speed:,.0f} | |
| a bare PyTorch loop: same tensors, same arithmetic, fused Adam | {bare_speed:,.0f} | {bare_ratio:.2f} |
| the usual way: PIL transforms each image, plain Adam, two G forwards | {template_speed:,.0f} | {template_ratio:.2f} |

| training the recommended recipe | images/s | project / this |
|---|---|---|
| this project, as `experiment=train_mnist_cnn_gan.yaml` runs it, with its default logging | {recipe_speed:,.0f} | |
| a bare PyTorch loop: same tensors, same arithmetic | {recipe_bare_speed:,.0f} | {recipe_bare_ratio:.2f} |

| a validation that measures 4,000 samples | seconds | / an epoch of training | the first, with real images |
|---|---|---|---|
| `experiment=train_mnist_gan.yaml` | {project_validation:.2f} | {project_share:.1%} | {project_first_validation:.2f} |
| `experiment=train_mnist_cnn_gan.yaml` | {recipe_validation:.2f} | {recipe_share:.1%} | {recipe_first_validation:.2f} |

| default logging: metrics, six pictures an epoch | seconds an epoch | / an epoch of training |
|---|---|---|
| `experiment=train_mnist_gan.yaml` | {project_logging:.2f} | {project_logging_share:.1%} |
| `experiment=train_mnist_cnn_gan.yaml` | {recipe_logging:.2f} | {recipe_logging_share:.1%} |

| start | seconds | / imports |
|---|---|---|
| importing torch, pytorch_lightning and wandb | {imports:.2f} | |
| from the command to the first training batch on MNIST | {first:.2f} | {start_ratio:.2f} |

Peak memory: {memory:,.0f} MiB in training, {bare_memory:,.0f} MiB in the bare loop.
"""


def bare_loop(data: ImageSet, batches: int) -> float:
    """Images/s of the same arithmetic without a framework."""
    generator, discriminator = Generator(10, 100, 1, 32), Discriminator(10, 1, 32)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
    opt_g = torch.optim.Adam(generator.parameters(), **adam)
    opt_d = torch.optim.Adam(discriminator.parameters(), **adam)
    order = torch.randperm(len(data))[: BATCH * (len(data) // BATCH)].split(BATCH)
    start = time.perf_counter()
    for i in range(batches):
        real, labels = data.__getitems__(order[i % len(order)])
        fake = generator(torch.randn(BATCH, 100), labels)
        discriminator.requires_grad_(False)
        g_loss = (discriminator(fake, labels) - 1).square().mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        discriminator.requires_grad_(True)
        scores = discriminator(torch.cat([real, fake.detach()]), torch.cat([labels, labels]))
        d_real, d_fake = scores.chunk(2)
        d_loss = ((d_real - 1).square().mean() + d_fake.square().mean()) / 2
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
    return batches * BATCH / (time.perf_counter() - start)


def recipe_bare_loop(data: ImageSet, batches: int) -> float:
    """Images/s of the recommended recipe's arithmetic, written by hand for its settings."""
    config = composed("recipe", "model.n_classes=10", "model.channels=1")
    model, adam = config.model, config.model.optimizer_d
    generator, discriminator = instantiate(config, "model.generator"), instantiate(config, "model.discriminator")
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    options = {"lr": adam.lr, "betas": tuple(adam.betas), "fused": True}
    opt_g = torch.optim.Adam(generator.parameters(), **options)
    opt_d = torch.optim.Adam(discriminator.parameters(), **options)
    size, r1 = config.datamodule.batch_size, model.penalties.r1
    n_wrong = math.ceil(model.mismatched_labels * size)
    order = torch.randperm(len(data))[: size * (len(data) // size)].split(size)
    start = time.perf_counter()
    # As trainer.precision=auto: networks in bfloat16 where the CPU has it, losses and penalties in float32.
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=native_precision(on_cpu=True) == "bf16-mixed")
    for i in range(batches):
        real, labels = data.__getitems__(order[i % len(order)])
        discriminator.requires_grad_(False)
        with mixed:
            fake = generator(torch.randn(size, model.latent_dim), labels)
            scores = discriminator(fake, labels)
        g_loss = softplus(-scores.float()).mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        discriminator.requires_grad_(True)
        wrong = (labels[:n_wrong] + torch.randint(1, 10, (n_wrong,))) % 10
        with mixed:
            shown = torch.cat([real, fake.detach(), real[:n_wrong]]), torch.cat([labels, labels, wrong])
            scores = discriminator(*shown, [size, size])
        d_real, d_fake, d_wrong = scores.float().split([size, size, n_wrong])
        fake_loss = softplus(d_fake).mean()
        if n_wrong:
            weight = model.mismatched_labels
            fake_loss = (fake_loss + weight * softplus(d_wrong).mean()) / (1 + weight)
        d_loss = (softplus(-d_real).mean() + fake_loss) / 2
        if (i + 1) % r1.every == 0:
            images = real.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
            d_loss = d_loss + r1.every * r1.gamma / 2 * gradient.square().sum(dim=(1, 2, 3)).mean() / 2
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 0.01)
    return batches * size / (time.perf_counter() - start)


class PILImages(Dataset):
    """One image at a time through PIL and torchvision, as most code does it."""

    def __init__(self, data: ImageSet) -> None:
        from torchvision import transforms

        self.data = data
        steps = [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.data.images[index, 0].numpy())), int(self.data.labels[index])


def template_loop(data: ImageSet, batches: int) -> float:
    """Images/s of the usual way."""
    generator, discriminator = Generator(10, 100, 1, 32), Discriminator(10, 1, 32)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    opt_g = torch.optim.Adam(generator.parameters(), **adam)
    opt_d = torch.optim.Adam(discriminator.parameters(), **adam)
    valid, invalid = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    loader = DataLoader(PILImages(data), batch_size=BATCH, shuffle=True, drop_last=True)
    start = time.perf_counter()
    shown = []
    for i, (real, labels) in enumerate(loader):
        if i == batches:
            break
        opt_g.zero_grad()
        g_loss = mse_loss(discriminator(generator(torch.randn(BATCH, 100), labels), labels), valid)
        g_loss.backward()
        opt_g.step()
        opt_d.zero_grad()
        fake = generator(torch.randn(BATCH, 100), labels).detach()
        d_real = mse_loss(discriminator(real, labels), valid)
        d_loss = (d_real + mse_loss(discriminator(fake, labels), invalid)) / 2
        d_loss.backward()
        opt_d.step()
        shown += [g_loss.item(), d_loss.item()]
    return i * BATCH / (time.perf_counter() - start)


def composed(kind: str, *overrides: str) -> DictConfig:
    """Composes the experiment of a kind."""
    data_dir = Path(os.environ.get("DATA_DIR") or ROOT / "data").resolve()
    always = [f"experiment={EXPERIMENTS[kind]}.yaml", f"data_dir={data_dir}", f"work_dir={ROOT}"]
    typed = in_hydras_grammar("train", [*always, *overrides])
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", typed, return_hydra_config=True)


def time_logging(seconds: dict[str, float]) -> None:
    """Adds up the seconds of logging: `often` in training, and `once` an epoch for pictures."""
    from src.callbacks import quality, wandb_callbacks
    from src.run.run_record import RunRecord

    def timed(owner: object, name: str, when: str) -> None:
        original = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[when] += time.perf_counter() - start

        setattr(owner, name, call)

    for logger in (WandbLogger, RunRecord):
        timed(logger, "log_metrics", "often")
    for callback in (wandb_callbacks.LogSampleGrid, wandb_callbacks.LogInterpolation):
        timed(callback, "on_train_epoch_end", "once")
    timed(wandb_callbacks.LogConfusions, "on_validation_end", "once")
    for name in ("draw_confusion", "show"):
        timed(quality, name, "once")


def project(kind: str, batches: int) -> tuple[float, ...]:
    """Times the second epoch of a real run: the first one's validation also measures real images, once.

    Returns:
        Images/s, with everything that happens between the first batch and the last; seconds of a validation and its
        share in an epoch of training; the same of logging in an epoch; seconds of the first validation.
    """
    import src.train as verb

    logging = {"often": 0.0, "once": 0.0}
    time_logging(logging)

    class Clock(Callback):
        validations: list[float] = []

        def on_train_epoch_start(self, trainer, pl_module) -> None:
            logging.update(often=0.0, once=0.0)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 1:
                self.start = time.perf_counter()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if batch_idx == batches:
                self.seconds = time.perf_counter() - self.start

        def on_validation_start(self, trainer, pl_module) -> None:
            self.validation_start = time.perf_counter()

        def on_validation_end(self, trainer, pl_module) -> None:
            self.validations.append(time.perf_counter() - self.validation_start)

    with tempfile.TemporaryDirectory() as folder:
        overrides = ["trainer.max_epochs=2", "test_after_training=false", "print_config=false"]
        overrides += [f"trainer.limit_train_batches={batches + 1}", "++logger.wandb.mode=offline"]
        overrides += [f"hydra.run.dir={folder}", f"work_dir={folder}"]
        config = composed(kind, *overrides)
        config.hydra.runtime.output_dir = folder
        HydraConfig.instance().set_config(config)
        epoch = composed(kind).trainer.limit_train_batches
        original = verb.instantiate_each
        clock = Clock()
        verb.instantiate_each = lambda c, g: [*original(c, g), *([clock] if g == "callbacks" else [])]
        verb.train(config)
    size = config.datamodule.batch_size
    in_epoch = epoch if isinstance(epoch, int) else int(epoch * config.datamodule.train_val_test_split[0] / size)
    epoch_seconds = clock.seconds / batches * in_epoch
    logging_seconds = logging["often"] * in_epoch / batches + logging["once"]
    _, first, second = clock.validations  # before them, a few batches that only show that all of it works
    costs = [(seconds, seconds / epoch_seconds) for seconds in (second, logging_seconds)]
    return batches * size / clock.seconds, *costs[0], *costs[1], first


def first_batch_ratio(rounds: int) -> tuple[float, float, float]:
    """Seconds to import torch, Lightning and wandb; seconds from the command to the first batch; their ratio."""
    code = "import os, torch, pytorch_lightning, wandb; os._exit(0)"  # both end without cleaning up
    probe = (
        "import sys, os, runpy; sys.argv = sys.argv[1:];"
        "import pytorch_lightning as pl; pl.Callback.on_train_batch_start = lambda self, *a: os._exit(0);"
        "sys.path.insert(0, os.path.dirname(sys.argv[0])); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    imports, first = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            imports.append(time.perf_counter() - start)
            start = time.perf_counter()
            command = [sys.executable, "-c", probe, str(ROOT / "run.py"), "experiment=train_mnist_gan.yaml"]
            subprocess.run(command, check=True, cwd=folder, capture_output=True)
            first.append(time.perf_counter() - start)
    a, b = statistics.median(imports), statistics.median(first)
    return a, b, b / a


def measure_one(kind: str, batches: int) -> None:
    """Prints images/s and peak memory in MiB; for a run also the other results of `project`."""
    more: tuple[float, ...] = ()
    if kind in EXPERIMENTS:
        speed, *more = project(kind, batches)
    else:
        datamodule = instantiate(composed("recipe" if kind == "recipe_bare" else "project"), "datamodule")
        datamodule.setup()
        loop = {"bare": bare_loop, "template": template_loop, "recipe_bare": recipe_bare_loop}[kind]
        loop(datamodule.sets["train"], 20)
        speed = loop(datamodule.sets["train"], batches)
    print("\n" + " ".join(map(str, [speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, *more])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/speed.md")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        return measure_one(args.only, args.batches)

    started = time.perf_counter()
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    memory: dict[str, float] = {}
    costs: dict[str, list[list[float]]] = {kind: [] for kind in EXPERIMENTS}
    for round_ in range(args.rounds):
        for kind in KINDS:  # each in a process of its own, as users run them
            command = [
                sys.executable,
                __file__,
                "--only",
                kind,
                f"--batches={args.batches}",
                f"--threads={args.threads}",
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            speed, memory[kind], *more = map(float, done.stdout.splitlines()[-1].split())
            speeds[kind].append(speed)
            if more:
                costs[kind].append(more)
        print(f"round {round_ + 1}/{args.rounds}: " + "  ".join(f"{k} {v[-1]:,.0f}" for k, v in speeds.items()))
    imports, first, start_ratio = first_batch_ratio(args.rounds)
    ours = {kind: speeds["recipe" if kind.startswith("recipe") else "project"] for kind in KINDS}
    ratio = {kind: statistics.median(p / o for p, o in zip(ours[kind], speeds[kind], strict=True)) for kind in KINDS}
    report = TABLE.format(
        **provenance(command_line()),
        **{f"{kind}_speed": statistics.median(values) for kind, values in speeds.items()},
        **{f"{kind}_ratio": value for kind, value in ratio.items()},
        **{
            f"{kind}_{name}": statistics.median(values[i] for values in costs[kind])
            for kind in EXPERIMENTS
            for i, name in enumerate(("validation", "share", "logging", "logging_share", "first_validation"))
        },
        rounds=args.rounds,
        batches=args.batches,
        imports=imports,
        first=first,
        start_ratio=start_ratio,
        memory=memory["project"],
        bare_memory=memory["bare"],
        seconds=time.perf_counter() - started,
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
