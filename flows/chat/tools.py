"""What the page offers about the newest answer, and the same answers for programs."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from flows.chat.answering import Message, UsedAt, answer_program
from flows.chat.curl import curl_commands
from flows.chat.errors import ChatError
from flows.chat.history import newest_of
from flows.chat.talk import Talk

# The last input is replaced by the address at which this browser sees the page.
_HERE = "(...inputs) => [...inputs.slice(0, -1), location.origin + location.pathname]"
_COPY = "text => { navigator.clipboard?.writeText(text); }"


def refusing(function: Callable[..., Any], title: str) -> Callable[..., Any]:
    """Return a function that shows a ChatError to the visitor as a notice.

    Args:
        function: Called by an event.
        title: Of the notice.
    """

    @wraps(function)  # Gradio reads from the signature whether the request is asked for
    def called(*inputs: Any) -> Any:
        try:
            return function(*inputs)
        except ChatError as error:
            raise gr.Error(str(error), title=title, print_exception=False) from None

    return called


def add_program(talk: Talk) -> None:
    """Add the endpoint `/chat` for programs, which keeps no conversation: all of it is sent."""

    def chat(
        message: dict,
        earlier: list | None = None,
        model: str = "",
        temperature: float = 0.0,
        tokens: int | None = None,
        beams: int | None = None,
        seed: int | None = None,
    ) -> Iterator[dict]:
        try:
            wanted = (temperature, tokens, beams, seed)
            yield from answer_program(talk, message, earlier, model, wanted)
        except ChatError as error:
            raise gr.Error(str(error), title="Not answered", print_exception=False) from None

    gr.api(
        chat,
        api_name="chat",
        api_description="Answers a question about an image, and warns of an unusual image.",
        concurrency_limit=talk.limits.at_once,
    )


def add_tools(
    talk: Talk, chat: gr.ChatInterface, used: gr.State, beside: gr.Chatbot | None
) -> None:
    """Add buttons about the newest answer.

    Args:
        talk: Answers.
        chat: The conversation.
        used: How its answers were written, a `UsedAt`.
        beside: The second model's conversation.
    """
    with gr.Row():
        where = gr.Button("Where it looked", size="sm", elem_id="where")
        curl = gr.Button("Copy as curl", size="sm", elem_id="copy-curl")
    _show_where(where, talk, chat, used)
    _show_curl(curl, talk, chat, used, beside)


def _show_where(button: gr.Button, talk: Talk, chat: gr.ChatInterface, used: gr.State) -> None:
    """Show which patches mattered for the words of the newest answer."""
    shown = gr.Image(
        elem_id="looked",
        format="jpeg",
        label="For each word, the patches that mattered",
        show_label=False,  # it would cover the first word
        visible=False,
        interactive=False,
        buttons=[],
    )

    def look(history: list[Message], used: UsedAt | None) -> Any:
        newest = newest_of(history)
        own = (used or {}).get(newest.turn) if newest else None
        return gr.Image(talk.look(history, own.model if own else ""), visible=True)

    button.click(
        refusing(look, "Not shown"),
        [chat.chatbot, used],
        shown,
        api_name="look",
        concurrency_limit=1,
    )
    _hide_with_its_answer(chat, shown)


def _show_curl(
    button: gr.Button,
    talk: Talk,
    chat: gr.ChatInterface,
    used: gr.State,
    beside: gr.Chatbot | None,
) -> None:
    """Copy the newest answer as a curl command, and show it for browsers that refuse to copy."""
    address = gr.Textbox(visible=False)
    shown = gr.Textbox(
        elem_id="curl",
        label="The same answer from a terminal",
        lines=3,
        max_lines=12,
        visible=False,
        interactive=False,
        buttons=["copy"],
    )

    def command(
        history: list[Message],
        second: list[Message] | None,
        used: UsedAt | None,
        address: str,
        request: gr.Request,
    ) -> Any:
        return gr.Textbox(
            curl_commands(
                talk.models, history, second or [], used or {}, address, request.username
            ),
            visible=True,
        )

    button.click(
        refusing(command, "Not copied"),
        [chat.chatbot, gr.State() if beside is None else beside, used, address],
        shown,
        js=_HERE,
        api_visibility="private",
    ).success(None, shown, None, js=_COPY, api_visibility="private")
    _hide_with_its_answer(chat, shown)


def _hide_with_its_answer(chat: gr.ChatInterface, shown: Any) -> None:
    """Hide what is about one answer when another one becomes the newest."""
    bot = chat.chatbot
    gr.on(
        [chat.textbox.submit, bot.clear, bot.undo, bot.retry],
        lambda: type(shown)(visible=False),
        None,
        shown,
        queue=False,
        api_visibility="private",
    )
