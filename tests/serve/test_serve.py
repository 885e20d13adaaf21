"""The service as its users meet it: a real process, asked over the network, clicked in a browser, stopped, attacked."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from src.errors import UserError
from src.export.to_onnx import REQUIRED, export_generator
from src.models.request import Request
from src.pictures.grid import grid
from src.sampling.sampler import Noise
from src.serve.command import check_origins
from tests.conftest import ROOT
from tests.forked import run_forked

NEEDED = (*REQUIRED, "fastapi", "uvicorn", "prometheus_client")
SITE = "https://example.com"  # whose pages may ask
pytestmark = pytest.mark.extras(*NEEDED)


# A running service ----------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A process of `python run.py task=serve`, its port, and what it had printed when it was ready."""

    process: subprocess.Popen[str]
    port: int
    said: str

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, (bytes, Iterator)) else json.dumps(body).encode()
        kind = {"content-type": "application/json"} if body is not None else {}
        connection.request(method or ("GET" if body is None else "POST"), path, content, kind | (headers or {}))
        response = connection.getresponse()
        found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        connection.close()
        return found

    def refusal(self, *args: Any, **kwargs: Any) -> tuple[int, str]:
        """Status and sentence of a refusal."""
        status, _, content = self.ask(*args, **kwargs)
        said = json.loads(content)
        assert said.keys() == {"error"} and "\n" not in said["error"] and len(said["error"]) < 300
        return status, said["error"]

    def metric(self, name: str) -> float:
        """A metric without labels."""
        return float(re.search(rf"^{name} (\S+)$", self.ask("/metrics")[2].decode(), re.MULTILINE)[1])

    def stop(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        self.process.send_signal(signum)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, self.said + rest


@contextlib.contextmanager
def serving(folder: Path, *overrides: str, **environment: str) -> Iterator[Service]:
    """`python run.py task=serve ...` on a free port, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "task=serve", "port=0", *overrides],
        cwd=folder,
        env=os.environ | {"SERVE_API_KEY": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        said = ""
        while not said.endswith("Ctrl-C\n"):
            line = process.stdout.readline()
            assert line, f"it ended: {said}"
            said += line
        port = int(re.search(r"page\s+http://[^\s]+:(\d+)/", said)[1])
        service = Service(process, port, said)
        wait_for(lambda: answers(service))
        yield service
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def answers(service: Service) -> bool:
    try:
        return service.ask("/ready")[0] == 200
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, which may take long where the machine is busy."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to hold within 30 s")


# What lets one client ask for 30,000 images.
LARGE = ("max_images=30000", "queue=30000")


@contextlib.contextmanager
def slow_reader(service: Service) -> Iterator[socket.socket]:
    """A client that asks for 30,000 images, which is more than fits between it and the service, and reads nothing."""
    body = json.dumps({"labels": 5, "n": 30000, "format": "npz"})
    head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as reader:
        reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: service.metric("serve_queue_images") == 30000)
        yield reader


@pytest.fixture(scope="session")
def generator(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported; its data set has a name that a page must not take for HTML."""
    from src.sampling.checkpoint_sampler import CheckpointSampler

    sampler = CheckpointSampler(checkpoint)
    path = tmp_path_factory.mktemp("served") / "generator.onnx"
    about = replace(sampler.about, data="<b>digits</b>")
    export_generator(sampler.model, path, about)
    return path


@pytest.fixture(scope="module")
def service(generator: Path) -> Iterator[Service]:
    with serving(generator.parent, f"ckpt_path={generator}", f"origins=[{SITE},http://localhost:3000]") as service:
        yield service
        code, said = service.stop()
        assert code == 0 and "Traceback" not in said  # whatever clients did


def expected(generator: Path, labels: list[int], seed: int = 0, truncation: float = 1.0, **between: Any) -> np.ndarray:
    """What the file draws from a seed, as task=sample has it."""
    from src.sampling.onnx_sampler import OnnxSampler

    sampler = OnnxSampler(generator)
    noise = Noise(sampler.about.noise_shape, seed, truncation)(len(labels))
    return sampler.draw(Request(noise, np.array(labels), **between))


def arrays(content: bytes) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(content)))


# What it draws --------------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_images_of_task_sample(service: Service, generator: Path) -> None:
    asked = {"labels": [5, 3], "n": 40, "seed": 7, "truncation": 0.6, "format": "npz"}
    status, headers, content = service.ask("/generate", asked)
    assert status == 200 and headers["content-disposition"] == 'attachment; filename="samples.npz"'
    found = arrays(content)
    assert found["labels"].tolist() == [5] * 40 + [3] * 40
    assert np.array_equal(found["images"], expected(generator, [5] * 40 + [3] * 40, 7, 0.6))


