"""Object stores of clouds: which extra brings each one's package, and what their failures mean.

Each library has errors of its own for missing or refused credentials; they are told apart here by
name, text or HTTP status, so that no library is imported for it.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from storage.errors import redact


class Cloud(NamedTuple):
    """One cloud's object store.

    Attributes:
        extra: phivision's extra that installs its package.
        credentials: Where its package looks for credentials first, in words.
    """

    extra: str
    credentials: str


class Failure(NamedTuple):
    """What failed, and what the user can do about it."""

    reason: str
    remedy: str


_S3 = Cloud("s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
_GCS = Cloud(
    "gcs", "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
)
_AZURE = Cloud(
    "azure",
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
)
_CLOUDS = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "az": _AZURE,
}
_LONGEST_REASON = 200  # characters of a library's own text
_NONE_GIVEN = frozenset(
    {
        "NoCredentialsError",  # botocore
        "PartialCredentialsError",
        "DefaultCredentialsError",  # google.auth
        "CredentialUnavailableError",  # azure.identity
    }
)
# Without credentials gcsfs asks anonymously; adlfs cannot even name the account.
_NONE_GIVEN_TEXTS = ("Anonymous caller", "either a connection_string or account_name")
# The libraries also log what they raise, gcsfs with tracebacks.
_LOGGERS = ("gcsfs", "google.auth", "azure")


def open_url(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem of a URL, and the path in it.

    Raises:
        ImportError: A package is missing; `explain` names the extra.
        ValueError: The scheme is unknown, or the URL is malformed.
    """
    if cloud_of(url) is _GCS:
        # Otherwise gcsfs asks a second service, by gRPC, about the kind of each bucket.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return url_to_fs(url)


def cloud_of(url: str) -> Cloud | None:
    """Return the cloud of a URL, None for any other filesystem."""
    return _CLOUDS.get(url.partition("://")[0].lower())


def explain(url: str, error: Exception) -> Failure | None:
    """Return what a missing package or failed credentials mean; None for any other failure."""
    cloud = cloud_of(url)
    if isinstance(error, ImportError):
        if cloud is None:
            return Failure(f"needs a package: {error}", "install it")
        return Failure(
            "needs a package that is not installed", f"pip install 'phivision[{cloud.extra}]'"
        )
    if cloud is None:
        return None
    if any(_none_given(link) for link in _chain(error)):
        return Failure("there are no credentials", f"set {cloud.credentials}")
    if is_refused(error):
        return Failure(
            "permission denied", f"check the rights, and the credentials: {cloud.credentials}"
        )
    return None


def is_refused(error: Exception) -> bool:
    """Return whether credentials are missing or lack a right, so that a retry will not help."""
    return any(
        isinstance(link, PermissionError) or _none_given(link) or status_of(link) in {401, 403}
        for link in _chain(error)
    )


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status with which a cloud refused, None where the error has none."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # gcsfs
        return 403
    response = getattr(error, "response", None)  # botocore's is a dict
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for status in (
        metadata.get("HTTPStatusCode"),
        getattr(error, "status_code", None),
        getattr(error, "code", None),
    ):
        if isinstance(status, int):
            return status
    return None


def reason_of(error: Exception) -> str:
    """Return what a library says of an error, shortened, with the secrets of URLs masked."""
    text = redact(str(error)) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def _none_given(error: BaseException) -> bool:
    name = type(error).__name__
    if name == "ClientAuthenticationError":  # azure.identity's, which has asked nobody
        return getattr(error, "status_code", None) is None
    return name in _NONE_GIVEN or any(text in str(error) for text in _NONE_GIVEN_TEXTS)


def _chain(error: Exception) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
