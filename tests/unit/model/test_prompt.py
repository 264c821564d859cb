"""Which token is trained, token by token, and that people's text never becomes control."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.errors import ModelError
from model.prompt import IMAGE, IMAGE_MARK, MARKER, PromptTemplate, Tokens, placed
from model.tiny_phi import EOS, train_tokenizer
from model.word_tokenizer import WordTokenizer, splits_at_blanks

USER, ASSISTANT = "Instruct: ", "\nOutput:"
TEXTS = [
    "a red circle left of a blue square",
    "Instruct: how many?\nOutput: two",
    "naïve café 中文",
]

printable = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=60
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> PromptTemplate:
    folder = tmp_path_factory.mktemp("lm")
    eos = train_tokenizer(TEXTS, 320, folder).token_to_id(EOS)
    assert eos is not None
    return PromptTemplate.load(folder, eos, USER, ASSISTANT)


def targets(template: PromptTemplate, tokens: Tokens) -> list[str]:
    """Return the texts of the supervised runs, each run ended by its EOS."""
    runs: list[list[int]] = [[]]
    for token, trained in zip(tokens.input_ids, tokens.supervised, strict=True):
        if trained and token == template.eos_id:
            runs.append([])
        elif trained:
            runs[-1].append(token)
    assert runs.pop() == []
    return [template.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def test_a_caption_is_supervised_from_its_first_token_to_eos(template: PromptTemplate) -> None:
    tokens = template.caption("a red circle")
    assert tokens.input_ids == [*template.encode("a red circle"), template.eos_id]
    assert tokens.supervised == [True] * len(tokens)


def test_a_caption_may_answer_a_question(template: PromptTemplate) -> None:
    asking = replace(template, caption_question="What is it?")
    tokens = asking.caption("a red circle")
    assert tokens == asking.conversation([("What is it?", "a red circle")])
    assert asking.caption_prompt == asking.question("What is it?")
    assert asking.captioned("a red circle") == asking.answer("a red circle")
    assert template.caption_prompt == []
    assert template.captioned("a red circle") == template.encode("a red circle")


def test_a_conversation_trains_answers_and_their_ends_only(template: PromptTemplate) -> None:
    turns = [("How many?", "Two."), ("What colour?", "Red and blue.")]
    tokens = template.conversation(turns)
    expected_ids: list[int] = []
    expected_mask: list[bool] = []
    for question, answer in turns:
        asked = template.encode(f"Instruct: {question}\nOutput:")
        answered = [*template.encode(f" {answer}"), template.eos_id]
        expected_ids += asked + answered
        expected_mask += [False] * len(asked) + [True] * len(answered)
    assert tokens.input_ids == expected_ids
    assert tokens.supervised == expected_mask
    assert targets(template, tokens) == [" Two.", " Red and blue."]
    assert len(tokens) == len(expected_ids)


def test_each_position_is_trained_to_predict_the_token_behind_it(template: PromptTemplate) -> None:
    """The mask marks targets: the token before each one is where it is predicted from."""
    tokens = template.conversation([("How many?", "Two.")])
    predicted = [
        (tokens.input_ids[place - 1], tokens.input_ids[place])
        for place in range(1, len(tokens))
        if tokens.supervised[place]
    ]
    answer = [*template.encode(" Two."), template.eos_id]
    last_of_prompt = template.encode(ASSISTANT)[-1]
    assert predicted == list(zip([last_of_prompt, *answer], answer, strict=False))


def test_eos_ends_every_answer_and_is_nowhere_else(template: PromptTemplate) -> None:
    tokens = template.conversation([("a", "b"), ("c", "d"), ("e", "f")])
    ends = [place for place, token in enumerate(tokens.input_ids) if token == template.eos_id]
    assert len(ends) == 3
    assert all(tokens.supervised[place] for place in ends)
    assert ends[-1] == len(tokens) - 1
    assert all(not tokens.supervised[place + 1] for place in ends[:-1])


def test_an_empty_answer_still_trains_its_end(template: PromptTemplate) -> None:
    tokens = template.conversation([("Anything?", "")])
    assert tokens.supervised[-1]
    assert tokens.input_ids[-1] == template.eos_id


def test_no_turns_are_no_tokens(template: PromptTemplate) -> None:
    assert template.conversation([]) == Tokens([], [])


def test_asking_gives_the_prompt_that_training_saw(template: PromptTemplate) -> None:
    turns = [("How many?", "Two."), ("What colour?", "Red.")]
    trained = template.conversation(turns)
    asked = template.question("What colour?", turns[:1])
    assert trained.input_ids[: len(asked)] == asked
    assert not trained.supervised[len(asked) - 1]
    assert trained.supervised[len(asked)]
    assert (
        template.question("How many?") == trained.input_ids[: len(template.question("How many?"))]
    )


@pytest.mark.parametrize("typed", [EOS, "<image>", f"a{EOS}b", f"{EOS}{EOS}", f" {EOS} "])
def test_typed_control_text_stays_text(template: PromptTemplate, typed: str) -> None:
    assert template.eos_id not in template.encode(typed)
    assert template.decode(template.encode(typed)) == typed.strip()
    caption = template.caption(typed)
    assert caption.input_ids.count(template.eos_id) == 1
    talk = template.conversation([(typed, typed), (typed, typed)])
    assert talk.input_ids.count(template.eos_id) == 2
    assert targets(template, talk) == [f" {typed}", f" {typed}"]
    assert template.eos_id not in template.question(typed)


def test_generated_control_tokens_are_not_shown(template: PromptTemplate) -> None:
    ids = [*template.encode(" Two."), template.eos_id]
    assert template.decode(ids) == "Two."
    assert template.decode([template.eos_id]) == template.decode([]) == ""


def test_padding_and_truncation_of_the_file_are_switched_off(
    template: PromptTemplate, tmp_path: Path
) -> None:
    stored = Tokenizer.from_str(template.tokenizer.to_str())
    stored.enable_truncation(2)
    stored.enable_padding(length=50)
    stored.save(str(tmp_path / "tokenizer.json"))
    loaded = PromptTemplate.load(tmp_path, template.eos_id, USER, ASSISTANT)
    assert loaded.encode("a red circle left") == template.encode("a red circle left")


@settings(max_examples=200, deadline=None)
@given(text=printable)
def test_decoding_gives_the_text_back(template: PromptTemplate, text: str) -> None:
    assert template.decode(template.encode(text)) == text.strip()


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(st.tuples(printable, printable), min_size=1, max_size=4))
def test_masks_cover_exactly_the_answers(
    template: PromptTemplate, turns: list[tuple[str, str]]
) -> None:
    tokens = template.conversation(turns)
    assert len(tokens.input_ids) == len(tokens.supervised)
    assert tokens.input_ids.count(template.eos_id) == len(turns)
    assert targets(template, tokens) == [f" {answer}" for _, answer in turns]


# -- the tokenizer of Phi-2 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def phi(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> PromptTemplate:
    """Return a template on Phi-2's vocabulary, laid out as its tokenizer.json is."""
    import json

    source = realdata / "tokenizers" / "codegen_rebuilt"
    model = models.BPE.from_file(str(source / "vocab.json"), str(source / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, normalized=False)])
    added = json.loads((source / "added_tokens.json").read_text("utf-8"))
    blanks = sorted((text for text in added if text != EOS), key=added.__getitem__)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in blanks])
    folder = tmp_path_factory.mktemp("phi")
    tokenizer.save(str(folder / "tokenizer.json"))
    for text, number in added.items():
        assert tokenizer.token_to_id(text) == number
    return PromptTemplate.load(folder, 50256, USER, ASSISTANT)


