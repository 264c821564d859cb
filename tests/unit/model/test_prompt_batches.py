"""Examples that are tokenized together have the tokens that they have one by one."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from model.prompt import IMAGE_MARK, PromptTemplate, Tokens
from model.prompt_batches import BatchTemplate, one_thread_per_tokenizer
from model.tiny_phi import EOS, train_tokenizer
from model.word_tokenizer import splits_at_blanks

texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from([EOS, "", "red"])
talks = st.lists(st.tuples(texts | texts.map(lambda t: f"{t}{IMAGE_MARK}"), texts), max_size=3)
THREADS = 2


@pytest.fixture(scope="module", params=["word by word", "whole texts"])
def template(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PromptTemplate:
    folder = tmp_path_factory.mktemp("lm")
    eos = train_tokenizer(["a red circle", "Instruct: how many?"], 320, folder).token_to_id(EOS)
    assert eos is not None
    # A prefix with a control token, so that texts are cut at it.
    made = PromptTemplate.load(folder, eos, f"Q: {EOS}", "\nA:", "What is it?", "Hi ", "\n")
    if request.param == "whole texts":  # a pattern of which nothing is known
        made.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert splits_at_blanks(made.tokenizer) == (request.param == "word by word")
    return made


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, max_size=5), st.lists(talks, max_size=4))
def test_tokens_are_those_of_the_template(
    template: PromptTemplate, captions: list[str], talk: list[list[tuple[str, str]]]
) -> None:
    def tokens(by: PromptTemplate) -> list[Tokens]:
        return [*map(by.caption, captions), *(by.conversation(turns, 1) for turns in talk)]

    with ThreadPoolExecutor(THREADS) as executor, one_thread_per_tokenizer():
        batches = BatchTemplate(template, executor, THREADS)
        for _ in range(2):
            batches.prepare(lambda: tokens(batches.template))
            assert tokens(batches.template) == tokens(template)


def test_a_text_that_was_not_prepared_is_encoded_too(template: PromptTemplate) -> None:
    with ThreadPoolExecutor(THREADS) as executor:
        batches = BatchTemplate(template, executor, THREADS)
        batches.prepare(lambda: batches.template.caption("red"))
        assert batches.template.caption("blue") == template.caption("blue")


def test_the_environment_is_as_before(
    template: PromptTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TOKENIZERS_PARALLELISM"
    for before in (None, "true"):
        if before:
            monkeypatch.setenv(name, before)
        else:
            monkeypatch.delenv(name, raising=False)
        with one_thread_per_tokenizer():
            assert os.environ[name] == "false"
        assert os.environ.get(name) == before
