"""The body of a chat completion, and the question that its messages ask.

Only the fields that change an answer are read; others that clients send are ignored, and those
that ask for something else than one text are refused.
"""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from flows.serve.errors import RequestError
from flows.serve.files import PREFIX
from flows.serve.limits import ServeLimits
from model.prompt import MARKER

Turn = tuple[str, str]


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str


class UploadedFile(BaseModel):
    """An image that was uploaded before."""

    file_id: str = ""


class ContentPart(BaseModel):
    """A part of a message: text or an image."""

    type: Literal["text", "image_url", "file"]
    text: str = ""
    image_url: ImageUrl | str | None = None
    file: UploadedFile | None = None


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None


class ChatBody(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="ignore")

    messages: list[Message] = Field(min_length=1)
    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: int = Field(default=1, ge=1, le=1)
    logprobs: Literal[False] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        listed = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in listed if text]

    @property
    def with_usage(self) -> bool:
        """Whether a streamed answer ends with counts of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))


class Asked(NamedTuple):
    """What the messages ask.

    Attributes:
        question: The newest question.
        history: Earlier questions about the same images, with their answers.
        urls: The images, in order; an uploaded one by its id.
    """

    question: str
    history: list[Turn]
    urls: list[str]


def asked_by(messages: list[Message], limits: ServeLimits) -> Asked:
    """Return what a conversation asks.

    As in the chat, new images begin a new subject: what was said before them is left out. Several
    images of a message stand where they are between its texts. The text of system messages comes
    before the first question, because the assistant has learned no other place for it.

    Raises:
        RequestError: Roles do not alternate, or there are too many messages, images or characters.
    """
    if len(messages) > limits.messages:
        raise RequestError(f"at most {limits.messages} messages are taken", param="messages")
    system = [_read(each)[0] for each in messages if each.role in ("system", "developer")]
    rest = [each for each in messages if each.role not in ("system", "developer")]
    roles = ["user" if at % 2 == 0 else "assistant" for at in range(len(rest))]
    if not rest or [each.role for each in rest] != roles or rest[-1].role != "user":
        raise RequestError(
            "messages must alternate between user and assistant, and end with user's",
            param="messages",
        )
    read = [_read(each) for each in rest]
    first = max((at for at, (_, urls) in enumerate(read) if urls), default=0)
    texts, urls = [text for text, _ in read[first:]], read[first][1]
    texts[0] = "\n".join([*system, texts[0]])
    if len(urls) > limits.images:
        raise RequestError(f"at most {limits.images} images are taken", param="messages")
    if sum(map(len, texts)) > limits.characters:
        raise RequestError(f"at most {limits.characters} characters are taken", param="messages")
    history = list(zip(texts[:-1:2], texts[1:-1:2], strict=True))
    return Asked(texts[-1], history, urls)


def _read(message: Message) -> tuple[str, list[str]]:
    """Return a message's text, with a marker for each of several images, and its images."""
    if isinstance(message.content, str) or message.content is None:
        return message.content or "", []
    urls = [_url(part) for part in message.content if part.type != "text"]
    if urls and message.role != "user":
        raise RequestError(f"a message of {message.role} cannot have images", param="messages")
    pieces = []
    for part in message.content:
        if part.type == "text":
            pieces.append(part.text)
        elif len(urls) > 1:
            pieces.append(MARKER)
    return "\n".join(pieces), urls


def _url(part: ContentPart) -> str:
    if part.type == "file":
        if part.file is None or not part.file.file_id.startswith(PREFIX):
            raise RequestError("a part of type file needs the file_id of an upload", param="file")
        return part.file.file_id
    if part.image_url is None:
        raise RequestError("a part of type image_url has no image_url", param="messages")
    return part.image_url if isinstance(part.image_url, str) else part.image_url.url
