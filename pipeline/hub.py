"""Files of Hugging Face dataset repositories, at the revision that the recipe names."""

from pathlib import Path

from pipeline.errors import PipelineError


def hub_file(repository: str, filename: str, revision: str) -> Path:
    """Return the local path of one file of a dataset repository, fetched where it is not cached.

    Raises:
        PipelineError: The repository, revision or file does not exist or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, filename, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError) as error:
        raise PipelineError(
            f"cannot fetch {filename} of {repository} at {revision}: {str(error).splitlines()[0]}",
            "check the network and the revision, or give the data as local files",
        ) from None


def hub_url(repository: str, filename: str, revision: str) -> str | None:
    """Return the address of a file that is not cached, or None if it is, or the Hub is offline."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    known = {"repo_type": "dataset", "revision": revision}
    if constants.HF_HUB_OFFLINE or isinstance(
        try_to_load_from_cache(repository, filename, **known), str
    ):
        return None
    return hf_hub_url(repository, filename, **known)
