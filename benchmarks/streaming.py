"""Measures images in files against images in memory: images/s, and the memory of a set that does not fit.

    python benchmarks/streaming.py --out docs/streaming.md

The set is one shard of small JPEGs under many names, so that it takes little disk: to the program they are as many
pictures. It is read on as many CPUs as `taskset` allows; nothing trains beside it.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks.record import command_line, publish
from src.datamodules.shards_datamodule import ShardsDataModule
from src.run.provenance import provenance

SIZE, IN_A_SHARD, BATCH = 64, 20_000, 64
TABLE = """# Pictures in files

Written by `{command}` at commit {commit} on {machine}, {cpus} of its CPUs, in {seconds:,.0f} s.
JPEGs of {size} x {size} pixels and {bytes:,.0f} bytes in tar files, served in batches of {batch}; medians of {rounds}
rounds in turn.

| pictures | images/s | / Pillow alone |
|---|---|---|
{speeds}

| {n:,} pictures, {decoded:,.1f} GB decoded | seconds | MiB |
|---|---|---|
| before | | {before:,.0f} |
| first start, which reads all shards | {index_seconds:,.0f} | {index:,.0f} |
| next start | {start_seconds:,.0f} | {start:,.0f} |
| the most while {served:,} images are served, with one worker | {epoch_seconds:,.0f} | {epoch:,.0f} |

MiB are of the process and its worker together; what they share counts once.
"""


def write_shard(path: Path) -> float:
    """Writes one shard of two classes; returns the mean size of a picture in bytes."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(50):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(IN_A_SHARD):
            for ending, content in (("jpg", pictures[number % 50]), ("cls", b"ab"[number % 2 :][:1])):
                member = tarfile.TarInfo(f"{number:08}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return float(np.mean([len(each) for each in pictures]))


def opened(folder: Path, workers: int, in_memory: bool) -> ShardsDataModule:
    data = ShardsDataModule(
        folder, folder.parent / "index", img_size=SIZE, batch_size=BATCH, num_workers=workers, in_memory=in_memory
    )
    data.setup()
    return data


def speed(data: ShardsDataModule, batches: int) -> float:
    """Images/s, once the workers run."""
    loader = iter(data.train_dataloader())
    for _ in islice(loader, 10):
        pass
    start = time.perf_counter()
    n = sum(len(images) for images, _ in islice(loader, batches))
    return n / (time.perf_counter() - start)


def pillow_speed(shard: Path, n: int) -> float:
    """Images/s of decoding alone, in one thread, from bytes in memory."""
    with tarfile.open(shard) as tar:
        pictures = [tar.extractfile(member).read() for member in islice(tar, 2 * n) if member.name.endswith(".jpg")]
    start = time.perf_counter()
    for picture in pictures:
        np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    return len(pictures) / (time.perf_counter() - start)


def memory_in_use() -> float:
    """MiB of this process and those below it; what several share counts once."""
    total, todo = 0, [os.getpid()]
    while todo:
        process = Path("/proc", str(todo.pop()))
        lines = (process / "smaps_rollup").read_text(encoding="utf-8").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        for children in process.glob("task/*/children"):
            todo += map(int, children.read_text(encoding="utf-8").split())
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=80, help=f"of {IN_A_SHARD:,} pictures each")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/streaming.md")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        one, many = Path(name, "one"), Path(name, "many")
        for folder in (one, many):
            folder.mkdir()
        size = write_shard(one / "0.tar")
        for number in range(args.shards):
            os.link(one / "0.tar", many / f"{number:04}.tar")

        figures = {"before": memory_in_use()}
        for key in ("index", "start"):
            begun = time.perf_counter()
            data = opened(many, 1, in_memory=False)
            figures |= {f"{key}_seconds": time.perf_counter() - begun, key: memory_in_use()}
            print(f"{key}: {figures[f'{key}_seconds']:,.0f} s, {figures[key]:,.0f} MiB", flush=True)
        begun, most, served = time.perf_counter(), 0.0, 0
        for images, _ in islice(data.train_dataloader(), 5 * args.batches):
            served += len(images)
            if served % (50 * BATCH) == 0:
                most = max(most, memory_in_use())
        figures |= {"epoch_seconds": time.perf_counter() - begun, "epoch": most}
        print(f"served: {served:,}, {most:,.0f} MiB", flush=True)

        sets = {"in memory": opened(one, 0, in_memory=True)}
        sets |= {f"in files, workers: {n}": opened(one, n, in_memory=False) for n in (0, 1, 2)}
        found: dict[str, list[float]] = {kind: [] for kind in ("Pillow alone", *sets)}
        for number in range(args.rounds):
            found["Pillow alone"].append(pillow_speed(one / "0.tar", args.batches * BATCH))
            for kind, each in sets.items():
                found[kind].append(speed(each, args.batches))
            print(f"round {number + 1}: " + "  ".join(f"{k} {v[-1]:,.0f}" for k, v in found.items()), flush=True)
    median = {kind: float(np.median(values)) for kind, values in found.items()}
    report = TABLE.format(
        **provenance(command_line()),
        **figures,
        cpus=len(os.sched_getaffinity(0)),
        size=SIZE,
        bytes=size,
        batch=BATCH,
        rounds=args.rounds,
        n=args.shards * IN_A_SHARD,
        decoded=args.shards * IN_A_SHARD * 3 * SIZE**2 / 1e9,
        served=served,
        seconds=time.perf_counter() - started,
        speeds="\n".join(f"| {k} | {v:,.0f} | {v / median['Pillow alone']:.2f} |" for k, v in median.items()),
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
