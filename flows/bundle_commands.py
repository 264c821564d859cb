"""Commands that use the published assistant: `ask`, `caption`, `chat` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flows.options import Count, Store, settings_of
from flows.waiting import waiting
from pipeline.errors import PipelineError
from pipeline.interpreter import importing


def ask(
    image: Path,
    question: str,
    /,
    *,
    store: Store = None,
    bundle: Path | None = None,
    why: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
) -> None:
    """Answer a question about a picture with the published assistant.

    Args:
        image: A picture file.
        question: What to ask.
        bundle: Folder of a bundle, instead of the store's published one.
        why: Print for each word which patches of the image mattered.
        output: With --why, also write them to this PNG file, drawn over the image.
    """
    if output is not None:
        from flows.why_command import check_output

        check_output(output, why=why)
    from flows.picture_file import read_picture

    picture = read_picture(image)
    with waiting("loading the assistant"), importing():
        from flows.assistant_command import check_picture, open_assistant

        assistant = open_assistant(settings_of(store), bundle)
        check_picture(assistant, image, picture)
    answer = assistant.ask(picture, question)
    print(answer)
    if why:
        from flows.why_command import print_why

        print_why(assistant, picture, question, answer, output)


def caption(*images: Path, store: Store = None, bundle: Path | None = None) -> None:
    """Caption pictures with the published assistant.

    Args:
        images: Picture files.
        bundle: Folder of a bundle, instead of the store's published one.
    """
    if not images:
        raise PipelineError("no picture was given", "phivision caption PHOTO.jpg …")
    from flows.picture_file import read_picture

    pictures = [read_picture(path) for path in images]
    with waiting("loading the assistant"), importing():
        from flows.assistant_command import check_picture, open_assistant

        assistant = open_assistant(settings_of(store), bundle)
        for path, picture in zip(images, pictures, strict=True):
            check_picture(assistant, path, picture)
    with waiting("writing captions"):
        texts = assistant.caption(pictures)
    for path, text in zip(images, texts, strict=True):
        print(f"{path}: {text}" if len(images) > 1 else text)


def chat(
    *,
    store: Store = None,
    bundle: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    user: str = "",
    password: Annotated[str, Parameter(env_var="PHIVISION_CHAT_PASSWORD")] = "",
) -> None:
    """Talk about pictures with the published assistant, in a browser.

    Args:
        bundle: A bundle's folder or hf://owner/name, instead of the store's published one.
        host: Network address to listen on; any but loopback needs a user.
        port: Port; 0 takes a free one.
        user: Name that visitors must give.
        password: Their password; better given in the environment.
    """
    with waiting("starting the chat"), importing():  # the libraries alone take seconds
        from flows.chat_command import chat as serve
        from flows.chat_server import Door

    serve(settings_of(store), bundle, Door(host, port, user, password))


def export(
    target: str,
    /,
    *,
    store: Store = None,
    lora: Literal["merged", "beside"] = "merged",
    pictures: Count = 0,
    public: bool = False,
) -> None:
    """Write the published assistant as a Hugging Face repository with its model card.

    Args:
        target: A new folder, or hf://owner/name, which is uploaded with the token in HF_TOKEN.
        lora: Adapters merged into the language model, or beside it in peft's format.
        pictures: Test pictures to add as examples; mind their licence.
        public: Let everybody see a new hf:// repository; otherwise it is private.
    """
    with waiting("starting the export"), importing():
        from flows.export_command import export_to

    print(export_to(settings_of(store), target, lora, pictures, public=public))
