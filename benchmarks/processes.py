"""Training speed of two processes with half a batch each, against one process with as many threads, on the CPU.

    python benchmarks/processes.py [--batches 220] [--rounds 5] [--out docs/processes.md]

Both are whole commands of the recommended MNIST GAN and take turns. MNIST must be in `DATA_DIR` or `data/`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.record import command_line, publish
from src.run.provenance import provenance

BATCH, WARM_UP = 128, 30
PRECISIONS = ("32-true", "bf16-mixed")
ONE = ["trainer.threads=2", f"datamodule.batch_size={BATCH}"]
TWO = ["trainer.threads=1", f"datamodule.batch_size={BATCH // 2}", "trainer=ddp_cpu"]
TABLE = """# Two processes on the CPU

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with {versions}.
`experiment=train_mnist_cnn_gan`, {batch} images a step, {rounds} rounds of {batches} batches in turn.

| precision | round | one process, two threads: images/s | two processes, one thread each: images/s | ratio |
|---|---|---|---|---|
{rows}

Each step, the two processes average the gradients of both networks, through memory that they share.
"""


class Clock(Callback):
    """Leaves the seconds of all batches but the first ones in the run folder."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if batch_idx == WARM_UP - 1:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self.start
            (Path(trainer.default_root_dir) / "seconds.txt").write_text(str(seconds), encoding="utf-8")


def images_per_second(batches: int, *typed: str) -> float:
    """Speed of one command, which trains for so many batches after the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run.py"), "experiment=train_mnist_cnn_gan", f"hydra.run.dir={folder}"]
        command += ["trainer.max_epochs=1", f"trainer.limit_train_batches={WARM_UP + batches}", "logger=csv"]
        command += ["trainer.limit_val_batches=0", "callbacks.quality=null", "callbacks.model_checkpoint.monitor=null"]
        command += ["optimized_metric=null", "test_after_training=false", "callbacks.sample_grid=null"]
        command += ["+callbacks.clock._target_=benchmarks.processes.Clock", *typed]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return batches * BATCH / float((Path(folder) / "seconds.txt").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=220)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/processes.md")
    args = parser.parse_args()

    started = time.perf_counter()
    speeds: dict[str, list[tuple[float, float]]] = {precision: [] for precision in PRECISIONS}
    for round_ in range(1, args.rounds + 1):
        for precision, found in speeds.items():
            typed = f"trainer.precision={precision}"
            one, two = (images_per_second(args.batches, typed, *each) for each in (ONE, TWO))
            found.append((one, two))
            said = f"round {round_}/{args.rounds}, {precision}"
            print(f"{said}: {one:,.0f} and {two:,.0f} images/s, {two / one:.2f}", flush=True)
    rows = []
    for precision, found in speeds.items():
        lines = [(str(i), one, two, two / one) for i, (one, two) in enumerate(found, 1)]
        lines.append(("median", *(statistics.median(column) for column in list(zip(*lines, strict=True))[1:])))
        rows += [f"| {precision} | {name} | {one:,.0f} | {two:,.0f} | {share:.2f} |" for name, one, two, share in lines]
    report = TABLE.format(
        **provenance(command_line()),
        batch=BATCH,
        rounds=args.rounds,
        batches=args.batches,
        rows="\n".join(rows),
        seconds=time.perf_counter() - started,
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
