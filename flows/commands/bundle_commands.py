"""Commands that use the published assistant: `ask`, `caption`, `chat`, `serve`, `export`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flows.commands.options import Count, Store, settings_of
from flows.waiting import waiting
from pipeline.errors import PipelineError
from pipeline.interpreter import importing

OfRun = Annotated[
    str | None,
    Parameter(
        help="Take the assistant of this run, published or not: its name, the start of it, or "
        "its tag."
    ),
]
Bundle = Annotated[
    str | None,
    Parameter(help="A bundle's folder or hf://owner/name, instead of the store's published one."),
]
Several = Parameter(negative=(), show_default=False)


def ask(
    image: str,
    question: str | None = None,
    /,
    *,
    store: Store = None,
    run: OfRun = None,
    bundle: Bundle = None,
    also: Annotated[tuple[Path, ...], Several] = (),
    why: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
) -> None:
    """Answer a question about an image with the published assistant.

    Args:
        image: An image file; an assistant that was also trained on texts alone needs none.
        question: What to ask.
        also: A further image, once for each; the question may say `<image>` where each
            belongs.
        why: Print for each word which patches of the image mattered.
        output: With --why, also write them to this PNG file, drawn over the image.
    """
    from flows.commands.bundle_place import find_bundle
    from flows.commands.image_file import read_image, split_question
    from flows.commands.why import check_why, print_why

    check_why(output, also, why=why)
    paths, asked = split_question(image, question, also, why=why)
    contents, settings = [read_image(path) for path in paths], settings_of(store)
    place = find_bundle(settings, run, bundle)
    with waiting("loading the assistant"), importing():
        from flows.commands.assistant import check_image, look_at, open_assistant, open_light

        explained = open_assistant(settings, place) if why else None
        assistant = explained or open_light(settings, place)
        assistant.prompt(asked, images=len(paths))  # refused before images are encoded
        for path, data in zip(paths, contents, strict=True):
            check_image(assistant, path, data)
    seen = [look_at(assistant, path, data) for path, data in zip(paths, contents, strict=True)]
    answer = assistant.ask(seen, asked)
    print(answer)
    if explained is not None:
        print_why(explained, contents[0], asked, answer, output)


def caption(*images: Path, store: Store = None, run: OfRun = None, bundle: Bundle = None) -> None:
    """Caption images with the published assistant.

    Args:
        images: Image files.
    """
    if not images:
        raise PipelineError("no image was given", "phivision caption PHOTO.jpg …")
    from flows.commands.bundle_place import find_bundle
    from flows.commands.image_file import read_image

    contents, settings = [read_image(path) for path in images], settings_of(store)
    place = find_bundle(settings, run, bundle)
    with waiting("loading the assistant"), importing():
        from flows.commands.assistant import check_image, look_at, open_light

        assistant = open_light(settings, place)
        for path, data in zip(images, contents, strict=True):
            check_image(assistant, path, data)
    seen = [look_at(assistant, path, data) for path, data in zip(images, contents, strict=True)]
    with waiting("writing captions"):
        texts = assistant.caption(seen)
    for path, text in zip(images, texts, strict=True):
        print(f"{path}: {text}" if len(images) > 1 else text)


def chat(
    *,
    store: Store = None,
    run: OfRun = None,
    bundle: Bundle = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    user: str = "",
    password: Annotated[str, Parameter(env_var="PHIVISION_CHAT_PASSWORD")] = "",
) -> None:
    """Talk about images with the published assistant, in a browser.

    Args:
        host: Network address to listen on; any but loopback needs a user.
        port: Port; 0 takes a free one.
        user: Name that visitors must give.
        password: Their password; better given in the environment.
    """
    from flows.commands.bundle_place import find_bundle

    settings = settings_of(store)
    named = run is not None or bundle is not None
    # The published bundle is looked up later, so that a port in use is reported first.
    place = find_bundle(settings, run, bundle) if named else None
    with waiting("starting the chat"), importing():  # the libraries alone take seconds
        from flows.chat.launching import Door
        from flows.commands.chat import chat as serve

    serve(settings, place, Door(host, port, user, password))


def serve(
    *,
    store: Store = None,
    run: OfRun = None,
    bundle: Bundle = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str, Parameter(env_var="PHIVISION_API_KEY")] = "",
    image_host: Annotated[tuple[str, ...], Several] = (),
) -> None:
    """Serve the published assistant to OpenAI's clients, at /v1/chat/completions.

    Args:
        host: Network address to listen on; any but loopback needs a key.
        port: Port; 0 takes a free one.
        api_key: Key that clients must send; better given in the environment.
        image_host: A host from which images may be fetched, once for each; without it images come
            inside requests only.
    """
    from flows.commands.bundle_place import find_bundle

    settings = settings_of(store)
    place = find_bundle(settings, run, bundle) if run is not None or bundle is not None else None
    with waiting("starting the server"), importing():  # the libraries alone take seconds
        from flows.commands.serve import serve_assistant

    serve_assistant(settings, place, host, port, api_key, image_host)


def export(
    target: str,
    /,
    *,
    store: Store = None,
    format: Literal["bundle", "llava", "gguf"] = "bundle",  # noqa: A002 - the option's name
    lora: Literal["merged", "beside"] = "merged",
    images: Count = 0,
    public: bool = False,
) -> None:
    """Write the published assistant as a Hugging Face repository with its model card.

    Args:
        target: A new folder, or hf://owner/name, which is uploaded with the token in HF_TOKEN.
        format: phivision's own layout, a LLaVA that transformers loads without phivision, or GGUF
            files for llama.cpp and ollama.
        lora: Adapters merged into the language model, or beside it in peft's format.
        images: Test images to add as examples; mind their licence.
        public: Let everybody see a new hf:// repository; otherwise it is private.
    """
    with waiting("starting the export"), importing():
        from flows.commands.export import export_to

    print(export_to(settings_of(store), target, lora, images, public=public, style=format))


def pull(address: str, folder: Path, /) -> None:
    """Fetch an exported assistant from the Hugging Face Hub into a folder, verified by digest.

    Args:
        address: hf://owner/name, or hf://owner/name@revision, such as the name of a run.
        folder: A new folder; one that holds the assistant already is verified.
    """
    from flows.commands.pull import pull_to

    print(pull_to(address, folder))
