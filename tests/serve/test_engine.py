"""The queue: orders that wait are drawn together, and each gets what it would have got alone."""

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="needs pip install -r requirements-serve.txt")
from src.models.request import Request
from src.pictures.grid import to_uint8
from src.sampling.sampler import About, Noise, Sampler
from src.serve.engine import Engine, Order, QueueFullError

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


@pytest.fixture
def sampler() -> Iterator[Waiting]:
    sampler = Waiting()
    yield sampler
    sampler.may.set()


def engine_of(sampler: Sampler, batch: int = 16, limit: int = 100) -> Engine:
    from prometheus_client import CollectorRegistry

    return Engine(sampler, batch, 1, limit, CollectorRegistry())


def order(label: int, n: int, seed: int = 0, truncation: float = 1.0, other: int | None = None) -> Order:
    between = () if other is None else (np.full(n, other), np.full(n, 0.5, np.float32))
    noise = Noise(ABOUT.noise_shape, seed, truncation)(n)
    return Order(Request(noise, np.full(n, label), *between), lambda images: images.tobytes())


def alone(each: Order) -> bytes:
    """What an order gets that is drawn by itself."""
    sampler = Waiting()
    sampler.may.set()
    return to_uint8(sampler.run(each.request)).tobytes()


def test_what_waits_is_drawn_together_and_each_gets_its_own(sampler: Waiting) -> None:
    async def scenario() -> None:
        engine = engine_of(sampler)
        first = order(1, 3)
        engine.submit(first)
        await asyncio.to_thread(sampler.begun.wait)
        rest = [order(2, 5, seed=7), order(3, 1, truncation=0.5), order(4, 9, other=8), order(5, 6), order(6, 1)]
        for each in rest:
            engine.submit(each)
        sampler.may.set()
        for each in (first, *rest):
            assert await each.answer == alone(each)
        assert sampler.asked == [3, 15, 7]  # at most 16 at a time, and nobody overtakes
        engine.close()

    asyncio.run(scenario())


def test_a_large_order_is_drawn_in_parts(sampler: Waiting) -> None:
    async def scenario() -> None:
        engine = engine_of(sampler)
        large = order(1, 40)
        engine.submit(large)
        sampler.may.set()
        assert await large.answer == alone(large)
        assert sampler.asked == [16, 16, 8]
        engine.close()

    asyncio.run(scenario())


def test_no_more_is_held_than_may_be(sampler: Waiting) -> None:
    async def scenario() -> None:
        engine = engine_of(sampler, limit=10)
        engine.submit(order(1, 6))
        with pytest.raises(QueueFullError):
            engine.submit(order(1, 5))
        fits = order(1, 4)
        engine.submit(fits)
        sampler.may.set()
        await fits.answer
        with pytest.raises(QueueFullError):  # drawn, but not yet sent
            engine.submit(order(1, 1))
        engine.release(4)
        engine.submit(order(1, 4))
        engine.close()

    asyncio.run(scenario())


def test_what_nobody_waits_for_is_not_drawn(sampler: Waiting) -> None:
    async def scenario() -> None:
        engine = engine_of(sampler)
        first, given_up, last = order(1, 16), order(2, 16), order(3, 16)
        for each in (first, given_up, last):
            engine.submit(each)
        given_up.answer.cancel()
        sampler.may.set()
        await last.answer
        assert sampler.asked == [16, 16]
        engine.close()

    asyncio.run(scenario())


def test_a_failure_is_told_and_the_next_is_drawn(sampler: Waiting) -> None:
    async def scenario() -> None:
        engine = engine_of(sampler)
        sampler.may.set()
        bad = order(9, 1)
        engine.submit(bad)
        with pytest.raises(RuntimeError, match="no nines"):
            await bad.answer
        good = order(8, 1)
        engine.submit(good)
        assert await good.answer == alone(good)
        assert engine.works
        engine.close()
        assert not engine.works

    asyncio.run(scenario())
