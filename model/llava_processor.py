"""The processor of an exported LLaVA: the token ids of `model.prompt`, by transformers alone.

The tokenizer is the bundle's own file with two more tokens and nothing that adds tokens by itself;
the chat template is written from the pieces of the `PromptTemplate`. `check_ids` compares both
before anything is exported, because some tokenizers split a text differently when it follows a
control token.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import ByteLevel
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from model.asked import Turn, asked_ids
from model.encoder import CONFIG
from model.errors import ModelError
from model.exported_template import (
    SEPARATOR,
    jinja_definitions,
    refuse_own_separator,
    template_pieces,
)
from model.llava import NewTokens
from model.prompt import MARKER, PromptTemplate

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
# OpenAI's, which open_clip takes where a config says nothing.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# The images of all messages stand in front. Questions are in one line, as in training. Without an
# image there is the separator alone, as where the model was trained on texts.
_CHAT = """\
{%- set shown = namespace(images=0) -%}
{%- for message in messages if message['content'] is not string -%}
  {%- for part in message['content'] if part['type'] == 'image' -%}
    {%- set shown.images = shown.images + 1 -%}
    {{- IMAGE -}}
  {%- endfor -%}
{%- endfor -%}
{%- if shown.images == 0 -%}{{- SEPARATOR -}}{%- endif -%}
{{- OPENING -}}
{%- for message in messages -%}
  {%- set said = message['content'] -%}
  {%- if said is not string -%}
    {%- set said = said | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {%- if not loop.first -%}{{- BETWEEN -}}{%- endif -%}
    {{- USER + said.split() | join(' ') + ASSISTANT -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- BLANK + said + EOS -}}
  {%- else -%}
    {{- raise_exception('only user and assistant speak: training has fixed any system prompt') -}}
  {%- endif -%}
{%- endfor -%}
"""


def build_processor(folder: Path, template: PromptTemplate) -> tuple[LlavaProcessor, NewTokens]:
    """Return the processor of a bundle, and the ids of its two new tokens.

    Raises:
        ModelError: The tokenizer has a token of the separator's name.
    """
    tokenizer = Tokenizer.from_file(str(folder / "lm" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    words = tokenizer.get_vocab_size()
    refuse_own_separator(tokenizer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (MARKER, SEPARATOR)]
    )
    eos = tokenizer.id_to_token(template.eos_id)
    image, separator = tokenizer.token_to_id(MARKER), tokenizer.token_to_id(SEPARATOR)
    assert eos is not None
    assert image is not None
    assert separator is not None
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=eos, padding_side="left"
    )
    vision = json.loads((folder / "clip" / CONFIG).read_text())
    processor = LlavaProcessor(
        image_processor=_image_processor(vision),
        tokenizer=wrapped,
        patch_size=vision["model_cfg"]["vision_cfg"]["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which `default` leaves out again
        image_token=MARKER,
        chat_template=_chat_template(template),
    )
    return processor, NewTokens(image, separator, words)


def _image_processor(config: dict[str, Any]) -> CLIPImageProcessor:
    """Return the image processor of an open_clip config."""
    side = config["model_cfg"]["vision_cfg"]["image_size"]
    preprocess = config.get("preprocess_cfg", {})
    mean, deviation = image_statistics(config)
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=_RESAMPLE[preprocess.get("interpolation", "bicubic")],
        image_mean=mean,
        image_std=deviation,
    )


def image_statistics(config: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return mean and deviation of an open_clip config, of red, green and blue from 0 to 1."""
    preprocess = config.get("preprocess_cfg", {})
    return list(preprocess.get("mean", _MEAN)), list(preprocess.get("std", _STD))


def _chat_template(template: PromptTemplate) -> str:
    """Return a Jinja text that writes conversations as the bundle was trained on them."""
    pieces = {"IMAGE": MARKER + SEPARATOR, **template_pieces(template)}
    return jinja_definitions(pieces) + _CHAT


_QUESTIONS = ("What is in the image?", "How many  are\nthere: 2 or 3?", "Wo ist die Tür — links?")
_ANSWERS = ("Two dogs.", "There are 3, on the left.")


def messages(question: str, history: Sequence[Turn], images: int) -> list[dict[str, Any]]:
    """Return a conversation about images as transformers writes one."""
    asked = [*history, (question, "")]
    said: list[dict[str, Any]] = []
    for number, (text, answer) in enumerate(asked):
        shown = [{"type": "image"}] * (images if number == 0 else 0)
        said.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
        if number < len(history):
            content = [{"type": "text", "text": answer}]
            said.append({"role": "assistant", "content": content})
    return said


def check_ids(processor: LlavaProcessor, tokens: NewTokens, template: PromptTemplate) -> None:
    """Compare the processor's token ids with those of training, of one turn and of several.

    Raises:
        ModelError: They differ.
    """
    history = list(zip(_QUESTIONS, _ANSWERS, strict=False))
    for turns in range(len(_QUESTIONS)):
        question, before = _QUESTIONS[turns], history[:turns]
        text = processor.apply_chat_template(messages(question, before, 1), tokenize=False)
        ids = processor.tokenizer(text).input_ids
        ours = asked_ids(template, question, before, 1, room=10**6)
        if ids != [tokens.image, tokens.separator, *ours]:
            raise ModelError(
                "the language model's tokenizer splits a text after a control token in another "
                "way than alone, so a LLaVA would be given other tokens than in training"
            )
