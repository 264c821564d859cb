"""The adapter for lmms-eval: it answers as `ask` does, in batches, and judges likelihoods truly."""

import importlib
import io
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.lmms.requests import one_image, read_writing
from model.assistant import Assistant
from model.errors import ModelError
from model.generation_configs import BeamConfig, GreedyConfig, TopPConfig
from pipeline.errors import PipelineError
from tests.support.lmms_stand_in import use_interface
from tests.support.tiny_bundle import image

ASKED = (
    ("What colour is it?", "red"),
    ("How many objects are there in this image?", "blue"),
    ("What?", "green"),
    ("What colour is it?", "blue"),
    ("", "red"),
)
GREEDY = {"until": ["\n\n"], "max_new_tokens": 12, "num_beams": 1, "do_sample": False}


@pytest.fixture(scope="module")
def instance() -> Iterator[type]:
    with pytest.MonkeyPatch.context() as patch:
        yield use_interface(patch)


@pytest.fixture(scope="module")
def adapter(instance: type, tiny_bundle: Path) -> Any:
    """The adapter on the tiny bundle, with documents as a task of lmms-eval has them."""
    built = importlib.import_module("deployments.lmms.adapter").PhiVision(
        pretrained=str(tiny_bundle), batch_size="2", device="cpu"
    )
    documents = [{"image": Image.open(io.BytesIO(image(colour)))} for _, colour in ASKED]
    built.task_dict = {"task": {"test": documents}}
    return built


@pytest.fixture
def request_of(instance: type) -> Callable[..., Any]:
    def make(question: str, second: Any, document: int, visuals: Any = None) -> Any:
        visuals = visuals or (lambda row: [row["image"].convert("RGB")])
        arguments = (question, second, visuals, document, "task", "test")
        place = {"task": "task", "doc_id": document, "repeats": 1}
        return instance("generate_until", arguments, idx=0, metadata=place)

    return make


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answers_are_those_of_ask_in_order_whatever_the_batch(
    adapter: Any, assistant: Assistant, request_of: Callable[..., Any], size: int
) -> None:
    adapter.batch_size = size
    requests = [request_of(text, dict(GREEDY), n) for n, (text, _) in enumerate(ASKED)]
    expected = [assistant.ask(image(colour), text) for text, colour in ASKED if text]
    assert adapter.generate_until(requests) == [*expected, assistant.caption([image("red")])[0]]
    assert len(set(expected)) > 1