def test_every_class_is_drawn_by_default_as_one_picture(service: Service, generator: Path) -> None:
    status, headers, content = service.ask("/generate", {"n": 2})
    assert status == 200 and headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(picture, grid(expected(generator, np.repeat(np.arange(10), 2).tolist()), 2))
    assert service.ask("/generate", {"n": 2, "format": "zip"})[1]["content-type"] == "application/zip"


def test_between_classes(service: Service, generator: Path) -> None:
    asked = {"labels": [1, 2], "n": 3, "others": [8, 9], "weight": 0.25, "format": "npz"}
    found = arrays(service.ask("/generate", asked)[2])["images"]
    others, weight = np.repeat([8, 9], 3), np.full(6, 0.25, np.float32)
    assert np.array_equal(found, expected(generator, [1, 1, 1, 2, 2, 2], others=others, weight=weight))
    there = arrays(service.ask("/generate", asked | {"others": 8, "weight": 1})[2])["images"]
    eights = arrays(service.ask("/generate", {"labels": 8, "n": 6, "format": "npz"})[2])["images"]
    assert np.abs(there.astype(int) - eights).max() <= 1


def test_many_clients_get_what_each_of_them_would_get_alone(service: Service, generator: Path) -> None:
    """Requests of several are drawn together, and no byte shows it."""
    found: dict[int, bytes] = {}
    before = service.metric("serve_batch_images_count")

    def ask(client: int) -> None:
        for seed in range(client * 25, client * 25 + 25):
            asked = {"labels": [seed % 10], "n": 1 + seed % 3, "seed": seed, "format": "npz"}
            found[seed] = service.ask("/generate", asked)[2]

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(16)))
    assert len(found) == 400
    for seed, content in found.items():
        assert np.array_equal(arrays(content)["images"], expected(generator, [seed % 10] * (1 + seed % 3), seed))
    assert service.metric("serve_batch_images_count") - before <= 400
    assert service.metric("serve_queue_images") == 0


# Classes by name ------------------------------------------------------------------------------------------------------

NAMES = [*(str(i) for i in range(1, 6)), "Größe/ä b", "it's a T-shirt", "nul", "Dog", "dog"]


@pytest.fixture(scope="module")
def named(generator: Path) -> Iterator[Service]:
    """Serves the same generator, whose classes have names; some are other classes' numbers."""
    path = generator.with_name("named.onnx")
    lie(generator, path, class_names=json.dumps(NAMES))
    with serving(generator.parent, f"ckpt_path={path}") as service:
        yield service


def test_classes_go_by_name(named: Service, generator: Path) -> None:
    asked = ["1", 9, normalize("NFD", "Größe/ä b"), "#1", "dog"]
    found = arrays(named.ask("/generate", {"labels": asked, "n": 1, "format": "npz"})[2])
    assert found["labels"].tolist() == [0, 9, 5, 1, 9] and found["class_names"].tolist() == NAMES
    assert np.array_equal(found["images"], expected(generator, [0, 9, 5, 1, 9]))
    way = {"labels": "Dog", "others": ["nul"], "weight": 1, "n": 1, "format": "npz"}
    there = expected(generator, [8], others=np.array([7]), weight=np.ones(1, np.float32))
    assert np.array_equal(arrays(named.ask("/generate", way)[2])["images"], there)
    assert json.loads(named.ask("/about")[2])["class_names"] == NAMES
    assert json.dumps("Größe/ä b", ensure_ascii=False) in named.ask("/openapi.json")[2].decode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"labels": 1}, "labels: 1 could mean several classes: use #0 for the class named '1' or #1"),
        ({"labels": ["dog", 5]}, "labels: 5 could mean several classes: use #4 for the class named"),
        ({"labels": "dog", "others": [2]}, "others: 2 could mean several classes"),
        ({"labels": "t-shirt"}, "labels: there is no class 't-shirt': use a name such as \"it's a T-shirt\", or its"),
        ({"labels": 10}, "labels: there is no class 10: use a name such as"),
    ],
)
def test_a_number_that_could_be_two_classes_is_asked_about(named: Service, body: Any, sentence: str) -> None:
    status, said = named.refusal("/generate", body)
    assert status == 422 and said.startswith(sentence)


