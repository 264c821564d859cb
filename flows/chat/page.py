"""The page of the chat, in Gradio: a conversation, one line to write in, what the model is.

Everything comes from this server: fonts are the system's own, text is shown as it is and not as
Markdown, so that no answer or question makes a browser fetch anything.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from flows.chat.answering import Message, UsedAt, answer_on_page
from flows.chat.beside import conversation, put_beside
from flows.chat.controls import model_inputs, own_settings, read_settings, setting_inputs
from flows.chat.errors import ChatError
from flows.chat.launching import theme
from flows.chat.talk import Talk
from flows.chat.tools import add_program, add_tools, refusing
from model.assistant import Assistant

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CSS = """
.gradio-container { max-width: none !important; margin: 0 !important; }
.gradio-container > .main { width: 100%; max-width: 960px !important; margin: 0 auto; }
#head h1 { margin: 0; font-size: 1.35rem; }
#head p { margin: 2px 0 0; opacity: .75; }
#unlike p { margin: 0; padding: 6px 10px; border-left: 4px solid #d97706; }
.talk img { max-height: 220px; width: auto; }
.talk button[title="Share"] { display: none; }
#line [data-testid="status-tracker"]:has(.validation-error) { position: static !important; }
#line [data-testid="status-tracker"]:has(> .error) { display: none; }  /* the notice says it */
#line .validation-error { position: static; font-weight: 500; }
#models input { text-overflow: ellipsis; padding-right: 2rem; }
[data-testid="min-value"], [data-testid="max-value"] { color: inherit !important; }
#curl textarea { font-family: ui-monospace, monospace; font-size: .8rem; }
#about h1 { font-size: 1.2rem; margin-top: 10px; }
#about h2 { font-size: 1.05rem; }
#about table { display: block; overflow-x: auto; border: 0; font-size: .8rem; }
#about th, #about td { white-space: nowrap; padding: 4px 6px; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 12px 12px 4px !important; }
  #head p { font-size: .85rem; }
}
"""


def build_page(talk: Talk, examples: Sequence[tuple[str, str]]) -> gr.Blocks:
    """Return the page.

    Args:
        talk: What answers the messages.
        examples: Path of an image and a question about it, to try with one click.
    """
    limits, name = talk.limits, str(talk.card["name"])
    hint = "Add an image below" + (", or try one of these." if examples else ".")
    with gr.Blocks(title=name, analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"# {name}\n{_invitation(talk)}", elem_id="head")
        models, settings = model_inputs(talk), setting_inputs(talk)
        # A warning or "": above the conversation.
        unlike, used = gr.Markdown(elem_id="unlike", sanitize_html=True), gr.State()
        beside = conversation("beside", "") if models else None
        others = [] if beside is None else [*models, beside]
        chat = gr.ChatInterface(
            _answering(talk, len(settings), with_beside=beside is not None),
            multimodal=True,
            chatbot=conversation("talk", hint),
            additional_inputs=[used, *settings, *others],
            additional_inputs_accordion=gr.Accordion(
                "Settings", open=False, elem_id="settings", render=False
            ),
            additional_outputs=[unlike, used, *others[2:]],
            textbox=_line(several=talk.models.get().most_images > 1),
            examples=[[{"text": question, "files": [path]}] for path, question in examples] or None,
            example_labels=[question for _, question in examples] or None,
            cache_examples=False,
            validator=_checking(talk),
            concurrency_limit=limits.at_once,
            analytics_enabled=False,
            flagging_mode="never",
            api_visibility="private",
        )
        chat.chatbot.clear(lambda: "", outputs=unlike, api_visibility="private")
        add_program(talk)
        add_tools(talk, chat, used, beside)
        with gr.Accordion("About this model", open=False, elem_id="about"):
            about = gr.Markdown(_card(talk.models.get()), sanitize_html=True)
        if beside is not None:
            put_beside(talk, chat, beside, models)
            _follow(talk, models[0], [*settings[1:3], about])
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
    return page


def look() -> dict[str, Any]:
    """Return theme and style, which Gradio takes when it starts to serve."""
    return {"theme": theme(), "css": _CSS}


def _invitation(talk: Talk) -> str:
    if talk.models.get().text_only:
        return "Ask something, or add or paste an image and ask about it."
    return "Add or paste an image, then ask about it."


def _line(*, several: bool) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        elem_id="line",
        show_label=False,
        placeholder=f"Add {'images' if several else 'an image'}, then ask",
        file_types=["image"],
        file_count="multiple" if several else "single",
        sources=["upload"],
        max_lines=6,
        max_plain_text_length=100_000,  # longer text would silently become a file
        submit_btn=True,
        stop_btn=True,
        autofocus=True,
    )


def _answering(talk: Talk, settings: int, *, with_beside: bool) -> Any:
    """Return what ChatInterface calls with a message, its history and the additional inputs.

    Args:
        talk: Answers.
        settings: How many inputs are settings.
        with_beside: Whether the choice of models and the second conversation follow them.
    """

    def answer(
        message: Message, history: list[Message], used: UsedAt | None, *inputs: Any
    ) -> Iterator[tuple[Any, ...]]:
        wanted, others = read_settings(*inputs[:settings]), inputs[settings:]
        try:
            for shown in answer_on_page(talk, message, history, used, wanted, *others):
                yield shown if with_beside else shown[:3]
        except ChatError as error:
            raise gr.Error(str(error), title="Not answered", print_exception=False) from None

    return answer


def _follow(talk: Talk, model: gr.Dropdown, shown: Sequence[Any]) -> None:
    """Load a model when it is chosen, and show its limits and its card."""

    def follow(name: str) -> tuple[Any, ...]:
        return *own_settings(talk, name), _card(talk.models.get(name))

    model.change(
        refusing(follow, "Not loaded"),
        model,
        shown,
        show_progress_on=model,
        api_visibility="private",
    )


def _checking(talk: Talk) -> Any:
    def check(message: Message) -> dict[str, Any]:
        try:
            talk.check(message.get("text") or "", message.get("files") or [])
        except ChatError as error:
            return gr.validate(False, str(error))
        return gr.validate(True, "")

    return check


def _card(assistant: Assistant) -> str:
    path = assistant.folder / "README.md"
    if not path.is_file():
        return "This bundle has no card."
    return _FRONT_MATTER.sub("", path.read_text("utf-8"))
