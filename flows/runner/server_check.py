"""Check that the Prefect server named in the environment answers, before a run starts there."""

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from pipeline.errors import PipelineError


def check_server() -> None:
    """Return if no server is named, or if a Prefect server of this version answers.

    Raises:
        PipelineError: No server answers at the address, it is another one, or needs a password.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise PipelineError(f"the server at {url} answers: {error}", _REMEDY) from None
        raise PipelineError(
            f"the Prefect server at {url} needs a password",
            "set PREFECT_API_AUTH_STRING=user:password",
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise PipelineError(f"no Prefect server answers at {url}: {reason}", _REMEDY) from None


_REMEDY = "start it (`make server`), or unset PREFECT_API_URL to run without one"
