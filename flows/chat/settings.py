"""How an answer is written, as a visitor may choose it; checked here, whatever the page allows."""

import secrets
from dataclasses import dataclass
from typing import Any

from flows.chat.errors import ChatError
from flows.chat.limits import Limits
from model.assistant import Assistant
from model.bundle import decoding_of
from model.generation_configs import GenerationConfig, TopPConfig

SEEDS = 2**31


@dataclass(frozen=True)
class AnswerSettings:
    """How an answer is written.

    Attributes:
        temperature: 0 searches for the likeliest text; above, each token is drawn from the whole
            distribution, its logits divided by this.
        tokens: Tokens after which the answer is cut.
        beams: Texts searched side by side at temperature 0; not used above.
        seed: Of the draws: the same message with the same settings gets the same answer.
    """

    temperature: float
    tokens: int
    beams: int
    seed: int

    @property
    def decoding(self) -> GenerationConfig:
        """The settings as generation takes them."""
        if not self.temperature:
            return decoding_of(self.beams)
        return TopPConfig(top_p=1.0, temperature=self.temperature, seed=self.seed)


def settings_for(
    assistant: Assistant,
    limits: Limits,
    temperature: Any = None,
    tokens: Any = None,
    beams: Any = None,
    seed: Any = None,
) -> AnswerSettings:
    """Return settings within the limits; where one is None, the model's own, and a new seed.

    Raises:
        ChatError: One is not a number, or outside its limits.
    """
    card = assistant.card
    longest, widest = assistant.most_tokens(limits.answer_tokens), max(limits.beams, card["beams"])
    return AnswerSettings(
        temperature=_number("temperature", temperature, 0, 0, limits.temperature),
        tokens=_whole("longest answer in tokens", tokens, card["max_new_tokens"], 1, longest),
        beams=_whole("number of beams", beams, card["beams"], 1, widest),
        seed=_whole("seed", seed, secrets.randbelow(SEEDS), 0, SEEDS - 1),
    )


def _number(what: str, value: Any, own: float, least: float, most: float) -> float:
    """Return a number within its limits, its own value where it is None."""
    value = own if value is None else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise ChatError(f"The {what} must be a number from {least:,} to {most:,}.")
    return float(value)


def _whole(what: str, value: Any, own: int, least: int, most: int) -> int:
    number = _number(what, value, own, least, most)
    if number != int(number):
        raise ChatError(f"The {what} must be a whole number from {least:,} to {most:,}.")
    return int(number)
