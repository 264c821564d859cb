"""The page of the chat, in Gradio: a conversation, one line to write in, what the model is.

Everything comes from this server: fonts are the system's own, text is shown as it is and not as
Markdown, so that no answer or question makes a browser fetch anything.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from flows.chat.launching import theme
from flows.chat.talk import ChatError, Reply, Talk

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CSS = """
.gradio-container { max-width: none !important; margin: 0 !important; }
.gradio-container > .main { width: 100%; max-width: 960px !important; margin: 0 auto; }
#head h1 { margin: 0; font-size: 1.35rem; }
#head p { margin: 2px 0 0; opacity: .75; }
#unlike p { margin: 0; padding: 6px 10px; border-left: 4px solid #d97706; }
#talk img { max-height: 220px; width: auto; }
#talk button[title="Share"] { display: none; }
#line [data-testid="status-tracker"]:has(.validation-error) { position: static !important; }
#line [data-testid="status-tracker"]:has(> .error) { display: none; }  /* the notice says it */
#line .validation-error { position: static; font-weight: 500; }
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
    limits = talk.limits
    name = str(talk.assistant.card["name"])
    with gr.Blocks(title=name, analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"# {name}\nAdd or paste an image, then ask about it.", elem_id="head")
        # A warning or "": above the conversation, and the last value of the API's JSON.
        unlike = gr.Markdown(elem_id="unlike", sanitize_html=True)
        conversation = _conversation(examples)
        conversation.clear(lambda: "", outputs=unlike, api_visibility="private")
        chat = gr.ChatInterface(
            _answering(talk),
            multimodal=True,
            chatbot=conversation,
            additional_outputs=unlike,
            textbox=_line(),
            examples=[{"text": question, "files": [path]} for path, question in examples] or None,
            example_labels=[question for _, question in examples] or None,
            cache_examples=False,
            validator=_checking(talk),
            concurrency_limit=limits.at_once,
            analytics_enabled=False,
            flagging_mode="never",
            api_name="chat",
            api_description="Answers a question about an image, then warns of an unusual one.",
        )
        _looking(talk, chat)
        with gr.Accordion("About this model", open=False, elem_id="about"):
            gr.Markdown(_card(talk), sanitize_html=True)
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
    return page


def look() -> dict[str, Any]:
    """Return theme and style, which Gradio takes when it starts to serve."""
    return {"theme": theme(), "css": _CSS}


def _conversation(examples: Sequence[tuple[str, str]]) -> gr.Chatbot:
    hint = "Add an image below" + (", or try one of these." if examples else ".")
    return gr.Chatbot(
        elem_id="talk",
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


def _line() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        elem_id="line",
        show_label=False,
        placeholder="Add an image, then ask",
        file_types=["image"],
        file_count="single",
        sources=["upload"],
        max_lines=6,
        max_plain_text_length=100_000,  # longer text would silently become a file
        submit_btn=True,
        stop_btn=True,
        autofocus=True,
    )


def _answering(talk: Talk) -> Any:
    def answer(message: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[Reply]:
        try:
            yield from talk.answer(message.get("text") or "", message.get("files") or [], history)
        except ChatError as error:
            raise gr.Error(str(error), title="Not answered", print_exception=False) from None

    return answer


def _looking(talk: Talk, chat: gr.ChatInterface) -> None:
    """Add a button that shows which patches mattered for the words of the newest answer."""
    button = gr.Button("Where it looked", size="sm", variant="secondary", elem_id="where")
    shown = gr.Image(
        elem_id="looked",
        format="jpeg",
        label="For each word, the patches that mattered",
        show_label=False,  # it would cover the first word
        visible=False,
        interactive=False,
        buttons=[],
    )

    def look(history: list[dict[str, Any]]) -> Any:
        try:
            return gr.Image(talk.look(history), visible=True)
        except ChatError as error:
            raise gr.Error(str(error), title="Not shown", print_exception=False) from None

    button.click(look, chat.chatbot, shown, api_name="look", concurrency_limit=1)
    # The overlays of one answer must not be shown below the next one.
    gr.on(
        [chat.textbox.submit, chat.chatbot.clear],
        lambda: gr.Image(visible=False),
        None,
        shown,
        queue=False,
        api_visibility="private",
    )


def _checking(talk: Talk) -> Any:
    def check(message: dict[str, Any]) -> dict[str, Any]:
        try:
            talk.check(message.get("text") or "", message.get("files") or [])
        except ChatError as error:
            return gr.validate(False, str(error))
        return gr.validate(True, "")

    return check


def _card(talk: Talk) -> str:
    path = talk.assistant.folder / "README.md"
    if not path.is_file():
        return "This bundle has no card."
    return _FRONT_MATTER.sub("", path.read_text("utf-8"))
