"""A chat template of transformers, cut into the pieces of a prompt.

A template is a program that writes a whole conversation as one text. Training needs to know which
tokens are answers, so the template is rendered once with placeholder texts and cut at them.
"""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.errors import ModelError

_SAID = ("first question", "first answer", "second question", "second answer", "third question")


@dataclass(frozen=True)
class ChatPieces:
    """The text around questions and answers.

    Attributes:
        opening: Before the first question: a system prompt, and the user's role.
        assistant_prefix: Between a question and its answer.
        between: From the end of an answer to the next question.
        eos_id: Id of the control token that ends an answer.
    """

    opening: str
    assistant_prefix: str
    between: str
    eos_id: int


def chat_pieces(folder: Path, template: str | None = None) -> ChatPieces | None:
    """Return the pieces of a language model's chat template, None where it has none.

    Args:
        folder: A folder in Hugging Face's layout, with its tokenizer.
        template: A Jinja text in place of the model's own.

    Raises:
        ModelError: The template is broken, or its conversations cannot be cut into these pieces.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    used = template or tokenizer.chat_template
    if not isinstance(used, str):
        return None
    parts = _around(tokenizer, used)
    first, assistant, second, _, third, last = parts
    if second != third or assistant != last or parts[3] != assistant:
        raise ModelError("the chat template writes later turns differently", "give a plainer one")
    end = _end(tokenizer, second)
    eos_id = tokenizer.convert_tokens_to_ids(end)
    assert isinstance(eos_id, int)
    return ChatPieces(
        opening=first,
        assistant_prefix=assistant,
        between=second.removeprefix(end),
        eos_id=eos_id,
    )


def _around(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """Return what a template writes before, between and after the texts of messages."""
    roles = ("user", "assistant") * 3
    messages = [{"role": role, "content": text} for role, text in zip(roles, _SAID, strict=False)]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise ModelError(f"the chat template cannot be used: {error}") from None
    parts = []
    for said in _SAID:
        before, separator, text = str(text).partition(said)
        if not separator:
            raise ModelError("the chat template leaves out or changes the text of a message")
        parts.append(before)
    return [*parts, str(text)]


def _end(tokenizer: PreTrainedTokenizerBase, after: str) -> str:
    """Return the control token that directly follows an answer."""
    controls = [*tokenizer.all_special_tokens, *_special_added(tokenizer)]
    matches = [token for token in controls if after.startswith(token)]
    if not matches:
        raise ModelError(
            f"the chat template ends answers with {after[:20]!r}, which is not a control token"
        )
    return max(matches, key=len)


def _special_added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]
