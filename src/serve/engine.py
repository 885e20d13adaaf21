"""The queue of images to be drawn, and the threads that draw what waits in it many at a time."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from src.sampling.sampler import Noise, Sampler, to_uint8


class QueueFullError(Exception):
    """As many images wait as may wait."""


@dataclass(eq=False)
class Order:
    """What one request asks for.

    Attributes:
        labels: int64 [N].
        seed: of the noise.
        truncation: what the noise is scaled by.
        finish: makes the answer of the images uint8 [N, H, W, C].
        others: int64 [N], classes to go to; None: nowhere.
        weight: how far, from 0 to 1.
        answer: what `finish` returned.
    """

    labels: np.ndarray
    seed: int
    truncation: float
    finish: Callable[[np.ndarray], bytes]
    others: np.ndarray | None = None
    weight: float = 0.0
    answer: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Engine:
    """Draws orders, those of several requests at once where they wait.

    All of it but the drawing itself happens on the event loop's thread.

    Args:
        sampler: must be safe to call from several threads.
        batch: images that are drawn at once; a larger order is drawn by itself, in parts.
        threads: how many batches are drawn at the same time.
        limit: images that may be held: waiting, drawn, or on their way to the client.
        registry: where its metrics go.
    """

    def __init__(self, sampler: Sampler, batch: int, threads: int, limit: int, registry: CollectorRegistry) -> None:
        self.held = 0
        self._drawer = sampler
        self._batch = batch
        self._limit = limit
        self._waiting: deque[Order] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"draw-{i}", daemon=True) for i in range(threads)]
        self._images = Counter("serve_images", "Images drawn", registry=registry)
        sizes = [2**i for i in range(12)]
        self._sizes = Histogram("serve_batch_images", "Images drawn at once", buckets=sizes, registry=registry)
        held = Gauge("serve_queue_images", "Images waiting, drawn, or on their way to the client", registry=registry)
        held.set_function(lambda: self.held)
        for thread in self._threads:
            thread.start()

    @property
    def works(self) -> bool:
        """Whether it draws what it is asked for."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, order: Order) -> None:
        """Puts an order into the queue; its images are held until `release`.

        Raises:
            QueueFullError: too much is held already.
        """
        n = len(order.labels)
        if self.held + n > self._limit:
            raise QueueFullError
        self.held += n
        with self._change:
            self._waiting.append(order)
            self._change.notify()

    def release(self, n: int) -> None:
        """`n` images have been sent, or are not wanted any more."""
        self.held -= n

    def close(self) -> None:
        """Ends the threads, after what is queued."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while orders := self._take():
            try:
                answers: list[bytes | Exception] = [*self._draw(orders)]
            except Exception as error:  # told to whoever waits; the next batch may be drawn well
                answers = [error] * len(orders)
            # One wake-up of the event loop for the whole batch.
            orders[0].answer.get_loop().call_soon_threadsafe(deliver, orders, answers)

    def _take(self) -> list[Order]:
        """The next orders; those that fit into one batch come together. None: the engine is closed."""
        with self._change:
            while True:
                taken: list[Order] = []
                n = 0
                while self._waiting and (not taken or n + len(self._waiting[0].labels) <= self._batch):
                    order = self._waiting.popleft()
                    if not order.answer.cancelled():  # nobody waits for it any more
                        taken.append(order)
                        n += len(order.labels)
                if taken or self._closed:
                    return taken
                self._change.wait()

    def _draw(self, orders: list[Order]) -> list[bytes]:
        shape = self._drawer.about.noise_shape
        labels = np.concatenate([order.labels for order in orders])
        noise = np.concatenate([Noise(shape, o.seed, o.truncation)(len(o.labels)) for o in orders])
        others = weight = None
        if any(order.others is not None for order in orders):  # the rest goes nowhere: to its own classes
            others = np.concatenate([order.labels if order.others is None else order.others for order in orders])
            weights = np.array([order.weight for order in orders], np.float32)
            weight = np.repeat(weights, [len(order.labels) for order in orders])
        drawn = []
        for start in range(0, len(labels), self._batch):
            if start and all(order.answer.cancelled() for order in orders):
                break
            part = slice(start, start + self._batch)
            between = () if others is None or weight is None else (others[part], weight[part])
            drawn.append(to_uint8(self._drawer.run(labels[part], noise[part], *between)))
            self._sizes.observe(len(drawn[-1]))
            self._images.inc(len(drawn[-1]))
        images = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
        answers, start = [], 0
        for order in orders:
            answers.append(order.finish(images[start : start + len(order.labels)]))
            start += len(order.labels)
        return answers


def deliver(orders: list[Order], answers: list[bytes | Exception]) -> None:
    """Hands out the answers to those who still wait; on the event loop's thread."""
    for order, answer in zip(orders, answers, strict=True):
        if order.answer.done():
            continue
        if isinstance(answer, Exception):
            order.answer.set_exception(answer)
        else:
            order.answer.set_result(answer)
