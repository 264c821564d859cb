"""Which patches mattered for each word of an answer, and where they are in the image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from model.asked import Turn, is_text
from model.assistant import Assistant
from model.decoding import decode_image
from model.errors import ModelError
from model.importance import importance_map
from model.patch_grid import Explanation
from model.prompt import PromptTemplate
from model.view import view_of


def explain(
    assistant: Assistant,
    data: bytes,
    question: str | None,
    answer: str,
    history: Sequence[Turn] = (),
) -> Explanation:
    """Return where an assistant looked for an answer that it gave.

    The answer is encoded anew, so only its text is needed.

    Raises:
        ModelError: The answer has no word, is too long or not valid text, or the patches form no
            square.
        BadImageError: The image cannot be used.
    """
    if not answer.strip():
        raise ModelError("the answer has no word that could be explained")
    if not is_text(answer):
        raise ModelError("the answer has an incomplete character", "write it as UTF-8 text")
    template = assistant.template
    if question is None:
        prompt, ids = template.caption_prompt, template.captioned(answer)
    else:
        prompt, ids = assistant.prompt(question, history), template.answer(answer)
    importance = importance_map(assistant.vlm, assistant.see(data), prompt, ids)
    image = decode_image(data, assistant.card["max_pixels"])
    words, maps = by_word(template, ids, importance)
    return Explanation(words, maps, view_of(assistant.encoders.first.preprocess, *image.size))


def by_word(
    template: PromptTemplate, ids: Sequence[int], tokens: Float32[Tensor, "token patch"]
) -> tuple[list[str], Float32[np.ndarray, "word patch"]]:
    """Return the words of a text and for each the sum over its tokens.

    A token belongs to the word that it ends in, a token of blanks to the next word, so the sum is
    how much less likely the word gets.

    Args:
        template: The template whose tokenizer made the ids.
        ids: Token ids of the text.
        tokens: The importance of each patch for each of them.
    """
    words = template.decode(ids).split()
    maps = np.zeros((len(words), tokens.shape[1]), np.float32)
    for number, values in enumerate(tokens.numpy() if words else ()):
        text = template.tokenizer.decode(list(ids[: number + 1]), skip_special_tokens=True)
        begun = len(f"{text}.".split())
        maps[min(begun, len(words)) - 1] += values
    return words, maps
