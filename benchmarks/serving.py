"""What serving costs: requests against raw ONNX Runtime and empty answers, and memory over many requests.

    python benchmarks/serving.py generator.onnx [--rounds 5] [--seconds 5] [--out docs/serving.md]

The model may be of any family. The service runs as `python run.py task=serve` starts it, in a process of its own. Its
clients are another process on the same cores. The measurements take turns, so a busy machine slows all of them alike.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.record import command_line, publish
from src.models.request import Request
from src.sampling.onnx_sampler import OnnxSampler
from src.sampling.sampler import Noise

CLIENTS = 64
# The clients' requests.
KINDS = {
    "empty": None,  # GET /health
    "png": {"n": 1, "format": "png"},
    "grid": {"n": 64, "format": "png"},
    "npz": {"n": 64, "format": "npz"},
}
TABLE = """# Serving

Written by `{command}` at commit {commit} in {seconds:.0f} s, on {machine}, with {versions},
onnxruntime {onnxruntime}. Medians of {rounds} rounds of {each:g} s; all take turns in each round. The service and
its {clients} clients share the cores. The model: {model}.

| ONNX Runtime in this process | |
|---|---|
| one image, one thread | {one:.3f} ms |
| one image, ONNX Runtime's own choice of threads | {one_default:.3f} ms |
| 64 images at a time, one thread a core, images/s | {raw:,.0f} |
| 64 images at a time, ONNX Runtime's own choice of threads, images/s | {raw_default:,.0f} |

| {clients} clients ask for | requests/s | images/s | p50 | p99 | / raw images/s | the service's CPU time |
|---|---|---|---|---|---|---|
{rows}

"Raw" is the faster of the two at 64 images at a time. It uses {raw_cpu:.2f} ms of CPU time for 64 images. The service
answers {empty_share:.2f} times as many requests for a PNG as empty ones. A single client gets a PNG in
{alone_p50:.2f} ms (p99 {alone_p99:.2f} ms), and an empty answer in {alone_empty:.2f} ms.

{total:,} requests for one PNG each, from {clients} clients: {errors} errors. The service uses
{memory_before:.1f} MiB of memory after the first tenth of them, {memory_after:.1f} MiB after the last.

Requests made up by `schemathesis run openapi.json --mode=all --max-examples={examples}`: {fuzzed}.
"""
ROW = "| {what} | {rate:,.0f} | {images:,.0f} | {p50:.1f} ms | {p99:.1f} ms | {ratio:.2f} | {cpu:.2f} ms |"
WORDS = {"empty": "nothing (`GET /health`)", "png": "one PNG", "grid": "64 images, a PNG", "npz": "64 images, npz"}


# Clients --------------------------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """A connection that sends the next request as soon as it has an answer, while `goes_on()`."""

    def __init__(self, request: bytes, goes_on, seconds: list[float], done: asyncio.Future[None]) -> None:
        self.request, self.goes_on, self.seconds, self.done = request, goes_on, seconds, done
        self.errors = 0

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.head, self.left = b"", None
        self.started = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.left is None:
            self.head += data
            head, found, body = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.left = int(re.search(rb"content-length: (\d+)", head)[1]) - len(body)
            self.errors += not head.startswith(b"HTTP/1.1 200")
        else:
            self.left -= len(data)
        if self.left == 0:
            self.seconds.append(time.perf_counter() - self.started)
            if self.goes_on():
                self.ask()
            else:
                self.transport.close()

    def connection_lost(self, error) -> None:
        self.errors += self.left != 0
        if not self.done.done():
            self.done.set_result(None)


async def load(port: int, kind: str, what: dict, clients: int, seconds: float, requests: int) -> dict[str, float]:
    """Sends requests for `what` for `seconds`, or `requests` of them if `seconds` is 0."""
    asked = json.dumps(what | (KINDS[kind] or {})).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
    )
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" if KINDS[kind] is None else head.encode() + asked
    loop = asyncio.get_running_loop()
    took: list[float] = []
    end = time.perf_counter() + seconds
    goes_on = (lambda: time.perf_counter() < end) if seconds else (lambda: len(took) <= requests - clients)
    started = time.perf_counter()
    every = []
    for _ in range(clients):
        done = loop.create_future()
        _, client = await loop.create_connection(lambda d=done: Client(request, goes_on, took, d), "127.0.0.1", port)
        every.append((client, done))
    for _, done in every:
        await done
    rate = len(took) / (time.perf_counter() - started)
    took.sort()
    p50, p99 = (1000 * took[int(len(took) * share)] for share in (0.5, 0.99))
    return {"rate": rate, "p50": p50, "p99": p99, "errors": sum(client.errors for client, _ in every), "n": len(took)}


def clients(
    port: int, kind: str, what: dict, clients: int = CLIENTS, seconds: float = 0, requests: int = 0
) -> dict[str, float]:
    """Runs `load` in a process of its own."""
    command = [sys.executable, __file__, "-", "--load", json.dumps([port, kind, what, clients, seconds, requests])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout)


# The service ----------------------------------------------------------------------------------------------------------


def start(path: Path) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, str(ROOT / "run.py"), "task=serve", "port=0", f"ckpt_path={path}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | {"SERVE_API_KEY": ""}
    )
    said = ""
    while not said.endswith("Ctrl-C\n"):
        line = process.stdout.readline()
        if not line:
            raise SystemExit(said)
        said += line
    time.sleep(0.5)
    return process, int(re.search(r"page\s+http://[^\s]+:(\d+)/", said)[1])


def cpu(process: subprocess.Popen[str]) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(port: int, examples: int) -> str:
    """Sends requests made up from openapi.json, and counts the answers by status."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--mode=all", "--seed=1"]
    command += [f"--max-examples={examples}", "--checks=not_a_server_error"]
    before = statuses(url)
    with tempfile.TemporaryDirectory() as folder:  # schemathesis leaves a cache where it runs
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    made = {status: n - before.get(status, 0) for status, n in statuses(url).items() if n > before.get(status, 0)}
    each = ", ".join(f"{n:,} with {status}" for status, n in sorted(made.items()))
    return f"{sum(made.values()):,} requests, answered {each}"


