"""`phivision export`: the published assistant as a folder, or as a repository on the hub."""

import os
import re
import tempfile
from pathlib import Path
from typing import Literal

from flows.commands.example_images import write_examples
from flows.waiting import waiting
from pipeline.errors import PipelineError
from pipeline.hub.checksums import write_sums
from pipeline.hub.uploads import send_folder
from pipeline.publishing.export import Adapters, new_folder, trace, write_repository
from pipeline.publishing.export_gguf import write_gguf
from pipeline.publishing.export_llava import write_llava
from pipeline.publishing.gate import published_manifest
from pipeline.settings import Settings
from storage.store.published import published, read_history

HUB = "hf://"
Format = Literal["bundle", "llava", "gguf"]
TOKEN = "HF_TOKEN"  # noqa: S105 - the variable's name
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def export_to(
    settings: Settings,
    target: str,
    adapters: Adapters,
    images: int,
    *,
    public: bool,
    style: Format = "bundle",
) -> str:
    """Write the published assistant to a folder, or upload it; return where it is, in words.

    Raises:
        PipelineError: Nothing is published, the format cannot hold it, the folder is not empty, or
            the upload is refused.
    """
    if style != "bundle" and adapters == "beside":
        what = "a LLaVA has" if style == "llava" else "GGUF files have"
        raise PipelineError(
            f"{what} no adapters beside the language model",
            "export with --lora merged, or --format bundle",
        )
    if target.startswith(HUB):
        name, token = hub_name(target), hub_token()
        with tempfile.TemporaryDirectory(prefix="phivision-export-") as folder:
            written = Path(folder) / "repository"
            run = _write(settings, written, adapters, images, name, style)
            place = upload(written, name, token, "model", public=public, tag=run)
            return f"{place}\nthis revision is {HUB}{name}@{run}{captions_inside(written)}"
    _write(settings, Path(target), adapters, images, None, style)
    told = f"{target} is a model repository; its README.md says how to load it"
    return told + captions_inside(Path(target))


def captions_inside(folder: Path) -> str:
    """Return a line that says that an export holds captions of training images, "" if not."""
    if not (folder / "consensus.json").exists():
        return ""
    return (
        "\nconsensus.json holds captions of training images as they were written: publish it only "
        "where these may be published; --set evaluate.caption_samples=0 leaves them out of a run"
    )


def _write(
    settings: Settings,
    target: Path,
    adapters: Adapters,
    images: int,
    name: str | None,
    style: Format,
) -> str:
    """Write the repository and return the name of the run that made the assistant."""
    store = settings.open_store()
    lineage = trace(store, published_manifest(store))
    with waiting("writing the repository"), new_folder(target) as folder:
        if style == "llava":
            write_llava(lineage, folder, name)
        elif style == "gguf":
            write_gguf(lineage, folder)
        else:
            write_repository(lineage, folder, adapters, name)
        if images > 0:
            write_examples(lineage, folder / "examples", images)
        write_sums(folder)
    now = published(read_history(store))
    return now.run if now is not None else ""


def hub_name(target: str) -> str:
    """Return owner/name of an `hf://` target.

    Raises:
        PipelineError: It is not such a name.
    """
    name = target.removeprefix(HUB)
    if not _REPOSITORY.fullmatch(name):
        raise PipelineError(f"{target} is not a repository's name", "write hf://owner/name")
    return name


def hub_token() -> str:
    """Return the token in the environment; none is read from disk.

    Raises:
        PipelineError: It is not set.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise PipelineError(
            f"an upload needs a token and {TOKEN} is not set", f"export {TOKEN}=… and try again"
        )
    return token


def upload(
    folder: Path,
    name: str,
    token: str,
    kind: Literal["model", "space"],
    *,
    public: bool,
    tag: str = "",
) -> str:
    """Make a repository on the hub if it is not there, upload a folder, and return its address.

    Args:
        folder: What to upload.
        name: owner/name.
        token: A token that may write there.
        kind: As the hub calls it.
        public: Whether a new repository is open to everybody.
        tag: Name of the uploaded revision, "" for none.

    Raises:
        PipelineError: The hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi

    # The error of its HTTP library: requests, httpx or httpx2, depending on the version.
    from huggingface_hub.errors import HTTPError

    hub = HfApi(token=token)
    sdk = "gradio" if kind == "space" else None
    try:
        made = hub.create_repo(
            name, repo_type=kind, private=not public, exist_ok=True, space_sdk=sdk
        )
        send_folder(hub, folder, name, kind, tag)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].replace(token, "***")
        raise PipelineError(
            f"hf://{name} was not uploaded: {reason}",
            f"check the network, the name and whether {TOKEN} may write there, then try again: "
            "what has arrived is not sent again",
        ) from None
    return str(made)
