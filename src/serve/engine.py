"""Draws the requests that wait, several at once."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from src.models.request import Request
from src.pictures.grid import to_uint8
from src.sampling.sampler import Sampler


@dataclass(eq=False)
class Order:
    """A request in the queue, and the answer that `finish` makes of its images uint8 [N, H, W, C]."""

    request: Request[np.ndarray]
    finish: Callable[[np.ndarray], bytes]
    answer: asyncio.Future[bytes]


class Engine:
    """A queue of requests, and the threads that draw those at its head together.

    Args:
        sampler: its `run` is called by several threads.
        batch: images drawn at once; a larger request is drawn by itself, in parts.
        threads: batches drawn at the same time.
        limit: images that may be held: waiting, drawn or being sent.
        registry: where its metrics go.
    """

    def __init__(self, sampler: Sampler, batch: int, threads: int, limit: int, registry: CollectorRegistry) -> None:
        self.stopping = False  # from then on, no request should be accepted
        self.held = 0
        self.limit = limit
        self._sampler = sampler
        self._batch = batch
        self._waiting: deque[Order] = deque()
        self._lock = threading.Lock()
        self._idle = threads
        self._threads = ThreadPoolExecutor(threads, "draw")
        self._images = Counter("serve_images", "Images drawn", registry=registry)
        sizes = [2**i for i in range(12)]
        self._sizes = Histogram("serve_batch_images", "Images drawn at once", buckets=sizes, registry=registry)
        held = Gauge("serve_queue_images", "Images waiting, drawn, or on their way to the client", registry=registry)
        held.set_function(lambda: self.held)

    def hold(self, n: int) -> None:
        """Counts n more images as held; a negative n releases them."""
        self.held += n

    async def draw(self, request: Request[np.ndarray], finish: Callable[[np.ndarray], bytes]) -> bytes:
        """Queues a request; returns what `finish` makes of its images uint8 [N, H, W, C], in the thread that drew them.

        A request whose caller is cancelled is not drawn.
        """
        loop = asyncio.get_running_loop()
        order = Order(request, finish, loop.create_future())
        with self._lock:
            self._waiting.append(order)
            if len(self._waiting) == 1:
                # After the loop has read what else has arrived: larger batches take less time.
                loop.call_soon(self._wake)
        return await order.answer

    def close(self) -> None:
        """Ends the threads, once nobody waits any more."""
        self._threads.shutdown()

    def _wake(self) -> None:
        """Starts an idle thread if requests wait; a busy one takes them when it is done."""
        with self._lock:
            if self._waiting and self._idle:
                self._idle -= 1
                self._threads.submit(self._work)

    def _work(self) -> None:
        while orders := self._take():
            self._wake()  # for those that did not fit
            try:
                answers: list[bytes] | Exception = self._draw(orders)
            except Exception as error:  # the next orders may be drawn well
                answers = error
            # Waking the event loop is slow: once for all of a batch.
            orders[0].answer.get_loop().call_soon_threadsafe(deliver, orders, answers)

    def _take(self) -> list[Order]:
        """The orders at the head of the queue that fit into one batch, but at least one; none: the thread may end."""
        taken: list[Order] = []
        n = 0
        with self._lock:
            while self._waiting and (not taken or n + len(self._waiting[0].request) <= self._batch):
                order = self._waiting.popleft()
                if not order.answer.cancelled():
                    taken.append(order)
                    n += len(order.request)
            self._idle += not taken
        return taken

    def _draw(self, orders: list[Order]) -> list[bytes]:
        requests = [order.request for order in orders]
        read = self._sampler.about.condition  # labels and prompts that are drawn together are all prompts
        noise = np.concatenate([each.noise for each in requests])
        request = Request(noise, np.concatenate([read(each.condition) for each in requests]))
        if any(each.others is not None for each in requests):
            # Those without others move nowhere: towards their own classes.
            others = [read(each.condition if each.others is None else each.others) for each in requests]
            weight = [np.zeros(len(each), np.float32) if each.weight is None else each.weight for each in requests]
            request = replace(request, others=np.concatenate(others), weight=np.concatenate(weight))
        parts = []
        for start in range(0, len(request), self._batch):
            if all(order.answer.cancelled() for order in orders):
                return []
            parts.append(to_uint8(self._sampler.run(request[start : start + self._batch])))
            self._sizes.observe(len(parts[-1]))
            self._images.inc(len(parts[-1]))
        ends = np.cumsum([len(order.request) for order in orders])
        split = np.split(np.concatenate(parts), ends[:-1])
        return [order.finish(images) for order, images in zip(orders, split, strict=True)]


def deliver(orders: list[Order], answers: list[bytes] | Exception) -> None:
    """Hands out the answers, or the failure, to those who still wait; runs on the event loop."""
    for i, order in enumerate(orders):
        if order.answer.done():
            continue
        if isinstance(answers, Exception):
            order.answer.set_exception(answers)
        else:
            order.answer.set_result(answers[i])