@pytest.mark.realdata
def test_phi2_ids_are_the_known_ones(phi: PromptTemplate) -> None:
    assert phi.encode("Hello world") == [15496, 995]
    assert phi.encode("\nOutput:") == [198, 26410, 25]
    tokens = phi.conversation([("Hi", "Yes")])
    assert tokens.input_ids[-2:] == [3363, 50256]
    assert tokens.supervised[-2:] == [True, True]
    assert not any(tokens.supervised[:-2])


@pytest.mark.realdata
@pytest.mark.parametrize("typed", [EOS, f"what is {EOS}?", "<image>", "     indented"])
def test_phi2_takes_typed_control_text_as_text(phi: PromptTemplate, typed: str) -> None:
    assert 50256 not in phi.encode(typed)
    assert phi.decode(phi.encode(typed)) == typed.strip()
    assert phi.conversation([(typed, typed)]).input_ids.count(50256) == 1


@pytest.mark.realdata
@settings(max_examples=200, deadline=None)
@given(text=printable)
def test_phi2_decoding_gives_the_text_back(phi: PromptTemplate, text: str) -> None:
    assert phi.decode(phi.encode(text)) == text.strip()


@pytest.mark.realdata
def test_phi2_agrees_with_transformers(phi: PromptTemplate, realdata: Path) -> None:
    from transformers import CodeGenTokenizer

    source = realdata / "tokenizers" / "codegen_rebuilt"
    theirs = CodeGenTokenizer.from_pretrained(source, local_files_only=True)
    for text in (*TEXTS, "A man's   two dogs don't  run.\n\n1234"):
        assert phi.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.realdata
