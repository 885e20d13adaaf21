"""What a step of a recommended recipe costs, and what the alternatives cost: docs/step_cost.md, docs/flow_step_cost.md.

    python benchmarks/step_cost.py [gan|flow] [--steps 24] [--rounds 5] [--out docs/step_cost.md]

The variants take turns, so a busy machine slows all of them alike. The median of the rounds counts. Only the step runs,
on random images, without Lightning, loader and logging (benchmarks/training_speed.py has those).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import command_line, publish
from src.config.instantiate import instantiate
from src.datamodules.loader import Batch
from src.models.mnist_gan_model import DISCRIMINATOR, GENERATOR
from src.models.modules.convolution import Conv3x3
from src.run.provenance import provenance

Update = Callable[[Batch, int], None]
# Name, changed keys, threads (None: all), and another change.
Variants = list[tuple[str, list[str], int | None, str]]
GAN: Variants = [
    ("as in the recipe, in float32", [], None, ""),
    ("bf16 autocast, as trainer.precision=auto where the CPU has it", [], None, "bf16"),
    ("one thread", [], 1, ""),
    ("no minibatch_std", ["model.discriminator.minibatch_std=false"], None, ""),
    ("no R1", ["model.penalties.r1=null"], None, ""),
    ("R1 on every 8th batch", ["model.penalties.r1.every=8"], None, ""),
    ("R1 on every batch", ["model.penalties.r1.every=1"], None, ""),
    ("two G forwards a batch", [], None, "two forwards"),
    ("Adam that is not fused", ["model.optimizer_g.fused=false", "model.optimizer_d.fused=false"], None, ""),
    ("contiguous, not channels last", [], None, "contiguous"),
    ("no R1, torch.compile", ["model.penalties.r1=null"], None, "compile"),  # which has no second derivative
    ("batches of 32", ["datamodule.batch_size=32"], None, ""),
    ("batches of 128", ["datamodule.batch_size=128"], None, ""),
    ("spectral norm", ["model.spectral_norm=true"], None, ""),
    ("relativistic with R1 and R2", ["model/objective=relativistic"], None, ""),
    ("width 48", ["model.generator.width=48", "model.discriminator.width=48"], None, ""),
    ("DCGAN", ["model/networks=dcgan"], None, ""),
]
FLOW: Variants = [
    ("as in the recipe, in float32", [], None, ""),
    ("bf16 autocast, as trainer.precision=auto where the CPU has it", [], None, "bf16"),
    ("one thread", [], 1, ""),
    ("forward pass alone, without gradients", [], None, "forward"),
    ("new prompts alone", [], None, "prompts"),
    ("classes in place of text", ["model/condition=label"], None, ""),
    ("no moving average", ["model.ema_half_life=null"], None, ""),
    ("AdamW that is not fused", ["model.optimizer.fused=false"], None, ""),
    ("contiguous, not channels last", [], None, "contiguous"),
    ("torch.compile", [], None, "compile"),
    ("batches of 32", ["datamodule.batch_size=32"], None, ""),
    ("batches of 128", ["datamodule.batch_size=128"], None, ""),
    ("width 48", ["model.denoiser.width=48"], None, ""),
    ("one block a size", ["model.denoiser.depth=1"], None, ""),
    ("a step of `train_mnist_cnn_gan`, in float32", [], None, "gan"),
    ("a step of `train_cifar10_flow`, of 32 pixels, with bf16 autocast", [], None, "cifar10"),
    ("the same, with PyTorch's own gradient of convolutions", [], None, "cifar10, its own convolutions"),
]
NAMES = "model.prompts.names=[zero,one,two,three,four,five,six,seven,eight,nine]"
TABLE = """# What a step costs

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine},
with {versions}. A step is {step} on a batch of 64 images of 28 pixels, without
loading, logging and Lightning. Medians of {rounds} rounds in which all take turns of {steps} steps.

| step | ms | images/s | / recipe |
|---|---|---|---|
{rows}

Where the recipe's step goes, by operator (its own time, all threads):

| operator | share |
|---|---|
{profile}
"""


def build(experiment: str, overrides: list[str], channels: int = 1) -> tuple[Any, DictConfig]:
    """The model of an experiment on data of ten classes, and the configuration of these data."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        of_data = ["model.n_classes=10", f"model.channels={channels}"]
        config = compose("train", [f"experiment={experiment}", *of_data, *overrides])
    torch.manual_seed(0)
    return instantiate(config, "model").train(), config.datamodule


