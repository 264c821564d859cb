"""The conversations on the page: one, and a second one beside it for another model."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from flows.chat.answering import Message
from flows.chat.talk import Talk


def conversation(elem_id: str, hint: str) -> gr.Chatbot:
    """Return a conversation whose text is shown as it is.

    Args:
        elem_id: Its name in the page.
        hint: What it says while it is empty.
    """
    return gr.Chatbot(
        elem_id=elem_id,
        elem_classes="talk",
        show_label=False,
        placeholder=hint,
        scale=1,
        min_height=320,
        height="60vh",
        render_markdown=False,
        sanitize_html=True,
        latex_delimiters=[],
        allow_tags=False,
        feedback_options=None,
        allow_file_downloads=False,
        buttons=["copy"],
    )


def put_beside(
    talk: Talk, chat: gr.ChatInterface, beside: gr.Chatbot, models: Sequence[gr.Dropdown]
) -> None:
    """Show the second conversation beside the first one, below it on a phone, while one is chosen.

    Args:
        talk: Has the models' names.
        chat: The first conversation with its line.
        beside: The second one.
        models: The choice of the first model and that of the second.
    """
    area = chat.chatbot.parent  # ChatInterface has no place for it, so its column gets a row
    assert area is not None
    chat.chatbot.unrender()
    beside.unrender()
    with area, gr.Row(equal_height=True) as row:
        with gr.Column(min_width=320):
            chat.chatbot.render()
        with gr.Column(min_width=320, visible=False) as column:
            beside.render()
    area.children.remove(row)
    area.children.insert(0, row)  # above the line

    def show(model: str, other: str) -> Any:
        return (
            gr.Chatbot(label=talk.models.label(model), show_label=bool(other)),
            gr.Chatbot(label=talk.models.label(other), show_label=True),
            gr.Column(visible=bool(other)),
        )

    for choice in models:
        choice.change(
            show, models, [chat.chatbot, beside, column], api_visibility="private", queue=False
        )
    # Another model has not said what stands there.
    gr.on(
        [models[1].change, chat.chatbot.clear],
        list,
        None,
        beside,
        api_visibility="private",
        queue=False,
    )
    chat.chatbot.undo(_without_newest, beside, beside, api_visibility="private", queue=False)


def _without_newest(messages: list[Message]) -> list[Message]:
    """Return a conversation without its last question and the answer."""
    asked = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    return messages[: asked[-1]] if asked else []
