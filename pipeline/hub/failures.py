"""Failures of the Hugging Face Hub, each as one line with a remedy."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from pipeline.errors import PipelineError, UnreachableError

_BUSY = frozenset({408, 425, 429})


@contextmanager
def fetching(what: str, remedy: str, repository: str = "") -> Generator[None]:
    """Report failures of the Hub in one line; others pass through.

    Args:
        what: What is fetched, in words.
        remedy: What the user can do, if the failure itself does not say.
        repository: owner/name, for the address of its page and for the command that fetches it.

    Raises:
        UnreachableError: The Hub did not answer, or said that it is busy.
        PipelineError: It refused permanently, or is switched off.
    """
    try:
        yield
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        reason, better = _reason(error, repository)
        raise kind(f"cannot fetch {what}: {reason}", better or remedy) from None


def _chain(error: Exception) -> Iterator[BaseException]:
    """Yield an error and its causes: libraries wrap connection errors once or twice."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _kind(error: Exception) -> type[PipelineError] | None:
    """Return the error to report for a failure of the Hub, None for any other failure."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    # The base of all errors of the HTTP client, whichever this version of the library uses.
    client = HfHubHTTPError.__bases__[0]
    for link in _chain(error):
        if isinstance(link, OfflineModeIsEnabled):
            return PipelineError
        if isinstance(link, HfHubHTTPError):
            status = link.response.status_code
            return UnreachableError if status in _BUSY or status >= 500 else PipelineError
        if isinstance(link, (client, ConnectionError, TimeoutError)):
            return UnreachableError
    refusals = OSError | EntryNotFoundError | HFValidationError
    return PipelineError if isinstance(error, refusals) else None


def _reason(error: Exception, repository: str) -> tuple[str, str]:
    """Return why the Hub failed, and the remedy, "" if the caller has a better one."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repository}" if repository else "its page"
    links = list(_chain(error))
    if any(isinstance(link, OfflineModeIsEnabled) for link in links) or (
        constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError) and len(links) == 1
    ):
        return (
            f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} is missing files",
            "check HF_HOME, unset HF_HUB_OFFLINE, or fill that cache on a machine with a network"
            + (f": hf download {repository}" if repository else ""),
        )
    for link in links:
        match link:
            case GatedRepoError():
                return (
                    "the repository is gated: read access needs its licence to be accepted",
                    f"check HF_TOKEN, and accept the licence at {page} with the token's account",
                )
            case RepositoryNotFoundError():
                return (
                    "the Hub has no such repository, or hides it because it is private",
                    "check the name; a private repository needs HF_TOKEN",
                )
            case RevisionNotFoundError():
                return "the repository has no such revision", "check the revision"
            case HfHubHTTPError() if link.response.status_code in {401, 403}:
                return f"the Hub refused it with HTTP {link.response.status_code}", (
                    f"check the name and HF_TOKEN; a gated licence is accepted at {page}"
                )
    return (str(error).strip().splitlines() or [type(error).__name__])[0], ""
