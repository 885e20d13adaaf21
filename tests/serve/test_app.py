"""The application without a server: what a client gets when drawing fails."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs pip install -r requirements-serve.txt")
pytest.importorskip("prometheus_client", reason="needs pip install -r requirements-serve.txt")
from src.serve.app import make_app
from src.serve.engine import Engine
from src.serve.limits import Guard
from tests.serve.test_engine import Waiting

pytestmark = pytest.mark.extras


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
