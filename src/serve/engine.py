"""The queue of images to be drawn, and the threads that draw what waits in it many at a time."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from src.models.request import Request
from src.pictures.grid import to_uint8
from src.sampling.sampler import Sampler


class QueueFullError(Exception):
    """As many images wait as may wait."""


@dataclass(eq=False)
class Order:
    """What one request asks for.

    Attributes:
        request: the images to draw.
        finish: makes the answer from images uint8 [N, H, W, C].
        answer: what `finish` returned.
    """

    request: Request[np.ndarray]
    finish: Callable[[np.ndarray], bytes]
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
        self._sampler = sampler
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
        n = len(order.request)
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
                while self._waiting and (not taken or n + len(self._waiting[0].request) <= self._batch):
                    order = self._waiting.popleft()
                    if not order.answer.cancelled():  # nobody waits for it any more
                        taken.append(order)
                        n += len(order.request)
                if taken or self._closed:
                    return taken
                self._change.wait()

    def _draw(self, orders: list[Order]) -> list[bytes]:
        request = joined([order.request for order in orders])
        drawn = []
        for start in range(0, len(request), self._batch):
            if start and all(order.answer.cancelled() for order in orders):
                break
            drawn.append(to_uint8(self._sampler.run(request[start : start + self._batch])))
            self._sizes.observe(len(drawn[-1]))
            self._images.inc(len(drawn[-1]))
        images = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
        answers, start = [], 0
        for order in orders:
            answers.append(order.finish(images[start : start + len(order.request)]))
            start += len(order.request)
        return answers


def joined(requests: list[Request[np.ndarray]]) -> Request[np.ndarray]:
    """Several requests as one."""
    if any(request.others is not None for request in requests):  # the rest moves nowhere: towards its own classes
        still = [replace(each, others=each.condition, weight=np.zeros(len(each), np.float32)) for each in requests]
        requests = [a if a.others is not None else b for a, b in zip(requests, still, strict=True)]
    noise, condition, *between = ([getattr(each, field.name) for each in requests] for field in fields(Request))
    return Request(
        np.concatenate(noise),
        np.concatenate(condition),
        *(np.concatenate(each) for each in between if each[0] is not None),
    )


def deliver(orders: list[Order], answers: list[bytes | Exception]) -> None:
    """Hands out the answers to those who still wait; on the event loop's thread."""
    for order, answer in zip(orders, answers, strict=True):
        if order.answer.done():
            continue
        if isinstance(answer, Exception):
            order.answer.set_exception(answer)
        else:
            order.answer.set_result(answer)
