"""The prompt of a question about images, after what was said before, as far as there is room."""

from collections.abc import Sequence

from model.errors import ModelError
from model.prompt import IMAGE_MARK, MARKER, PromptTemplate, placed

Turn = tuple[str, str]  # question and answer


def asked_ids(
    template: PromptTemplate, question: str, history: Sequence[Turn], images: int, room: int
) -> list[int]:
    """Return the token ids after which the answer to a question is written.

    Questions are in one line, as in training. The oldest turns are left out where not all fit.

    Args:
        template: The layout of text.
        question: What to answer.
        history: Earlier questions with their answers.
        images: How many images the conversation is about. They stand in front of it; a first
            question that has a `MARKER` for each of several images has them where it says so.
        room: Tokens that fit.

    Raises:
        ModelError: The question alone does not fit, or has another number of markers.
    """
    turns = [(" ".join(text.split()), answer) for text, answer in (*history, (question, ""))]
    further = max(images - 1, 0)
    more, first = further, turns[0][0]
    if further and MARKER in first:
        more, first = placed(first)
        turns[0] = (first, turns[0][1])
    if (named := more + first.count(IMAGE_MARK)) != further:
        raise ModelError(
            f"the question says {MARKER} {named + 1} times and there are {images} images",
            "say it once for each, or not at all",
        )
    ids: list[int] = []
    for oldest in range(len(turns)):
        ids = template.question(turns[-1][0], turns[oldest:-1], more)
        # A first question that names images stays, since they are shown in it.
        if len(ids) <= room or IMAGE_MARK in turns[oldest][0]:
            break
    if len(ids) > room:
        raise ModelError(
            f"the question is too long: it has {len(ids)} tokens and {room} fit", "shorten it"
        )
    return ids


def is_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; lone surrogates, as in argv, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
