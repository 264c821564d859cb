"""What a visitor can set on the page: how answers are written, and which models write them."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from flows.chat.talk import Talk

NONE = ("no other", "")


def setting_inputs(talk: Talk) -> list[Any]:
    """Return temperature, longest answer, beams and seed, not yet on the page."""
    card, limits = talk.card, talk.limits
    longest = talk.models.get().most_tokens(limits.answer_tokens)
    return [
        gr.Slider(
            0,
            limits.temperature,
            0,
            step=0.05,
            label="Temperature",
            info="0 writes the likeliest text. Above 0 words are drawn, more freely the higher.",
            render=False,
        ),
        gr.Slider(
            1,
            longest,
            card["max_new_tokens"],
            step=1,
            label="Longest answer, in tokens",
            render=False,
        ),
        gr.Slider(
            1,
            max(limits.beams, card["beams"]),
            card["beams"],
            step=1,
            label="Beams",
            info="Texts searched side by side, at temperature 0 only. With 2 or more the answer "
            "appears when it is whole.",
            render=False,
        ),
        gr.Textbox(  # gr.Number shows 0 where it is empty
            label="Seed",
            placeholder="another one for each answer",
            info="Above temperature 0, the same seed gives the same answer.",
            max_length=10,
            render=False,
        ),
    ]


def read_settings(temperature: Any, tokens: Any, beams: Any, seed: str | None) -> tuple[Any, ...]:
    """Return the values of `setting_inputs` as `settings_for` takes them: an empty seed is None."""
    seed = (seed or "").strip()
    return temperature, tokens, beams, int(seed) if seed.isdecimal() else seed or None


def model_inputs(talk: Talk) -> list[gr.Dropdown]:
    """Add the choice of the model and of one to compare it with, where there are several."""
    choices = talk.models.choices
    if len(choices) < 2:
        return []
    with gr.Row(elem_id="models"):
        return [
            gr.Dropdown(
                choices, value=choices[0][1], label="Model", filterable=False, min_width=220
            ),
            gr.Dropdown(
                [NONE, *choices],
                value="",
                label="Compare with",
                filterable=False,
                min_width=220,
            ),
        ]


def own_settings(talk: Talk, model: str) -> Sequence[Any]:
    """Load a model that was chosen, and return the sliders of tokens and beams as its card says.

    Raises:
        ChatError: It cannot be loaded.
    """
    assistant = talk.models.get(model)
    card = assistant.card
    return (
        gr.Slider(
            maximum=assistant.most_tokens(talk.limits.answer_tokens), value=card["max_new_tokens"]
        ),
        gr.Slider(maximum=max(talk.limits.beams, card["beams"]), value=card["beams"]),
    )
