"""How often one client may ask, and what a client gets when drawing fails."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs pip install -r requirements-serve.txt")
pytest.importorskip("prometheus_client", reason="needs pip install -r requirements-serve.txt")
from src.serve.app import make_app
from src.serve.engine import Engine
from src.serve.limits import MAX_CLIENTS, Guard, RateLimit
from tests.serve.test_engine import Waiting

pytestmark = pytest.mark.extras


def test_a_pause_saves_up_twice_the_rate_and_no_more() -> None:
    limit = RateLimit(5)
    for now in (0.0, 1000.0):
        waits = [limit.wait("10.0.0.1", now) for _ in range(12)]
        assert waits[:10] == [0.0] * 10 and waits[10:] == [pytest.approx(0.2)] * 2
    assert limit.wait("10.0.0.1", 1000.21) == 0 and limit.wait("10.0.0.1", 1000.21) > 0
    slow = RateLimit(0.1)
    assert [slow.wait("a", now) for now in (0.0, 1.0, 10.1)] == [0, pytest.approx(9.0), 0]


def test_clients_do_not_pay_for_each_other_unless_they_are_one() -> None:
    limit = RateLimit(0.5)
    assert limit.wait("10.0.0.1", 0.0) == 0 and limit.wait("10.0.0.2", 0.0) == 0
    # Whoever has one address of an IPv6 network has them all.
    assert limit.wait("2001:db8::1", 0.0) == 0 and limit.wait("2001:db8::2", 0.0) > 0
    assert limit.wait("2001:db8:0:1::1", 0.0) == 0


def test_no_more_clients_are_remembered_than_fit() -> None:
    limit = RateLimit(1)
    for i in range(MAX_CLIENTS + 100):
        limit.wait(str(i), 0.0)
    assert len(limit._clients) == MAX_CLIENTS


def test_a_failure_is_a_sentence_for_the_client_and_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    from prometheus_client import CollectorRegistry

    sampler, registry, sent = Waiting(), CollectorRegistry(), []
    sampler.may.set()
    engine = Engine(sampler, 16, 1, 100, registry)
    guard = Guard(make_app(sampler, engine, 100, registry, None), engine, None, 1000, 30, registry)
    path, headers = "/generate", [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"labels": 9, "n": 1}'}  # which it cannot draw

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    engine.close()
    assert sent[0]["status"] == 500 and engine.held == 0
    assert json.loads(sent[1]["body"])["error"].startswith("the service failed, and its log says why")
    assert "no nines" in caplog.text