def test_phi2_ids_of_real_conversations_are_the_same_word_by_word(
    phi: PromptTemplate, realdata: Path
) -> None:
    import json

    assert splits_at_blanks(phi.tokenizer)
    words, records = WordTokenizer(phi.tokenizer), 0
    for path in (realdata / "instruct").glob("*.json"):
        for record in json.loads(path.read_text("utf-8")):
            records += 1
            for turn in record["conversations"]:
                ids = words.encode(turn["value"], add_special_tokens=False).ids
                assert ids == phi.encode(turn["value"])
    assert records > 100


def test_a_model_without_its_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        PromptTemplate.load(tmp_path, 0, "", "")


# -- a tokenizer with its own control tokens ----------------------------------------------------

CHAT = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> PromptTemplate:
    """A template in the form that SmolLM2 was trained on."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer([*TEXTS, "user assistant\n"], 320, folder)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    return PromptTemplate.load(folder, end, *CHAT)


def test_control_tokens_of_prefixes_are_what_they_mean(chat: PromptTemplate) -> None:
    start, end = (chat.tokenizer.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    tokens = chat.conversation([("how many?", "two")])
    user, assistant = chat.encode("user\nhow many?"), chat.encode("assistant\n")
    asked = [start, *user, end, *chat.encode("\n"), start, *assistant]
    assert tokens.input_ids == [*asked, *chat.encode("two"), end]
    assert tokens.supervised == [False] * len(asked) + [True] * (len(tokens) - len(asked))
    assert chat.question("how many?") == asked


def test_it_is_transformers_own_chat_template(chat: PromptTemplate) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=chat.tokenizer)
    theirs.chat_template = (
        "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
    )
    chat.tokenizer.encode_special_tokens = False
    asked = [{"role": "user", "content": "how many?"}]
    expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    chat.tokenizer.encode_special_tokens = True
    assert chat.question("how many?") == expected


@given(printable)
@settings(max_examples=50)
def test_no_text_becomes_control_between_control_tokens(chat: PromptTemplate, text: str) -> None:
    controls = {chat.tokenizer.token_to_id(part) for part in ("<|im_start|>", "<|im_end|>")}
    typed = f"{text}<|im_end|>"
    plain = [i for i in chat.question(typed) if i in controls]
    assert len(plain) == 3  # those of the prefixes
    assert not controls & set(chat.caption(typed).input_ids[:-1])


# Several images


@pytest.mark.parametrize(
    ("text", "more", "rest"),
    [
        ("<image>\nWhat is it?", 0, "What is it?"),
        ("What is it?\n<image>", 0, "What is it?"),
        ("<image> <image>\nWhat differs?", 1, "What differs?"),
        ("<image><image>Is it like <image>?", 1, f"Is it like {IMAGE_MARK}?"),
        ("Is <image> like <image>?", 0, f"Is like {IMAGE_MARK}?"),
        ("A <image> B <image> C <image>", 0, f"A B {IMAGE_MARK} C {IMAGE_MARK}"),
        ("No image", 0, "No image"),
    ],
)
def test_images_before_a_text_stand_in_front_of_the_conversation(
    text: str, more: int, rest: str
) -> None:
    assert placed(text) == (more, rest)


def test_a_further_image_is_one_place_that_is_no_target(template: PromptTemplate) -> None:
    tokens = template.conversation([(f"Is it like {IMAGE_MARK} here?", "Yes."), ("So?", "No.")], 2)
    plain = template.conversation([("Is it like  here?", "Yes."), ("So?", "No.")])
    assert tokens.input_ids.count(IMAGE) == 3
    assert tokens.input_ids[:2] == [IMAGE, IMAGE]
    assert not any(
        trained
        for number, trained in zip(tokens.input_ids, tokens.supervised, strict=True)
        if number == IMAGE
    )
    assert targets(template, tokens) == targets(template, plain)
    before, after = f"{USER}Is it like ", f" here?{ASSISTANT}"
    start = [IMAGE, IMAGE, *template.encode(before), IMAGE, *template.encode(after)]
    assert tokens.input_ids[: len(start)] == start
    history = [(f"Is it like {IMAGE_MARK} here?", "Yes.")]
    assert tokens.input_ids[: -len(template.answer("No.")) - 1] == template.question(
        "So?", history, more=2
    )


@settings(max_examples=100, deadline=None)
@given(text=printable)
def test_nobody_can_write_the_mark_of_an_image(template: PromptTemplate, text: str) -> None:
    assert IMAGE not in template.question(f"{text}{MARKER}", [(text, text)])
