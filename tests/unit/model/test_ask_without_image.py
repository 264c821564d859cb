"""Questions without an image: generation computes what training computed for a text alone."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from flows.chat.errors import ChatError
from flows.chat.history import Subject, subject_of
from flows.chat.limits import Limits
from flows.chat.models import only
from flows.chat.talk import Talk
from flows.cli import main
from model.assistant import Assistant
from model.batch import Batch
from model.bundle import BUNDLE
from model.errors import ModelError
from model.generation import generate, stream
from model.generation_configs import BeamConfig, GreedyConfig
from tests.support.tiny_bundle import image

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def talker(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    """An assistant whose card says that it was trained on texts alone, too."""
    folder = tmp_path_factory.mktemp("talker") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    card = json.loads((folder / BUNDLE).read_text())
    (folder / BUNDLE).write_text(json.dumps({**card, "text_only": True}))
    return Assistant(folder)


def trained_choice(assistant: Assistant, prompt: list[int], answer: list[int]) -> list[int]:
    """Return the likeliest token at each place of an answer, as a training row of text alone."""
    ids = torch.tensor([prompt + answer])
    batch = Batch(
        torch.randn(1, 49, 32),  # whatever stands there, no token sees it
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.arange(len(ids[0]))[None] >= len(prompt),
        has_image=torch.tensor([False]),
    )
    with torch.no_grad():
        return assistant.vlm.predict(assistant.vlm.supervised_states(batch).states).tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_without_an_image_follows_what_training_saw(
    talker: Assistant, attention: Literal["sdpa", "eager"]
) -> None:
    prompt = talker.prompt(QUESTION)
    options: dict[str, Any] = {"eos_id": talker.template.eos_id, "max_new_tokens": 12}
    patches = torch.zeros(49, 32)
    before = talker.vlm.language_model.config._attn_implementation
    talker.vlm.language_model.set_attn_implementation(attention)
    try:
        alone = {"decoding": GreedyConfig(), "has_image": False, **options}
        written = list(stream(talker.vlm, patches, prompt, **alone))
        assert len(written) == 12
        assert trained_choice(talker, prompt, written) == written
        whole = generate(talker.vlm, patches[None], [prompt], **alone)[0].ids
        assert whole == written
        seen = list(stream(talker.vlm, patches, prompt, decoding=GreedyConfig(), **options))
        assert seen != written  # with the same patches in sight it is another text
    finally:
        talker.vlm.language_model.set_attn_implementation(before)


def test_texts_of_unequal_length_without_images_are_each_as_alone(talker: Assistant) -> None:
    prompts = [talker.prompt(QUESTION), talker.prompt("Why?")]
    options: dict[str, Any] = {
        "eos_id": talker.template.eos_id,
        "max_new_tokens": 8,
        "decoding": BeamConfig(beams=3, length_penalty=1.0),
        "has_image": False,
    }
    patches = torch.zeros(2, 49, 32)
    together = generate(talker.vlm, patches, prompts, **options)
    for prompt, text in zip(prompts, together, strict=True):
        assert generate(talker.vlm, patches[:1], [prompt], **options)[0] == text


def test_ask_answers_without_an_image_and_goes_on_with_the_conversation(
    talker: Assistant, tmp_path: Path
) -> None:
    first = talker.ask(None, QUESTION)
    assert first
    assert first != talker.ask(image(), QUESTION)
    talk = Talk(only(talker), tmp_path, Limits())
    assert [*talk.answer(QUESTION, [], Subject())][-1] == (first, "")
    history = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": first}]},
    ]
    *_, second = talk.answer("And now?", [], subject_of(history))
    assert second.text == talker.ask(None, "And now?", [(QUESTION, first)])
    with pytest.raises(ChatError, match="Ask something about an image first"):
        talk.look(history)


def test_an_assistant_that_never_saw_texts_alone_refuses_them(assistant: Assistant) -> None:
    assert not assistant.text_only
    with pytest.raises(ModelError, match="never trained on texts alone"):
        assistant.ask(None, QUESTION)
    with pytest.raises(ModelError, match="never trained on texts alone"):
        next(assistant.stream(None, QUESTION))


def test_a_caption_always_needs_an_image(talker: Assistant) -> None:
    with pytest.raises(ModelError, match="a caption needs an image"):
        next(talker.stream(None, None))


def test_the_command_takes_a_question_alone(
    talker: Assistant,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["ask", QUESTION, "--bundle", str(talker.folder)])
    assert capsys.readouterr().out.strip() == talker.ask(None, QUESTION)
    (tmp_path / "red.png").write_bytes(image())
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        ([QUESTION, "--bundle", str(tiny_bundle)], "never trained on texts alone"),
        (["red.png", "--bundle", str(talker.folder)], "no question about red.png"),
        ([QUESTION, "--why", "--bundle", str(talker.folder)], "none was given"),
        (["red.png", "", "--bundle", str(talker.folder)], "the question is empty"),
    ):
        with pytest.raises(SystemExit):
            main(["ask", *arguments])
        assert words in capsys.readouterr().err