@pytest.mark.extras("curl")
def test_the_page_and_the_printed_commands_ask_by_name(
    browser: Any, named: Service, generator: Path, tmp_path: Path
) -> None:
    with opened(browser, named) as page:
        page.get_by_role("radio", name="2", exact=True).check()
        shown(page, "Sixteen times 2: seed 0, truncation 1")
        page.get_by_role("radio", name="it's a T-shirt", exact=True).check()
        page.get_by_label("The other class", exact=True).select_option(index=1)
        page.locator("#weight").fill("30")
        found = shown(page, "Sixteen times it's a T-shirt, 30 % of the way to 2: seed 0, truncation 1")
        way = {"others": np.ones(16, np.int64), "weight": np.full(16, 0.3, np.float32)}
        assert np.array_equal(found, expected(generator, [6] * 16, **way)[..., 0])
        page.get_by_text("The same from a terminal").click()
        command = page.locator("#command").inner_text()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save picture").click()
        assert saved.value.suggested_filename == "it-s-a-T-shirt-seed0.png"
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "images.png").read_bytes() == saved.value.path().read_bytes()
    command = re.search(r"^ask +(curl .*)$", named.said, re.MULTILINE)[1]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert Image.open(tmp_path / "images.png").text == {"classes": '["dog"]'}


# What it says ---------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(service: Service, checkpoint: Path) -> None:
    about = json.loads(service.ask("/about")[2])
    assert about["run"] == "trained" and about["checkpoint"] == checkpoint.name and about["n_classes"] == 10
    assert re.fullmatch(r"[0-9a-f]{64}", about["checkpoint_sha256"]) and about["can_interpolate"] is True
    assert json.loads(service.ask("/health")[2]) == {"status": "alive"}
    assert json.loads(service.ask("/ready")[2]) == {"status": "ready"}


def test_metrics_count(service: Service) -> None:
    def count() -> float:
        return service.metric(r'serve_requests_total\{method="POST",path="/generate",status="200"\}')

    service.ask("/generate", {"n": 3})
    before, images = count(), service.metric("serve_images_total")
    service.ask("/generate", {"n": 3})
    assert count() == before + 1 and service.metric("serve_images_total") == images + 30
    for i in range(20):  # what clients make up makes no new time series
        service.ask(f"/nowhere-{i}", method=f"VERB{i}" if i % 2 else "GET")
    text = service.ask("/metrics")[2].decode()
    assert "nowhere" not in text and "VERB" not in text and 'path="other"' in text


