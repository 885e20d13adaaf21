"""The queue: requests that wait are drawn together, and each gets what it would have got alone."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="needs pip install -r requirements-serve.txt")
from src.models.request import Request
from src.pictures.grid import to_uint8
from src.sampling.sampler import About, Noise, Sampler
from src.serve.engine import Engine

pytestmark = pytest.mark.extras

ABOUT = About(10, tuple("0123456789"), 1, 2, (4,), "ema", "a run", "digits", "0123", "last.ckpt", "ab" * 32)


class Waiting(Sampler):
    """Draws its noise in the shade of the label, once it may; remembers how many images were asked for at a time."""

    about = ABOUT

    def __init__(self) -> None:
        self.may = threading.Event()
        self.begun = threading.Event()
        self.asked: list[int] = []

    def run(self, request: Request) -> np.ndarray:
        self.begun.set()
        self.asked.append(len(request))
        labels, others = request.condition, request.others
        assert self.may.wait(30)
        if (labels == 9).any():
            raise RuntimeError("no nines")
        shade = labels if others is None else labels + (others - labels) * request.weight
        return (request.noise.reshape(-1, 1, 2, 2) / 8 + shade[:, None, None, None] / 20).astype(np.float32)


def with_engine(scenario: Callable[[Engine, Waiting], Awaitable[None]]) -> Callable[[], None]:
    """Makes a test of a scenario: its engine has one thread, which draws at most 16 images at once."""

    async def play() -> None:
        from prometheus_client import CollectorRegistry

        sampler = Waiting()
        engine = Engine(sampler, 16, 1, 100, CollectorRegistry())
        try:
            await scenario(engine, sampler)
        finally:
            sampler.may.set()
            engine.close()

    return lambda: asyncio.run(play())


def asked(label: int, n: int, seed: int = 0, truncation: float = 1.0, other: int | None = None) -> Request:
    between = () if other is None else (np.full(n, other), np.full(n, 0.5, np.float32))
    return Request(Noise(ABOUT.noise_shape, seed, truncation)(n), np.full(n, label), *between)


async def queued(engine: Engine, request: Request) -> asyncio.Task[bytes]:
    """Puts a request into the queue; the task waits for its images."""
    task = asyncio.ensure_future(engine.draw(request, lambda images: images.tobytes()))
    await asyncio.sleep(0)
    return task


def alone(request: Request) -> bytes:
    """The images of a request that is drawn by itself."""
    sampler = Waiting()
    sampler.may.set()
    return to_uint8(sampler.run(request)).tobytes()


@with_engine
async def test_requests_that_wait_are_drawn_together_and_each_gets_its_own(engine: Engine, sampler: Waiting) -> None:
    requests = [asked(1, 3)]
    tasks = [await queued(engine, requests[0])]
    await asyncio.to_thread(sampler.begun.wait)
    requests += [asked(2, 5, seed=7), asked(3, 1, truncation=0.5), asked(4, 9, other=8), asked(5, 6), asked(6, 1)]
    tasks += [await queued(engine, request) for request in requests[1:]]
    sampler.may.set()
    assert await asyncio.gather(*tasks) == [alone(request) for request in requests]
    assert sampler.asked == [3, 15, 7]  # at most 16 at a time, and nobody overtakes


@with_engine
async def test_a_large_request_is_drawn_in_parts(engine: Engine, sampler: Waiting) -> None:
    sampler.may.set()
    assert await (await queued(engine, asked(1, 40))) == alone(asked(1, 40))
    assert sampler.asked == [16, 16, 8]


@with_engine
async def test_a_request_that_nobody_waits_for_is_not_drawn(engine: Engine, sampler: Waiting) -> None:
    _, given_up, last = [await queued(engine, asked(label, 16)) for label in (1, 2, 3)]
    given_up.cancel()
    await asyncio.sleep(0)
    sampler.may.set()
    await last
    assert sampler.asked == [16, 16]


@with_engine
async def test_a_failure_is_told_and_the_next_is_drawn(engine: Engine, sampler: Waiting) -> None:
    sampler.may.set()
    with pytest.raises(RuntimeError, match="no nines"):
        await (await queued(engine, asked(9, 1)))
    assert await (await queued(engine, asked(8, 1))) == alone(asked(8, 1))