def statuses(url: str) -> dict[str, int]:
    """The number of answers so far with each status."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    counts: dict[str, int] = {}
    for status, n in re.findall(r'^serve_requests_total\{.*status="(\d+)"\} (\S+)$', text, re.MULTILINE):
        counts[status] = counts.get(status, 0) + int(float(n))
    return counts


def memory(process: subprocess.Popen[str]) -> float:
    """Resident memory of a process in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))[1]) / 1024


# ONNX Runtime ---------------------------------------------------------------------------------------------------------


def inputs(sampler: OnnxSampler, n: int) -> Request[np.ndarray]:
    about = sampler.about
    return Request(Noise(about.noise_shape, 0)(n), about.condition(about.examples(n)))


def latency(sampler: OnnxSampler, seconds: float) -> float:
    """Median time of one image in ms."""
    given = inputs(sampler, 1)
    took = []
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end or len(took) < 10:
        start = time.perf_counter()
        sampler.run(given)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[len(took) // 10 :])


def cpu_of_64(sampler: OnnxSampler, seconds: float) -> float:
    """Mean CPU time of 64 images in ms."""
    given = inputs(sampler, 64)
    start, end, n = time.process_time(), time.perf_counter() + seconds / 5, 0
    while time.perf_counter() < end or not n:
        sampler.run(given)
        n += 1
    return 1000 * (time.process_time() - start) / n


def throughput(sampler: OnnxSampler, threads: int, seconds: float) -> float:
    """Images/s of `threads` threads that draw 64 images at a time."""
    given = inputs(sampler, 64)
    end = time.perf_counter() + seconds
    counts = [0] * threads

    def work(i: int) -> None:
        while time.perf_counter() < end:
            sampler.run(given)
            counts[i] += 64

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the generator.onnx of task=export")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--examples", type=int, default=1000, help="made-up requests of each kind")
    parser.add_argument("--out", type=Path, help="also write the report to this file, such as docs/serving.md")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        import uvloop

        print(json.dumps(uvloop.run(load(*json.loads(args.load)))))
        return

    import onnxruntime

    from src.run.provenance import provenance

    started = time.perf_counter()
    own, default = OnnxSampler(args.path, threads=1), OnnxSampler(args.path)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    about = own.about
    what: dict = {"labels": [about.class_names[-1]]} if about.class_names else {"prompts": ["what to draw"]}
    if about.prompts:
        what = {"prompts": [about.prompts[-1]]}
    process, port = start(args.path)
    try:
        errors = 0.0
        for kind in KINDS:
            clients(port, kind, what, seconds=1)
        for round_ in range(args.rounds):
            note("one", latency(own, args.seconds))
            note("one_default", latency(default, args.seconds))
            note("raw", throughput(own, os.cpu_count() or 1, args.seconds))
            note("raw_cpu", cpu_of_64(own, args.seconds))
            note("raw_default", throughput(default, 1, args.seconds))
            for kind in KINDS:
                used = cpu(process)
                result = clients(port, kind, what, seconds=args.seconds)
                note(f"{kind}_cpu", 1000 * (cpu(process) - used) / result["n"])
                errors += result["errors"]
                for name in ("rate", "p50", "p99"):
                    note(f"{kind}_{name}", result[name])
                images = result["rate"] * (KINDS[kind] or {"n": 0})["n"]
                note(f"{kind}_images", images)
                note(f"{kind}_ratio", images / max(found["raw"][-1], found["raw_default"][-1]))
            for name, kind in (("alone_p50", "png"), ("alone_empty", "empty")):
                result = clients(port, kind, what, clients=1, seconds=args.seconds / 5)
                note(name, result["p50"])
                note("alone_p99", result["p99"] if kind == "png" else found["alone_p99"][-1])
            print(f"round {round_ + 1}/{args.rounds}: " + "  ".join(f"{k} {v[-1]:,.2f}" for k, v in found.items()))
        first = clients(port, "png", what, requests=args.requests // 10)
        before = memory(process)
        rest = clients(port, "png", what, requests=args.requests - args.requests // 10)
        after = memory(process)
        fuzzed = fuzz(port, args.examples)
    finally:
        process.terminate()
        process.wait()
    medians = {name: statistics.median(values) for name, values in found.items()}
    size = f"{about.img_size} x {about.img_size} pixels, {args.path.stat().st_size / 1e6:.1f} MB"
    names = ("rate", "images", "p50", "p99", "ratio", "cpu")
    rows = [ROW.format(what=WORDS[kind], **{name: medians[f"{kind}_{name}"] for name in names}) for kind in KINDS]
    report = TABLE.format(
        rows="\n".join(rows),
        **provenance(command_line()),
        **medians,
        onnxruntime=onnxruntime.__version__,
        rounds=args.rounds,
        each=args.seconds,
        clients=CLIENTS,
        model=f"{about.run}, {about.in_words()}, {size}",
        empty_share=medians["png_rate"] / medians["empty_rate"],
        total=int(first["n"] + rest["n"]),
        errors=int(errors + first["errors"] + rest["errors"]),
        memory_before=before,
        memory_after=after,
        examples=args.examples,
        fuzzed=fuzzed,
        seconds=time.perf_counter() - started,
    )
    publish(report, args.out)


if __name__ == "__main__":
    main()