def test_it_describes_itself(service: Service) -> None:
    described = json.loads(service.ask("/openapi.json")[2])
    assert described["paths"].keys() == {"/generate", "/about", "/health", "/ready", "/metrics"}
    asked = described["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert asked["properties"].keys() == {"labels", "n", "seed", "truncation", "others", "weight", "format"}
    assert service.ask("/docs")[0] == 404  # it would be loaded from elsewhere


REFUSED = [
    ({"labels": [10]}, 422, "labels: there is no class 10: use a number from 0 to 9"),
    ({"labels": "five"}, 422, "labels: there is no class 'five': use a number from 0 to 9"),
    ({"labels": 5, "others": ["#10"]}, 422, "others: there is no class '#10': use a number from 0 to 9"),
    ({"labels": [True]}, 422, "labels must be a class, by its name or its number from 0 to 9, or a list of them; null"),
    ({"labels": []}, 422, "labels must be a class"),
    ({"labels": [5.5]}, 422, "labels must be a class"),
    ({"n": 0}, 422, "n must be a number of images for each label, from 1 to 1024, not 0"),
    ({"labels": [1] * 2000, "n": 1}, 413, "2000 labels of 1 images are 2000, and one request may ask for 1024"),
    ({"n": None}, 422, "n must be a number of images for each label, from 1 to 1024, not null"),
    ({"n": 1000}, 413, "10 labels of 1000 images are 10000, and one request may ask for 1024"),
    ({"seed": -1}, 422, "seed must be a whole number"),
    ({"seed": 2**63}, 422, "seed must be a whole number"),
    ({"truncation": 1.5}, 422, "truncation must be a number from 0"),
    (b'{"truncation": NaN}', 422, "truncation must be a number from 0"),
    ({"format": "gif"}, 422, "format must be png (one picture, a row a label), zip (a PNG an image) or npz (arrays)"),
    ({"weight": 0.5}, 422, "weight must be left out without others"),
    ({"labels": [1, 2, 3], "others": [4, 5]}, 422, "others must be one class, or as many as labels: 3, not 2"),
    ({"label": 5}, 422, "there is no field 'label': the fields are labels, n, seed"),
    ([5], 422, 'the body must be an object such as {"n": 4}'),
    (b"", 400, "the body is not JSON"),
    (b'{"labels": [5}', 400, "the body is not JSON"),
    (b'{"labels": "\xff"}', 400, "the body is not JSON"),
    (b"[" * 60_000, 400, "the body is not JSON"),
    (b'{"seed": ' + b"9" * 10_000 + b"}", 400, "the body is not JSON"),
    (b" " * 70_000, 413, "the body has more than 66560 bytes"),
    (b" " * 1_000_000, 413, "the body has more than 66560 bytes"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_meant_is_refused_with_a_sentence(
    service: Service, body: Any, status: int, sentence: str
) -> None:
    said = service.refusal("/generate", body)
    assert said[0] == status and sentence in said[1]


def test_other_requests_are_refused_with_a_sentence(service: Service) -> None:
    assert service.refusal("/nowhere") == (404, "there is no '/nowhere': see /openapi.json")
    status, said = service.refusal("/generate", b"{}", {"content-type": "text/plain"})
    assert status == 415 and "send Content-Type: application/json" in said


FILES = ["/", "/page.css", "/page.js", "/icon.svg"]


@pytest.mark.parametrize(
    "path", [*FILES, "/about", "/health", "/ready", "/metrics", "/openapi.json", "/generate", "/nowhere"]
)
def test_head_is_get_without_a_body(service: Service, path: str) -> None:
    status, headers, content = service.ask(path)
    head, same, _ = service.ask(path, method="HEAD")
    for name in ("date", *["content-length"] * (path == "/metrics")):  # which count this request, too
        assert headers.pop(name) and same.pop(name)
    assert (head, same) == (status, headers) and content
    answer = raw(service, f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1


def test_methods(service: Service) -> None:
    for path in ("/generate", "/about", "/"):
        allowed = "OPTIONS, POST" if path == "/generate" else "GET, HEAD, OPTIONS"
        status, headers, content = service.ask(path, method="OPTIONS")
        assert (status, headers["allow"], content) == (204, allowed, b"")
        status, headers, content = service.ask(path, method="DELETE")
        assert status == 405 and headers["allow"] == allowed
        assert json.loads(content)["error"] == f"{path} takes {allowed}, not DELETE: see /openapi.json"
    assert service.ask("/nowhere", method="OPTIONS")[0] == 404


# Pages of other sites -------------------------------------------------------------------------------------------------


def preflight(service: Service, origin: str, method: str = "POST", headers: str = "authorization,content-type") -> Any:
    """What a browser asks before a request of a page."""
    wanted = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": headers}
    return service.ask("/generate", headers=wanted, method="OPTIONS")


def test_a_browser_may_ask_for_a_page_of_a_named_site(service: Service) -> None:
    status, headers, _ = preflight(service, SITE)
    assert status == 200 and headers["access-control-allow-origin"] == SITE
    assert "POST" in headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(headers["access-control-allow-headers"].lower().split(", "))
    status, headers, _ = service.ask("/generate", {"n": 1, "format": "npz"}, {"origin": "http://localhost:3000"})
    assert status == 200 and headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "content-disposition" in headers["access-control-expose-headers"].lower()
    assert "origin" in headers["vary"].lower()
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/generate", {"n": 1000}, 413), ("/generate", {"n": 0}, 422), ("/generate", b"{", 400), ("/a", None, 404)],
)
def test_such_a_page_can_read_why_it_is_refused(service: Service, path: str, body: Any, status: int) -> None:
    found, headers, content = service.ask(path, body, {"origin": SITE})
    assert found == status and headers["access-control-allow-origin"] == SITE and json.loads(content)["error"]


def test_pages_of_other_sites_are_not_let_in(service: Service) -> None:
    near = ["http://example.com", "https://example.com:8443", "https://a.example.com"]
    for other in ("https://example.org", "null", *near):
        status, headers, content = preflight(service, other)
        assert status == 400 and f"pages of {other} may not ask" in json.loads(content)["error"]
        assert "access-control-allow-origin" not in headers
        assert "access-control-allow-origin" not in service.ask("/about", headers={"origin": other})[1]
    for asked in ({"method": "DELETE"}, {"headers": "x-other"}):
        status, _, content = preflight(service, SITE, **asked)
        assert status == 400 and "a page may send GET, HEAD, POST with Authorization" in json.loads(content)["error"]


# What it bears --------------------------------------------------------------------------------------------------------


def raw(service: Service, *parts: bytes) -> bytes:
    """What comes back for bytes that no client would send, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(65536):
                received += data
        return received


def test_garbage_is_answered_and_the_service_goes_on(service: Service) -> None:
    post = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 400 " in raw(service, b"\x00\xff\x16\x03\x01" * 100).splitlines()[0]
    assert b" 400 " in raw(service, b"GET /%%% \xff HTTP/9.9\r\n\r\n").splitlines()[0]
    assert service.refusal("/generate", iter([b" " * 0x8000] * 4))[0] == 413  # in chunks, whose number nobody says
    promised = post + b"Content-Length: 99999999999999999\r\nConnection: close\r\n\r\n"
    assert b" 413 " in raw(service, promised).splitlines()[0]
    endless = raw(service, b"GET / HTTP/1.1\r\nX: ", *[b"x" * 65536] * 4)
    assert not endless or b" 400 " in endless.splitlines()[0]  # what was still sent may have reset the connection
    both = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    assert b" 400 " in raw(service, post + both).splitlines()[0]
    assert service.ask("/ready")[0] == 200


def test_a_request_that_does_not_arrive_is_given_up(generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}", "timeout=0.5") as service:
        begun = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
        answer = raw(service, begun)
        assert b" 408 " in answer.splitlines()[0] and b"did not arrive within 0.5 s" in answer
        assert raw(service, b"GET / HT") == raw(service) == b""  # closed, as nothing more comes


def test_the_queue_is_bounded_and_slow_readers_do_not_hold_it_for_ever(generator: Path) -> None:
    """A client that asks for much and reads nothing: others are told to come later, and then are served."""
    with serving(generator.parent, f"ckpt_path={generator}", *LARGE, "timeout=6") as service:
        with slow_reader(service):
            status, headers, content = service.ask("/generate", {"n": 1})
            assert status == 503 and int(headers["retry-after"]) >= 1
            assert "too many images wait already" in json.loads(content)["error"]
            wait_for(lambda: service.metric("serve_queue_images") == 0)
        assert service.ask("/generate", {"n": 1})[0] == 200


def test_what_takes_too_long_is_given_up(generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}", "max_images=8000", "timeout=0.05") as service:
        status, said = service.refusal("/generate", {"n": 800, "format": "zip"})
        assert status == 504 and "could not be drawn and sent within 0.05 s" in said
        wait_for(lambda: service.metric("serve_queue_images") == 0)
        wait_for(lambda: service.ask("/generate", {"labels": 5, "n": 1})[0] == 200)


def test_who_asks_too_often_waits(generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}", "rate=0.5", "origins=[*]") as service:
        assert [preflight(service, SITE)[0] for _ in range(5)] == [200] * 5  # free, as browsers ask before each request
        assert service.ask("/about")[0] == 200
        status, headers, content = service.ask("/generate", {"n": 1})
        assert status == 429 and headers["retry-after"] == "2"
        assert json.loads(content)["error"] == "too many requests: ask again in 2 s"
        # Nobody else's word is taken for who they are.
        status, headers, _ = service.ask("/about", headers={"x-forwarded-for": "10.1.2.3", "origin": SITE})
        assert status == 429 and headers["access-control-allow-origin"] == "*"
        assert [service.ask("/ready")[0] for _ in range(5)] == [200] * 5  # probes are free


def test_a_key(generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}", f"origins=[{SITE}]", SERVE_API_KEY="s3cret") as service:
        assert "s3cret" not in service.said
        for shown in ("", "Bearer wrong", "s3cret", "Bearer \xe9"):
            for path, body in (("/generate", {"n": 1}), ("/about", None), ("/metrics", None)):
                status, said = service.refusal(path, body, {"authorization": shown} if shown else {})
                assert status == 401 and "Authorization: Bearer KEY" in said
        assert service.ask("/about", headers={"origin": SITE})[1]["access-control-allow-origin"] == SITE
        assert preflight(service, SITE)[0] == 200 and service.ask("/generate", method="OPTIONS")[0] == 204
        right = {"authorization": "Bearer s3cret"}
        assert service.ask("/generate", {"n": 1}, right)[0] == 200 and service.ask("/metrics", None, right)[0] == 200
        assert [service.ask(path)[0] for path in ("/", "/health", "/ready", "/openapi.json")] == [200] * 4
        described = json.loads(service.ask("/openapi.json")[2])
        assert described["paths"]["/generate"]["post"]["security"] == [{"key": []}]


@pytest.mark.extras("schemathesis")
def test_made_up_requests_and_not_one_500(service: Service, tmp_path: Path) -> None:
    def answered() -> Counter[int]:
        """How many requests were answered with each status."""
        counts: Counter[int] = Counter()
        text = service.ask("/metrics")[2].decode()
        for status, n in re.findall(r'^serve_requests_total\{.*status="(\d+)"\} (\S+)$', text, re.M):
            counts[int(status)] += int(float(n))
        return counts

    before = answered()  # benchmarks/serving.py makes up thousands
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{service.port}/openapi.json"]
    command += ["--mode=all", "--max-examples=300", "--seed=1", "--checks=not_a_server_error", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = answered() - before
    refused = sum(n for status, n in made.items() if 400 <= status < 500)
    assert refused >= 200 and not [status for status in made if status >= 500], made


# How it starts and stops ----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_served_too(checkpoint: Path, tmp_path: Path) -> None:
    """Through the same runtime, and without torch in memory."""
    work = checkpoint.parents[5]
    with serving(tmp_path, "ckpt_path=last", f"work_dir={work}") as service:
        about = json.loads(service.ask("/about")[2])
        assert about["run"] == "trained" and about["data"] == "digits"
        images = arrays(service.ask("/generate", {"labels": [5], "n": 8, "format": "npz"})[2])["images"]
        assert images.shape == (8, 32, 32, 1) and images.std() > 20
        loaded = Path(f"/proc/{service.process.pid}/maps").read_text(encoding="utf-8")
        assert "onnxruntime" in loaded and "libtorch" not in loaded
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_what_was_accepted_is_answered_before_the_end(generator: Path, signum: int) -> None:
    """Stopped under load: whoever is not refused gets all of an answer, and the exit code is 0."""
    outcomes: list[str] = []
    with serving(generator.parent, f"ckpt_path={generator}") as service:
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    status, headers, content = service.ask("/generate", {"labels": 5, "n": 200, "format": "npz"})
                except ConnectionRefusedError:
                    return outcomes.append("refused")
                except ConnectionError:  # connected, but not yet accepted when the socket was closed
                    return outcomes.append("reset")
                except http.client.HTTPException as error:
                    outcomes.append("closed" if isinstance(error, http.client.RemoteDisconnected) else repr(error))
                    return
                if status == 200:
                    assert len(arrays(content)["images"]) == 200
                    outcomes.append("whole")
                else:
                    assert status == 503 and headers["connection"] == "close" and "stopping" in content.decode()
                    outcomes.append("told")

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: outcomes.count("whole") > 20)
        code, said = service.stop(signum)
        stop.set()
        for thread in threads:
            thread.join()
    assert code == 0
    assert re.search(rf"stopped by {signal.Signals(signum).name}: all [\d,]+ requests were answered", said)
    assert set(outcomes) <= {"whole", "told", "refused", "reset", "closed"}
    assert "Traceback" not in said


def test_whom_it_waits_for_too_long_is_cut_off(generator: Path) -> None:
    limits = [*LARGE, "timeout=60", "grace=0.2"]
    with serving(generator.parent, f"ckpt_path={generator}", *limits) as service, slow_reader(service):
        code, said = service.stop()
    assert code == 1 and "1 request was cut off after grace=0.2 s" in said


def test_it_is_not_ready_while_it_stops(generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}", *LARGE, "timeout=60") as service:
        with slow_reader(service) as reader:
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: service.ask("/ready")[0] == 503)
            assert service.ask("/health")[0] == 200
            received = b""
            while data := reader.recv(1 << 20):  # now it reads, and gets all that it asked for
                received += data
        service.process.communicate(timeout=60)
    found = arrays(received.partition(b"\r\n\r\n")[2])
    assert len(found["images"]) == 30000 and service.process.returncode == 0


MISTAKES = [
    (["port=70000"], "port must be a number from 1 to 65535"),
    (["port=http"], "port must be a number from 1 to 65535"),
    (["host=no.such.host.invalid"], "host=no.such.host.invalid is not an address: type host=127.0.0.1"),
    (["host=203.0.113.7"], "host=203.0.113.7 is not this machine's"),
    (["queue=10"], "queue=10 is less than one request may have"),
    (["batch=0"], "batch must be a whole number of at least 1, not 0"),
    (["timeout=soon"], "timeout must be a number above 0, not 'soon'"),
    (["rate=-1"], "rate must be a number above 0 or null, not -1"),
    (["proxies=10.0.0.1"], "proxies must be a list of addresses such as proxies=[10.0.0.1]"),
    (["origins=https://example.com"], "origins must be a list of sites such as origins=[https://example.com,"),
    (["origins=[https://Example.com:443/]"], "which browsers call https://example.com: type origins=["),
    (["prot=80"], "there is no key prot: did you mean port?"),
    (["weights=best"], "weights must be ema or raw, not 'best'"),
    (["weights=raw"], "export the checkpoint with task=export weights=raw"),
    (["port=TAKEN"], "is taken by another program: type another"),
]


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES, ids=[" ".join(typed) for typed, _ in MISTAKES])
def test_a_mistake_costs_one_sentence(
    service: Service, generator: Path, tmp_path: Path, typed: list[str], sentence: str
) -> None:
    typed = [each.replace("TAKEN", str(service.port)) for each in typed]
    done = run_forked("task=serve", "port=0", f"ckpt_path={generator}", *typed, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1


SENT = {
    "https://example.com/": "https://example.com",
    "HTTP://LocalHost:80": "http://localhost",
    "https://example.com/app?x#y": "https://example.com",
    "http://[::1]:3000/": "http://[::1]:3000",
    "https://münchen.de": "https://xn--mnchen-3ya.de",
}
NO_SITES = ["example.com", "localhost:3000", "https://*.example.com", "https://", "https://me:secret@example.com"]
NO_SITES += ["http://a:99999", "http://a b", "null", "*"]


@pytest.mark.parametrize("origin", [*SENT, *NO_SITES])
def test_a_site_that_no_browser_sends_is_refused(origin: str) -> None:
    remedy = f"type origins=[{SENT[origin]}]" if origin in SENT else "which is not a site such as https://example.com"
    with pytest.raises(UserError, match=re.escape(remedy)):
        check_origins(["https://good.example", origin])
    check_origins([SENT.get(origin, SITE)])


def test_a_key_that_nobody_can_send(generator: Path, tmp_path: Path) -> None:
    done = run_forked("task=serve", "port=0", f"ckpt_path={generator}", cwd=tmp_path, SERVE_API_KEY="two words")
    assert done.returncode == 2 and "SERVE_API_KEY must be letters, digits and signs" in done.stderr
    assert "two words" not in done.stderr


def test_a_file_that_is_cut_short_or_lies(generator: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(generator.read_bytes()[:5000])
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    lie(generator, tmp_path / "size.onnx", img_size="100000")
    lie(generator, tmp_path / "images.onnx", img_size="64")
    for name, said in [
        ("cut.onnx", "is damaged or not an ONNX file"),
        ("cut.ckpt", "choose another one"),
        ("size.onnx", "claims images of (1, 100000, 100000), which cannot be served"),
        ("images.onnx", "does not draw the images that it claims"),
    ]:
        done = run_forked("task=serve", "port=0", f"ckpt_path={name}", cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def lie(path: Path, other: Path, **metadata: str) -> None:
    """A copy of an exported file that says something else of itself."""
    import onnx

    model = onnx.load(str(path))
    for each in model.metadata_props:
        each.value = metadata.get(each.key, each.value)
    onnx.save(model, str(other))


# The page -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(browser: Any, service: Service, width: int = 1280, **options: Any) -> Iterator[Any]:
    """The page; at the end, nothing has gone wrong in it and nobody else was asked for anything."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.problems = problems
    page.goto(f"http://127.0.0.1:{service.port}/")
    yield page
    assert not problems
    assert asked and all(re.match(rf"(blob:)?http://127\.0\.0\.1:{service.port}/", url) for url in asked)
    page.close()


def shown(page: Any, caption: str) -> np.ndarray:
    """The sixteen images on the page, uint8 [16, H, W], once the caption says this."""
    page.wait_for_function("text => document.getElementById('caption').textContent === text", arg=caption)
    size, pixels = page.evaluate(
        "() => { const { width } = document.getElementById('images');"
        " const context = new OffscreenCanvas(width, width).getContext('2d', { willReadFrequently: true });"
        " context.drawImage(document.getElementById('images'), 0, 0);"
        " return [width, [...context.getImageData(0, 0, width, width).data]]; }"
    )
    whole = np.array(pixels, np.uint8).reshape(size, size, 4)[..., 0]
    side, step = (size - 6) // 4, (size + 2) // 4
    return np.stack([whole[y : y + side, x : x + side] for y in range(0, size, step) for x in range(0, size, step)])


def test_the_page_draws_what_is_clicked(browser: Any, service: Service, generator: Path) -> None:
    with opened(browser, service) as page:
        first = shown(page, "Sixteen times 0: seed 0, truncation 1")
        assert np.array_equal(first, expected(generator, [0] * 16)[..., 0])

        page.get_by_role("radio", name="5", exact=True).check()
        fives = shown(page, "Sixteen times 5: seed 0, truncation 1")
        assert np.array_equal(fives, expected(generator, [5] * 16)[..., 0])

        page.locator("#seed").fill("3")
        page.locator("#truncation").fill("70")
        found = shown(page, "Sixteen times 5: seed 3, truncation 0.7")
        assert np.array_equal(found, expected(generator, [5] * 16, 3, 0.7)[..., 0])

        page.get_by_role("button", name="Another seed").click()
        page.wait_for_function("() => !document.getElementById('caption').textContent.includes('seed 3,')")


def test_dragging_turns_one_class_into_another(browser: Any, service: Service, generator: Path) -> None:
    with opened(browser, service) as page:
        page.get_by_role("radio", name="5", exact=True).check()
        page.get_by_label("The other class", exact=True).select_option("8")
        before = shown(page, "Sixteen times 5: seed 0, truncation 1")
        slider = page.locator("#weight").bounding_box()
        middle = slider["y"] + slider["height"] / 2
        page.mouse.move(slider["x"] + 8, middle)
        page.mouse.down()
        page.mouse.move(slider["x"] + slider["width"] / 2, middle, steps=10)
        page.wait_for_function("() => document.getElementById('caption').textContent.includes('% of the way to 8')")
        page.mouse.move(slider["x"] + slider["width"], middle, steps=10)
        page.mouse.up()
        there = shown(page, "Sixteen times 5, 100 % of the way to 8: seed 0, truncation 1")
        eights = expected(generator, [8] * 16)[..., 0]
        assert np.abs(there.astype(int) - eights).max() <= 1 and not np.array_equal(there, before)
        # Another class begins with itself.
        page.get_by_role("radio", name="8", exact=True).check()
        assert np.array_equal(shown(page, "Sixteen times 8: seed 0, truncation 1"), eights)
        assert page.locator("#to").input_value() == "9"


def test_it_says_which_run_this_is_and_takes_no_name_for_html(browser: Any, service: Service) -> None:
    with opened(browser, service) as page:
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        said = page.locator("#about").inner_text()
        about = json.loads(service.ask("/about")[2])
        for value in ("trained", "last.ckpt", "moving average", about["checkpoint_sha256"], "<b>digits</b>"):
            assert value in said
        assert page.locator("#about b").count() == 0


def test_what_is_shown_can_be_saved(browser: Any, service: Service, generator: Path) -> None:
    with opened(browser, service) as page:
        page.locator("#seed").fill("9")
        shown(page, "Sixteen times 0: seed 9, truncation 1")
        wanted = expected(generator, [0] * 16, 9)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save arrays").click()
        assert saved.value.suggested_filename == "0-seed9.npz"
        assert np.array_equal(np.load(saved.value.path())["images"], wanted)
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save picture").click()
        assert np.array_equal(np.asarray(Image.open(saved.value.path()).convert("RGB")), grid(wanted, 4))


def test_it_can_be_used_by_keyboard_and_with_a_screen_reader(browser: Any, service: Service) -> None:
    with opened(browser, service) as page:
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        shown(page, "Sixteen times 1: seed 0, truncation 1")
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('input:not([type=password]), select, button')]"
            ".filter(e => !e.labels?.length && !e.textContent.trim()).map(e => e.outerHTML)"
        )
        assert unnamed == []
        assert page.locator("#images").get_attribute("aria-label") == "Sixteen times 1: seed 0, truncation 1"


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, service: Service, width: int, scheme: str) -> None:
    with opened(browser, service, width, color_scheme=scheme) as page:
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            "() => [...document.querySelectorAll('#classes label, select, input[type=range], .row button')]"
            ".filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())"
            ".filter(b => b.height < 28 || b.width < 28).length"
        )
        assert small == 0  # large enough for a finger


