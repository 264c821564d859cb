"""Chat templates of many families: our prompts are token by token what transformers writes."""

from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from model.chat_template import chat_pieces
from model.errors import ModelError
from model.prompt import PromptTemplate
from model.tiny_phi import train_tokenizer

# In the manner of the families' own templates, written for these tests.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>"
    "\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ROLES = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INSTRUCT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
FAMILIES = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": (
        HEADERS,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": (TURNS, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "phi3": (ROLES, ("<|user|>", "<|assistant|>", "<|end|>")),
}
CONVERSATION = [
    ("how many dogs are there?", "two dogs"),
    ("what colour?", "one is red"),
    ("why?", "it was painted"),
]
TEXTS = [text for turn in CONVERSATION for text in turn]


def saved(folder: Path, template: str | None, controls: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Write a byte-level tokenizer with control tokens and a chat template; return it."""
    tokenizer = train_tokenizer([*TEXTS, "You are a helpful assistant. user model"], 300, folder)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in controls])
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=controls[0], eos_token=controls[-1]
    )
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return theirs


def template_of(folder: Path) -> PromptTemplate:
    pieces = chat_pieces(folder)
    assert pieces is not None
    return PromptTemplate.load(folder, user_prefix="", **vars(pieces))


def by_transformers(
    theirs: PreTrainedTokenizerFast, turns: list[tuple[str, str]], question: str = ""
) -> list[int]:
    messages = []
    for asked, answered in turns:
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    if question:
        messages.append({"role": "user", "content": question})
    return theirs.apply_chat_template(
        messages, add_generation_prompt=bool(question), return_dict=False
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_conversation_is_what_transformers_writes(
    tmp_path: Path, family: str, turns: int
) -> None:
    theirs = saved(tmp_path, *FAMILIES[family])
    template = template_of(tmp_path)
    ours, expected = (
        template.conversation(CONVERSATION[:turns]),
        by_transformers(theirs, CONVERSATION[:turns]),
    )
    # Theirs may go on after the last end, with what stands before another turn.
    assert ours.input_ids == expected[: len(ours)]
    assert ours.input_ids[-1] == template.eos_id
    assert template.eos_id not in expected[len(ours) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", [0, 2])
def test_what_the_chat_sends_is_what_transformers_writes(
    tmp_path: Path, family: str, turns: int
) -> None:
    theirs = saved(tmp_path, *FAMILIES[family])
    asked = template_of(tmp_path).question("is it cold?", CONVERSATION[:turns])
    assert asked == by_transformers(theirs, CONVERSATION[:turns], "is it cold?")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_answers_and_their_ends_are_targets(tmp_path: Path, family: str) -> None:
    saved(tmp_path, *FAMILIES[family])
    template = template_of(tmp_path)
    tokens = template.conversation(CONVERSATION)
    targets = [i for i, target in zip(tokens.input_ids, tokens.supervised, strict=True) if target]
    answers = [[*template.encode(answer), template.eos_id] for _, answer in CONVERSATION]
    assert targets == [number for answer in answers for number in answer]


def test_what_training_saw_is_what_the_chat_sends(tmp_path: Path) -> None:
    saved(tmp_path, *FAMILIES["chatml"])
    template = template_of(tmp_path)
    trained = template.conversation(CONVERSATION).input_ids
    sent = template.question(CONVERSATION[2][0], CONVERSATION[:2])
    assert trained[: len(sent)] == sent


def test_a_given_template_counts_in_place_of_the_models_own(tmp_path: Path) -> None:
    saved(tmp_path, *FAMILIES["chatml"])
    given = chat_pieces(tmp_path, CHATML.replace("helpful", "curious"))
    assert given is not None
    assert given.opening.startswith("<|im_start|>system\nYou are a curious assistant.<|im_end|>\n")


def test_a_model_without_a_template_has_no_pieces(tmp_path: Path) -> None:
    saved(tmp_path, None, ("<|im_start|>", "<|im_end|>"))
    assert chat_pieces(tmp_path) is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0] ", "cannot be used"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "is not a control token"),
        ("<|im_start|>{{ messages[0]['content'] }}", "leaves out or changes"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "leaves out or changes"),
        (INSTRUCT, "later turns differently"),
    ],
    ids=["broken", "bare", "one", "upper", "instruct"],
)
def test_a_template_of_another_kind_is_refused(tmp_path: Path, template: str, words: str) -> None:
    saved(tmp_path, template, ("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ModelError, match=words):
        chat_pieces(tmp_path)
