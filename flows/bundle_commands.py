"""Commands that take the published assistant out of the store: `chat` and `export`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.options import Store, settings_of


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
    from flows.chat_command import chat as serve
    from flows.chat_server import Door

    serve(settings_of(store), bundle, Door(host, port, user, password))


def export(
    target: str,
    /,
    *,
    store: Store = None,
    lora: Literal["merged", "beside"] = "merged",
    pictures: int = 0,
    public: bool = False,
) -> None:
    """Write the published assistant as a Hugging Face repository with its model card.

    Args:
        target: A new folder, or hf://owner/name, which is uploaded with the token in HF_TOKEN.
        lora: Adapters merged into the language model, or beside it in peft's format.
        pictures: Test pictures to add as examples; mind their licence.
        public: Let everybody see a new hf:// repository; otherwise it is private.
    """
    from flows.export_command import export_to

    export_to(settings_of(store), target, lora, pictures, public=public)
