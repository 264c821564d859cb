"""Prompt templates of a GGUF export: llama.cpp's gives the ids of training, ollama's its text."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

from model.asked import asked_ids
from model.gguf_template import go_template, jinja_template
from model.gguf_tokenizer import SEPARATOR
from model.prompt import PromptTemplate
from model.tiny_phi import train_tokenizer
from tests.support.tiny_bundle import TEXTS

GO = Path(__file__).parents[2] / "support" / "go_template.go"
HISTORY = [("What is\n this?", "A dog."), ("How many?", "2 of\n them")]
# The last one has the names that the templates use for their pieces.
PIECES = {
    "plain": {"user_prefix": "Q: ", "assistant_prefix": "\nA:"},
    "with controls": {
        "user_prefix": "Q: ",
        "assistant_prefix": "\nA:<|endoftext|>",
        "opening": '<|endoftext|>You "see" \\ {{ this }}.\n',
        "between": "\n",
    },
    "with names": {
        "user_prefix": "USER: ",
        "assistant_prefix": " ASSISTANT:",
        "opening": "EOS after a SEPARATOR. ",
        "between": " BLANK ",
    },
}


def _template(folder: Path, pieces: str) -> PromptTemplate:
    eos = train_tokenizer(TEXTS * 3, 300, folder).token_to_id("<|endoftext|>")
    return PromptTemplate.load(folder, eos_id=eos, **PIECES[pieces])


def _rendered(template: PromptTemplate, said: list[tuple[str, Any]]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": content} for role, content in said]
    return environment.from_string(jinja_template(template)).render(messages=messages)


def _conversation(turns: int, first: Any, question: str) -> list[tuple[str, Any]]:
    """Return roles and texts of earlier turns, a system message before, and a question."""
    said: list[tuple[str, Any]] = [("system", "You are helpful.")]
    for asked, answer in HISTORY[:turns]:
        said += [("user", asked), ("assistant", answer)]
    said.append(("user", question))
    said[1] = ("user", first(said[1][1]))
    return said


@pytest.mark.parametrize("mark", ["<__media__>", "<__media_Ab09xY__>"])
@pytest.mark.parametrize("pieces", PIECES)
def test_the_chat_template_writes_the_ids_of_training(
    tmp_path: Path, mark: str, pieces: str
) -> None:
    template = _template(tmp_path, pieces)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([mark, SEPARATOR])
    image, separator = tokenizer.token_to_id(mark), tokenizer.token_to_id(SEPARATOR)
    places = (
        lambda text: mark + text,
        lambda text: text + mark,
        lambda text: [{"text": mark}, {"text": text}],
    )
    for turns in range(3):
        ours = asked_ids(template, "Which  colour?", HISTORY[:turns], 1, 1000)
        for first in places:
            text = _rendered(template, _conversation(turns, first, "Which  colour?"))
            found = tokenizer.encode(text, add_special_tokens=False).ids
            assert found == [image, separator, *ours]
        text = _rendered(template, _conversation(turns, lambda text: text, "Which  colour?"))
        assert tokenizer.encode(text, add_special_tokens=False).ids == [separator, *ours]


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("pieces", PIECES)
def test_the_template_for_ollama_writes_the_same_text(tmp_path: Path, pieces: str) -> None:
    template = _template(tmp_path, pieces)
    (tmp_path / "go.tmpl").write_text(go_template(template))
    conversations, expected = [], []
    for turns in range(3):
        for count in range(3):
            marks = "".join(f"[img-{number}]" for number in range(count))
            # ollama does not join lines; that is the difference to llama.cpp's template.
            said = [
                (role, " ".join(text.split()))
                for role, text in _conversation(turns, lambda text: text, "Which [img-x] is ü?")
            ]
            conversations.append([{"Role": role, "Content": text} for role, text in said])
            conversations[-1][1]["Content"] = marks + said[1][1]
            said[1] = ("user", "<__media__>" * count + said[1][1])
            text = _rendered(template, said)
            for number in range(count):
                text = text.replace("<__media__>", f"[img-{number}]", 1)
            expected.append(text)
    done = subprocess.run(
        ["go", "run", str(GO), str(tmp_path / "go.tmpl")],
        input=json.dumps(conversations),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
