"""The service and its page where the model reads text; test_serve.py has what holds for every model."""

import io
import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.export.to_onnx import export_generator
from src.models.prompts import LENGTH, to_codes
from src.models.request import Request
from src.pictures.grid import grid
from src.sampling.sampler import About, Noise
from tests.serve.test_serve import NEEDED, Service, arrays, lie, opened, serving, shown

pytestmark = pytest.mark.extras(*NEEDED)


@pytest.fixture(scope="session")
def generator(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported to draw in two steps."""
    from src.sampling.checkpoint_sampler import CheckpointSampler

    sampler = CheckpointSampler(text_checkpoint, drawing={"steps": 2})
    path = tmp_path_factory.mktemp("served") / "text.onnx"
    export_generator(sampler.model, path, sampler.about)
    return path


@pytest.fixture(scope="module")
def service(generator: Path) -> Iterator[Service]:
    with serving(generator.parent, f"ckpt_path={generator}", "max_images=64") as service:
        yield service
        code, said = service.stop()
        assert code == 0 and "Traceback" not in said


@pytest.fixture(scope="module")
def without_classes(generator: Path) -> Iterator[Service]:
    """Serves the same generator as if it had been trained on captions alone, of data without a name."""
    path = generator.with_name("captions.onnx")
    lie(generator, path, n_classes="0", class_names="[]", prompts="[]", data="")
    with serving(generator.parent, f"ckpt_path={path}") as service:
        yield service


def expected(generator: Path, prompts: list[str], seed: int = 0, **between: Any) -> np.ndarray:
    """What the file draws from a seed, as task=sample has it."""
    from src.sampling.onnx_sampler import OnnxSampler

    sampler = OnnxSampler(generator)
    noise = Noise(sampler.about.noise_shape, seed)(len(prompts))
    return sampler.draw(Request(noise, to_codes(prompts), **between))


def images(service: Service, **asked: Any) -> np.ndarray:
    status, _, content = service.ask("/generate", asked | {"format": "npz"})
    assert status == 200, content
    return arrays(content)["images"]


def test_a_seed_draws_the_images_of_task_sample(service: Service, generator: Path) -> None:
    typed = ["a nine", "Zwölf, ДВА: 二!"]
    content = service.ask("/generate", {"prompts": typed, "n": 3, "seed": 7, "format": "npz"})[2]
    found = arrays(content)
    assert set(found) == {"images", "prompts"}
    assert found["prompts"].tolist() == [typed[0]] * 3 + [typed[1]] * 3
    assert np.array_equal(found["images"], expected(generator, [typed[0]] * 3 + [typed[1]] * 3, 7))


def test_a_label_stands_for_its_name(service: Service) -> None:
    assert np.array_equal(images(service, labels=9, n=3), images(service, prompts=" NINE!", n=3))
    assert len(images(service, n=2)) == 20


def test_a_picture_has_a_row_a_prompt(service: Service, generator: Path) -> None:
    picture = Image.open(io.BytesIO(service.ask("/generate", {"prompts": ["a nine", "a two"], "n": 3})[2]))
    drawn = expected(generator, ["a nine"] * 3 + ["a two"] * 3)
    assert np.array_equal(np.asarray(picture.convert("RGB")), grid(drawn, 3))
    assert picture.text == {"prompts": '["a nine", "a two"]'}


def test_single_pictures_have_captions(service: Service) -> None:
    content = service.ask("/generate", {"prompts": ["a nine", "nine/zwölf"], "n": 2, "format": "zip"})[2]
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        rows = [json.loads(line) for line in file.read("metadata.jsonl").decode().splitlines()]
        assert [row["text"] for row in rows] == ["a nine"] * 2 + ["nine/zwölf"] * 2
        assert [row["file_name"].split("/")[0] for row in rows] == ["a nine"] * 2 + ["nine_zwölf"] * 2
        assert {row["file_name"] for row in rows} < set(file.namelist())


def test_between_prompts_and_between_classes(service: Service, generator: Path) -> None:
    way = {"others": to_codes(["two"] * 3), "weight": np.full(3, 0.25, np.float32)}
    between = expected(generator, ["nine"] * 3, **way)
    assert np.array_equal(images(service, prompts="nine", others="two", weight=0.25, n=3), between)
    assert np.array_equal(images(service, labels="9", others="2", weight=0.25, n=3), between)
    assert not np.array_equal(images(service, prompts="nine", n=3), between)


def test_prompts_and_labels_wait_in_one_queue(service: Service, generator: Path) -> None:
    """They are drawn together, and each client gets its own: equal to a level, as sums are rounded by the batch."""
    asked: list[dict[str, Any]] = [{"prompts": "a nine"}, {"labels": 2}, {"prompts": "x", "others": "two", "weight": 1}]
    alone = [images(service, **each, n=2) for each in asked]
    before = service.metric("serve_batch_images_count")
    with ThreadPoolExecutor(12) as clients:
        found = list(clients.map(lambda i: images(service, **asked[i % 3], n=2), range(60)))
    assert service.metric("serve_batch_images_count") - before < 60
    for i, each in enumerate(found):
        assert np.abs(each.astype(int) - alone[i % 3]).max() <= 1


def test_it_says_what_it_reads(service: Service, without_classes: Service) -> None:
    about = json.loads(service.ask("/about")[2])
    assert about["reads_text"] is True and about["prompts"][9] == "nine" and about["max_prompt_length"] == LENGTH
    assert about["drawing"] == {"guidance": 1.5, "steps": 2, "solver": "heun", "negative": ""}
    for each, first in ((service, ["prompts", "labels"]), (without_classes, ["prompts"])):
        described = json.loads(each.ask("/openapi.json")[2])
        asked = described["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert [*asked["properties"]] == [*first, "n", "seed", "others", "weight", "format"]
        body = shlex.split(re.search(r"--json ('.*') -o", each.said)[1])[0]
        assert json.loads(body)["prompts"] == ["nine" if len(first) == 2 else "what to draw"]
        assert each.ask("/generate", json.loads(body))[0] == 200


LONGEST = "\U0001f600" * LENGTH  # escaped, no character takes more; it is no letter
REFUSED = [
    ({"prompts": "a nine", "labels": 9}, 422, "prompts and labels are both set: leave out one of them"),
    ({"prompts": ["a nine", "?!"]}, 422, "prompts: '?!' has no letter and no digit: write what to draw"),
    ({"prompts": ""}, 422, "prompts must be a text of up to 128 letters, digits and spaces that says what to draw, or"),
    ({"prompts": []}, 422, "prompts must be a text"),
    ({"prompts": 9}, 422, "prompts must be a text"),
    ({"prompts": "x" * 129}, 422, "has 129 characters, and a prompt has at most 128"),
    ({"prompts": "x" * 100_000}, 422, "prompts must be a text of up to 128 letters"),
    ({"prompts": "a" + "\u0300\u0316" * 10_000}, 422, "prompts must be a text of up to 128 letters"),
    ({"labels": "a" + "\u0300\u0316" * 10_000}, 422, "labels must be a class"),
    ({"prompts": ["a"] * 33, "n": 2}, 413, "33 prompts of 2 images are 66, and one request may ask for 64"),
    ({"prompts": ["a", "b", "c"], "others": ["d", "e"]}, 422, "others must be one prompt, or as many as prompts: 3"),
    ({"prompts": "a", "others": "!"}, 422, "others: '!' has no letter"),
    ({"prompts": "a", "others": [9]}, 422, "others: 9 is not a text, as the prompts are"),
    ({"labels": 9, "others": "two"}, 422, "others: there is no class 'two'"),
    ({"truncation": 0.7}, 422, "there is no field 'truncation', which suits GANs alone: start the service with task=s"),
    ({"truncation": 0.7}, 422, "guidance=3 for images that are more typical"),
    ({"prompts": [LONGEST] * 64, "others": [LONGEST] * 64, "n": 1}, 422, "has no letter and no digit"),  # fits
    ({"prompts": [LONGEST] * 64, "others": [LONGEST] * 65, "n": 1}, 413, "the body has more than 198400 bytes"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_meant_is_refused_with_a_sentence(
    service: Service, body: Any, status: int, sentence: str
) -> None:
    said = service.refusal("/generate", body)
    assert said[0] == status and sentence in said[1]


def test_data_without_a_name_are_not_named(service: Service, without_classes: Service, generator: Path) -> None:
    assert f"serving     trained (digits, {generator})\n" in service.said
    assert f"serving     trained ({generator.with_name('captions.onnx')})\n" in without_classes.said
    titles = [json.loads(each.ask("/openapi.json")[2])["info"]["title"] for each in (service, without_classes)]
    assert titles == ["Images of digits", "Images"]


def test_a_model_of_captions_draws_no_classes(without_classes: Service, generator: Path) -> None:
    assert np.array_equal(images(without_classes, prompts="a nine", n=2), expected(generator, ["a nine"] * 2))
    status, said = without_classes.refusal("/generate", {"labels": [0]})
    assert status == 422 and said.startswith("there is no field 'labels': the fields are prompts, n, seed")
    status, said = without_classes.refusal("/generate", {"n": 4})
    assert status == 422 and said.startswith("prompts is missing: send a text of up to 128")


def test_the_page_draws_what_is_typed(browser: Any, service: Service, generator: Path) -> None:
    with opened(browser, service) as page:
        assert np.array_equal(shown(page, "Sixteen times “zero”: seed 0"), expected(generator, ["zero"] * 16)[..., 0])
        box = page.get_by_label("Prompt", exact=True)
        box.fill("it's a <b>nine</b>")
        box.press("Enter")
        found = shown(page, "Sixteen times “it's a <b>nine</b>”: seed 0")
        assert np.array_equal(found, expected(generator, ["it s a b nine b"] * 16)[..., 0])
        page.get_by_text("The same from a terminal").click()
        command = shlex.split(page.locator("#command").inner_text())
        assert json.loads(command[command.index("--json") + 1]) == {"prompts": "it's a <b>nine</b>", "n": 16, "seed": 0}
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save arrays").click()
        assert saved.value.suggested_filename == "it-s-a-b-nine-b--seed0.npz"
        assert np.load(saved.value.path())["prompts"].tolist() == ["it's a <b>nine</b>"] * 16

        page.get_by_role("button", name="seven", exact=True).click()
        shown(page, "Sixteen times “seven”: seed 0")
        assert box.input_value() == "seven"
        assert box.get_attribute("maxlength") == str(LENGTH)
        box.fill("?!")
        box.press("Enter")
        page.get_by_text("'?!' has no letter and no digit: write what to draw").wait_for()
        page.problems[:] = [each for each in page.problems if "422" not in each]  # the browser's own note
        assert page.get_by_label("Truncation").is_hidden() and page.get_by_role("radio").count() == 0
        assert "guidance 1.5, steps 2, solver heun" in page.locator("#about").inner_text()


def test_one_prompt_is_turned_into_another(browser: Any, service: Service, generator: Path) -> None:
    with opened(browser, service) as page:
        other = page.get_by_label("The other prompt", exact=True)
        other.fill("a two")
        other.press("Enter")
        page.get_by_label("How far to the other prompt").fill("30")
        found = shown(page, "Sixteen times “zero”, 30 % of the way to “a two”: seed 0")
        way = {"others": to_codes(["a two"] * 16), "weight": np.full(16, 0.3, np.float32)}
        assert np.array_equal(found, expected(generator, ["zero"] * 16, **way)[..., 0])
        page.get_by_role("button", name="seven", exact=True).click()
        shown(page, "Sixteen times “seven”: seed 0")  # another prompt begins with itself


def test_the_page_waits_for_a_prompt_where_it_knows_none(browser: Any, without_classes: Service) -> None:
    with opened(browser, without_classes, 320) as page:
        page.get_by_text("Type what to draw.").wait_for()
        assert page.locator("#lead").inner_text().startswith("A neural network makes up what you choose")
        assert "Trained on\ndata without a name" in page.locator("#about").inner_text()
        assert page.get_by_label("How far to the other prompt").is_disabled()
        page.get_by_label("Prompt", exact=True).fill("something")
        page.get_by_role("button", name="Draw").click()
        shown(page, "Sixteen times “something”: seed 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_guided_model_of_classes_has_neither_prompts_nor_truncation() -> None:
    from src.serve.body import request_model

    about = About(2, ("dog", "cat"), 1, 8, (1, 8, 8), "ema", "a run", "pets", "0123", "last.ckpt", "ab" * 32)
    gan, guided = (request_model(replace(about, drawing=each), 8).model_fields for each in ({}, {"guidance": 1.5}))
    assert [*gan] == ["labels", "n", "seed", "truncation", "others", "weight", "format"]
    assert gan.keys() - guided.keys() == {"truncation"}
