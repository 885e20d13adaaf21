"""How long drawing takes, by any model: torch, torch.compile, torch.export and ONNX Runtime, in float32 and in int8.

    python benchmarks/latency.py CHECKPOINT [--seconds 3] [--threads 2] [--out docs/latency.md]

Each way draws the same images from the same checkpoint, in one process, with the same number of threads. The ways take
turns, so a busy machine slows all of them alike.
"""

import argparse
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.record import command_line, publish
from src.export.latency import ROUNDS, latencies, rows, titles, ways_to_draw
from src.export.to_int8 import quantise
from src.export.to_onnx import export_generator
from src.export.to_torch import export_program
from src.run.provenance import provenance
from src.sampling.checkpoint_sampler import CheckpointSampler

CALIBRATION = 512  # as in configs/export.yaml
PAGE = """# Latency

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with {versions}, onnxruntime {onnxruntime}.

The model: {about.run} ({about.checkpoint}, sha256 {about.checkpoint_sha256:.12}), {how}: {about.channels} x
{about.img_size} x {about.img_size} pixels, {parameters:,} weights. Medians over {rounds} rounds for a batch of 1, 16
and 256 images; all take turns in each round. Timings on a shared machine are noisy, so compare the ratios.

{latency}

ONNX Runtime draws one image in {single:.2f} ms in float32. At 256 images it is {onnx_speed:.2f} times as fast as eager
torch, and int8 is {int8_speed:.2f} times as fast as float32. The int8 file is {smaller:.1f} times smaller.

| file | bytes | images differ (range -1 to 1) |
|---|---|---|
| `generator.onnx` | {onnx_bytes:,} | from torch by at most {onnx_difference:.1e} |
| `generator.int8.onnx` | {int8_bytes:,} | from float32 by {int8_mean:.4f} on average, at most {int8_most:.2f} |
| `generator.pt2` | {torch_bytes:,} | from torch by at most {torch_difference:.1e} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seconds", type=float, default=3, help="seconds of timing for each way and batch size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/latency.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    sampler = CheckpointSampler(args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        made = {each: Path(folder) / each for each in ("onnx", "int8", "torch")}
        figures = {"onnx_difference": export_generator(sampler.model, made["onnx"], sampler.about)}
        figures["int8_most"], figures["int8_mean"] = quantise(made["onnx"], made["int8"], CALIBRATION, 0, {})
        figures["torch_difference"] = export_program(sampler.model, made["torch"], sampler.about)
        ways = ways_to_draw(sampler, made, compiled=True)
        found = latencies(ways, sampler.about, args.seconds)
        sizes = {f"{each}_bytes": path.stat().st_size for each, path in made.items()}
    lines = [titles(), ["---"] * len(titles()), *rows(found)]
    eager, onnx, int8 = (next(found[name] for name in ways if word in name) for word in ("eager", "float32", "int8"))
    report = PAGE.format(
        **provenance(command_line()),
        about=sampler.about,
        how=sampler.about.in_words(),
        **figures,
        **sizes,
        onnxruntime=version("onnxruntime"),
        parameters=sum(each.numel() for each in sampler.model.sampler(average=True).parameters()),
        rounds=ROUNDS,
        latency="\n".join(f"| {' | '.join(line)} |" for line in lines),
        single=1e3 * onnx[1],
        onnx_speed=eager[256] / onnx[256],
        int8_speed=onnx[256] / int8[256],
        smaller=sizes["onnx_bytes"] / sizes["int8_bytes"],
        seconds=time.perf_counter() - started,
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