def test_answers_end_where_the_task_says(
    adapter: Any, assistant: Assistant, request_of: Callable[..., Any]
) -> None:
    question, whole = ASKED[0][0], assistant.ask(image("red"), ASKED[0][0])
    middle = whole[len(whole) // 2 :][:2]
    settings = [{**GREEDY, "until": middle}, {**GREEDY, "max_new_tokens": 3}, {}]
    cut, short, default = adapter.generate_until([request_of(question, s, 0) for s in settings])
    assert cut == whole[: whole.index(middle)].strip()
    assert short != whole
    assert whole.startswith(short)
    assert default == whole


def test_an_answer_is_as_long_as_there_is_room(
    adapter: Any, request_of: Callable[..., Any]
) -> None:
    answer = adapter.generate_until([request_of("What?", {"max_new_tokens": 4096}, 0)])[0]
    assert len(answer) > 100
    with pytest.raises(ModelError, match=r"task task, document 1: the question has .* fit after"):
        adapter.generate_until([request_of("why " * 300, dict(GREEDY), 1)])


def test_decoding_is_what_the_task_asks_for() -> None:
    assert read_writing({"temperature": 0, "top_p": None}, 1, 5, 9).decoding == GreedyConfig()
    warm = read_writing({"temperature": 0.7, "top_p": 0.9, "do_sample": True}, 1, 5, 9)
    assert warm.decoding == TopPConfig(top_p=0.9, temperature=0.7, seed=0)
    assert read_writing({"temperature": 0.7, "do_sample": False}, 1, 5, 9).decoding.kind == "greedy"
    assert isinstance(read_writing({}, 3, 5, 9).decoding, BeamConfig)
    assert read_writing({"num_beams": 1}, 3, 5, 9).decoding == GreedyConfig()
    assert read_writing({"max_new_tokens": 50}, 1, 5, 9).max_new_tokens == 9
    assert read_writing({"until": "x"}, 1, 5, 9).until == ("x",)


def by_hand(assistant: Assistant, question: str, colour: str, answer: str) -> tuple[float, bool]:
    """Mean nats of an answer from one forward pass over the whole text, without any batch."""
    vlm, template = assistant.vlm, assistant.template
    asked, said = template.question(question), template.encode(f" {answer}")
    with torch.no_grad():
        prefix = vlm.embed_images(assistant.see(image(colour))[None]).tokens
        text = vlm.embed_text(torch.tensor([asked + said]))
        scores = vlm.logits(vlm.hidden(torch.cat([prefix, text], dim=1)))[0].log_softmax(-1)
    before = prefix.shape[1] + len(asked) - 1
    rows = scores[before : before + len(said)]
    nats = -rows[torch.arange(len(said)), torch.tensor(said)]
    return float(nats.mean()), rows.argmax(-1).tolist() == said


def test_likelihoods_equal_a_computation_by_hand(
    adapter: Any, assistant: Assistant, request_of: Callable[..., Any]
) -> None:
    adapter.batch_size = 3
    answers = ["Two", " Red, green or blue", "colour", "Yes", "There"]
    requests = [
        request_of(text, answer if n % 2 else lambda row, answer=answer: answer, n)
        for n, ((text, _), answer) in enumerate(zip(ASKED[:4], answers, strict=False))
    ]
    found = adapter.loglikelihood(requests)
    expected = [
        by_hand(assistant, text, colour, answer.strip())
        for (text, colour), answer in zip(ASKED[:4], answers, strict=False)
    ]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([n for n, _ in found], [n for n, _ in expected], rtol=1e-4)


def test_what_greedy_search_writes_first_is_told_and_is_the_smallest(
    adapter: Any, assistant: Assistant, request_of: Callable[..., Any]
) -> None:
    words = [assistant.template.decode([n]) for n in range(300)]
    whole = sorted({w for w in words if w and len(assistant.template.encode(f" {w}")) == 1})
    found = adapter.loglikelihood([request_of(ASKED[0][0], word, 0) for word in whole])
    best = min(range(len(whole)), key=lambda n: found[n][0])
    assert [n for n, (_, greedy) in enumerate(found) if greedy] in ([], [best])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_an_image_of_any_mode_can_be_shown(mode: str, adapter: Any, request_of: Any) -> None:
    opened = Image.open(io.BytesIO(image())).convert("L" if mode == "I;16" else mode)
    shown = opened.convert("I").convert("I;16") if mode == "I;16" else opened
    request = request_of("What?", dict(GREEDY), 0, lambda row: [shown])
    assert adapter.generate_until([request])[0]


def test_an_image_is_turned_upright() -> None:
    image = Image.new("RGB", (40, 20))
    image.getexif()[0x0112] = 6
    assert Image.open(io.BytesIO(one_image([image], "task"))).size == (20, 40)


@pytest.mark.parametrize(
    ("visuals", "kinds"),
    [([], "nothing"), ([Image.new("L", (2, 2))] * 2, "Image, Image"), (["clip.mp4"], "str")],
)
def test_anything_but_one_image_is_refused(visuals: list[Any], kinds: str) -> None:
    with pytest.raises(PipelineError, match=rf"task mmmu gives {kinds}: .* one image"):
        one_image(visuals, "mmmu")


def test_what_it_cannot_do_is_told(adapter: Any, instance: type, tiny_bundle: Path) -> None:
    with pytest.raises(PipelineError, match="task is multi-turn"):
        adapter.generate_until_multi_round([])
    place = {"task": "task", "doc_id": 0, "repeats": 1}
    with pytest.raises(PipelineError, match="without its image"):
        adapter.loglikelihood([instance("loglikelihood", ("", "Yes"), idx=0, metadata=place)])
    with pytest.raises(PipelineError, match="batch size auto is not a positive whole number"):
        type(adapter)(pretrained=str(tiny_bundle), batch_size="auto")


def test_without_a_bundle_it_is_the_stores_published_one(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIVISION_STORE", str(tmp_path))
    with pytest.raises(PipelineError, match="holds no published assistant"):
        type(adapter)()


def test_the_package_tells_lmms_eval_where_the_model_is(adapter: Any) -> None:
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    points = tomllib.loads(project.read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, name = points["phivision"].split(":")
    manifest = getattr(importlib.import_module(module), name)()
    room, _, kind = manifest.simple_class_path.rpartition(".")
    assert manifest.model_id == "phivision"
    assert getattr(importlib.import_module(room), kind) is type(adapter)