def test_a_service_with_a_key_asks_for_it(browser: Any, generator: Path) -> None:
    key = {"SERVE_API_KEY": "s3cret"}
    with serving(generator.parent, f"ckpt_path={generator}", **key) as service, opened(browser, service) as page:
        box = page.get_by_label("This service asks for its key")
        box.fill("wrong")
        box.press("Enter")
        page.get_by_text("This key is not the right one.").wait_for()
        box.fill("s3cret")
        box.press("Enter")
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        page.reload()
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        assert "s3cret" not in page.content()
        page.problems[:] = [each for each in page.problems if "401" not in each]  # the browser's own note


def test_a_service_that_goes_away_is_told_and_found_again(browser: Any, generator: Path) -> None:
    with serving(generator.parent, f"ckpt_path={generator}") as service, opened(browser, service) as page:
        shown(page, "Sixteen times 0: seed 0, truncation 1")
        service.stop()
        page.get_by_role("radio", name="5", exact=True).check()
        page.get_by_text("The service does not answer.").wait_for()
        with serving(generator.parent, f"ckpt_path={generator}", f"port={service.port}"):
            shown(page, "Sixteen times 5: seed 0, truncation 1")
            assert page.locator("#problem").is_hidden()
        page.problems[:] = [each for each in page.problems if "ERR_CONNECTION" not in each]


def test_headers_let_nothing_else_in(service: Service) -> None:
    for path in ("/", "/about", "/nowhere"):
        _, headers, _ = service.ask(path)
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    _, headers, _ = service.ask("/page.js")
    assert service.ask("/page.js", headers={"if-none-match": headers["etag"]})[0] == 304
    for path in ("/", "/page.css", "/page.js"):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", service.ask(path)[2].decode())