def gan_update(model: Any, more: str = "") -> Update:
    """A function that updates both networks and the average on a batch, the i-th."""
    penalties = model.penalties
    optimizers = model.configure_optimizers()
    networks = [model.generator, model.discriminator]

    def update(batch: Batch, i: int) -> None:
        model.penalties = {name: each for name, each in penalties.items() if (i + 1) % each.every == 0}
        for index in (GENERATOR, DISCRIMINATOR):
            networks[1 - index].requires_grad_(False)
            if more == "two forwards":
                model._fakes = None
            with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=more == "bf16"):
                _, loss = model.step(batch, i, index)
            optimizers[index].zero_grad()
            loss.backward()
            optimizers[index].step()
            networks[1 - index].requires_grad_(True)
        model.ema.update(model.generator, len(batch[0]))

    return update


def flow_update(model: Any, more: str = "") -> Update:
    """As `gan_update`, of a batch that is prepared."""
    (optimizer,) = model.configure_optimizers()

    def update(batch: Batch, i: int) -> None:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=more.startswith(("bf16", "cifar10"))):
            _, loss = model.objective(batch, i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if model.ema is not None:
            model.ema.update(model.network, len(batch[0]))

    return update


def gan_step(overrides: list[str], more: str) -> tuple[Callable[[int], None], int]:
    """A function that runs the i-th step, and its batch size."""
    model, data = build("train_mnist_cnn_gan", overrides)
    size = data.batch_size
    if more == "contiguous":
        model.to(memory_format=torch.contiguous_format)
    if more == "compile":
        model.generator.compile()
        model.discriminator.compile()
    batch = torch.rand(size, 1, 28, 28) * 2 - 1, torch.randint(10, (size,))
    return partial(gan_update(model, more), batch), size


def flow_step(overrides: list[str], more: str) -> tuple[Callable[[int], None], int]:
    """As `gan_step`."""
    if more == "gan":
        return gan_step(overrides, "")
    if more.startswith("cifar10"):
        model, data = build("train_cifar10_flow", overrides, channels=3)
    else:
        texts = [] if "model/condition=label" in overrides else [NAMES]
        model, data = build("train_mnist_text2image", [*texts, *overrides])
    size = data.batch_size
    if "its own convolutions" in more:
        for each in model.network.denoiser.modules():
            if isinstance(each, Conv3x3):
                each.__class__ = nn.Conv2d
    if more == "contiguous":
        model.to(memory_format=torch.contiguous_format)
    if more == "compile":
        model.network.denoiser.compile()
    batch = torch.rand(size, model.channels, data.img_size, data.img_size) * 2 - 1, torch.randint(10, (size,))

    def prompts(i: int) -> None:
        model._prompts_for(batch[1])

    def forward(i: int) -> None:
        with torch.no_grad():
            model.step(batch, i)

    update = flow_update(model, more)
    parts = {"prompts": prompts, "forward": forward}
    return parts.get(more, lambda i: update(model.prepared(batch), i)), size


WHAT = {
    "gan": (gan_step, GAN, "one update of G and one of D"),
    "flow": (flow_step, FLOW, "one update of the network of `train_mnist_text2image`"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=list(WHAT), default="gan")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/step_cost.md")
    args = parser.parse_args()
    threads, started = torch.get_num_threads(), time.perf_counter()
    make_step, variants, what = WHAT[args.family]
    steps = {name: make_step(overrides, more) for name, overrides, _, more in variants}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
        for name, _, wanted, _ in variants:
            torch.set_num_threads(wanted or threads)
            step, _ = steps[name]
            start = time.perf_counter()
            for i in range(args.steps):
                step(i)
            if round_:  # the first round compiles, and fills caches
                times[name].append((time.perf_counter() - start) / args.steps)
        print(f"round {round_}/{args.rounds}", flush=True)
    torch.set_num_threads(threads)

    step, _ = steps[variants[0][0]]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for i in range(args.steps):
            step(i)
    operators = sorted(profiler.key_averages(), key=lambda each: -each.self_cpu_time_total)
    total = sum(each.self_cpu_time_total for each in operators)

    recipe = statistics.median(times[variants[0][0]]) / steps[variants[0][0]][1]
    rows = []
    for name, (_, size) in steps.items():
        seconds = statistics.median(times[name])
        rows.append(f"| {name} | {seconds * 1e3:.1f} | {size / seconds:,.0f} | {seconds / size / recipe:.2f} |")
    report = TABLE.format(
        **provenance(command_line()),
        rows="\n".join(rows),
        profile="\n".join(f"| `{each.key}` | {each.self_cpu_time_total / total:.0%} |" for each in operators[:10]),
        step=what,
        rounds=args.rounds,
        steps=args.steps,
        seconds=time.perf_counter() - started,
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
