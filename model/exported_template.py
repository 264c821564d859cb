"""A bundle's prompt template for programs that know Jinja: the texts around questions and answers.

Exports give the separator a token of its own, because such programs take token ids, not embeddings.
"""

import json

from tokenizers import Tokenizer

from model.errors import ModelError
from model.prompt import PromptTemplate

SEPARATOR = "<image_separator>"


def refuse_own_separator(tokenizer: Tokenizer) -> None:
    """Raise ModelError if a language model's tokenizer has a token of the separator's name."""
    if tokenizer.token_to_id(SEPARATOR) is not None:
        raise ModelError(f"the language model's tokenizer has a token {SEPARATOR} of its own")


def template_pieces(template: PromptTemplate) -> dict[str, str]:
    """Return the texts between questions and answers, by their names in the templates."""
    eos = template.tokenizer.id_to_token(template.eos_id)
    assert eos is not None
    return {
        "SEPARATOR": SEPARATOR,
        "OPENING": template.opening,
        "BETWEEN": template.between,
        "USER": template.user_prefix,
        "ASSISTANT": template.assistant_prefix,
        "BLANK": template._blank,
        "EOS": eos,
    }


def jinja_definitions(pieces: dict[str, str]) -> str:
    """Return lines of Jinja that define each piece as a variable."""
    return "".join(
        f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n"
        for name, text in pieces.items()
    )
