"""Files of the Hugging Face Hub, at the revision that the recipe names, and how it fails."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PipelineError, UnreachableError

_BUSY = frozenset({408, 425, 429})


def hub_file(repository: str, filename: str, revision: str) -> Path:
    """Return the local path of one file of a dataset repository, fetched where it is not cached.

    Raises:
        UnreachableError: The Hub cannot be reached now.
        PipelineError: The repository, revision or file does not exist.
    """
    from huggingface_hub import hf_hub_download

    with fetching(
        f"{filename} of {repository} at {revision}",
        "check the network and the revision, or give the data as local files",
    ):
        return Path(hf_hub_download(repository, filename, repo_type="dataset", revision=revision))


@contextmanager
def fetching(what: str, remedy: str) -> Generator[None]:
    """Tell failures of the Hub in one line; others pass through.

    Args:
        what: What is fetched, in words.
        remedy: What a person can do.

    Raises:
        UnreachableError: The Hub did not answer, or said that it is busy.
        PipelineError: It refused for good.
    """
    try:
        yield
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        raise kind(f"cannot fetch {what}: {str(error).splitlines()[0]}", remedy) from None


def _kind(error: Exception) -> type[PipelineError] | None:
    """Return as what a failure is told, None where it is none of the Hub's."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    # The base of all errors of the HTTP client, whichever this version of the library uses.
    client = HfHubHTTPError.__bases__[0]
    link: BaseException | None = error
    while link is not None:  # libraries wrap the broken connection once or twice
        if isinstance(link, OfflineModeIsEnabled):
            return PipelineError
        if isinstance(link, HfHubHTTPError):
            status = link.response.status_code
            return UnreachableError if status in _BUSY or status >= 500 else PipelineError
        if isinstance(link, (client, ConnectionError, TimeoutError)):
            return UnreachableError
        link = link.__cause__ or link.__context__
    return PipelineError if isinstance(error, OSError | EntryNotFoundError) else None


def hub_url(repository: str, filename: str, revision: str) -> str | None:
    """Return the address of a file that is not cached, or None if it is, or the Hub is offline."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    known = {"repo_type": "dataset", "revision": revision}
    if constants.HF_HUB_OFFLINE or isinstance(
        try_to_load_from_cache(repository, filename, **known), str
    ):
        return None
    return hf_hub_url(repository, filename, **known)
