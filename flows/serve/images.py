"""Images of requests: inside the body as data, or fetched from hosts that the operator names."""

import base64
import binascii
import time
from collections.abc import Collection
from urllib.parse import urlsplit

import httpx

from flows.serve.errors import RequestError
from flows.serve.limits import MEGABYTE, ServeLimits

DATA = "data:"  # how an address begins that holds the image itself


def read_image(url: str, hosts: Collection[str], limits: ServeLimits) -> bytes:
    """Return the content of an image.

    A server that fetches what strangers name can be made to read its own network (SSRF). So only
    hosts that were named are asked, over http or https, and no redirect is followed.

    Args:
        url: A `data:` URI in base64, or the address of an image.
        hosts: Hosts that may be asked; a port other than the scheme's own is part of the name.
        limits: Largest size and longest time.

    Raises:
        RequestError: The image is too large, its address is not allowed, or it cannot be had.
    """
    if url.startswith(DATA):
        return _decoded(url, limits)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.netloc not in hosts:
        raise RequestError(
            "images are taken as data: URIs only" if not hosts else
            f"images are taken as data: URIs and from {', '.join(sorted(hosts))} only",
            param="image_url",
        )  # fmt: skip
    try:
        return _fetched(url, limits)
    except httpx.HTTPError as error:
        message = f"the image cannot be fetched: {type(error).__name__}"
        raise RequestError(message, param="image_url") from None


def _decoded(url: str, limits: ServeLimits) -> bytes:
    kind, comma, data = url.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise RequestError("a data: URI must be data:image/…;base64,…", param="image_url")
    if len(data) * 3 // 4 > limits.image_bytes:
        raise _too_large(limits)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("the data: URI is not valid base64", param="image_url") from None


def _fetched(url: str, limits: ServeLimits) -> bytes:
    data, until = bytearray(), time.monotonic() + limits.fetch_seconds
    with (
        httpx.Client(
            timeout=limits.fetch_seconds, follow_redirects=False, trust_env=False
        ) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise RequestError(
                f"the image cannot be fetched: status {response.status_code}", param="image_url"
            )
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > limits.image_bytes:
                raise _too_large(limits)
            if time.monotonic() > until:  # httpx's own timeout is that of each read
                raise RequestError("the image takes too long to fetch", param="image_url")
    return bytes(data)


def _too_large(limits: ServeLimits) -> RequestError:
    most = limits.image_bytes / MEGABYTE
    return RequestError(f"an image may have {most:.0f} MB at most", param="image_url")
