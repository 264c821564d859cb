"""This machine is spoken to without a proxy, whichever way the environment names one."""

import os
from collections.abc import Mapping
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest

from flows.surroundings import LOOPBACK, spare_loopback

URLS = ("http://127.0.0.1:4200/api", "http://localhost:8000", "http://[::1]:80", "ws://127.0.0.1")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        # Set first, so that what is set below is gone after the test.
        for key in (name, name.upper()):
            monkeypatch.setenv(key, "")
            monkeypatch.delenv(key)


def through_proxy(client: httpx.Client, url: str) -> bool:
    return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize(
    ("exempt", "stays"),
    [
        ({}, ()),
        ({"NO_PROXY": "a.example, b.example"}, ("a.example", "b.example")),
        ({"NO_PROXY": "a.example", "no_proxy": "b.example"}, ("a.example", "b.example")),
        ({"no_proxy": ""}, ()),
        ({"no_proxy": "127.0.0.1"}, ()),
    ],
)
@pytest.mark.parametrize("kind", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_no_proxy_is_asked_for_this_machine(
    exempt: Mapping[str, str], stays: tuple[str, ...], kind: str, proxy: str
) -> None:
    os.environ |= {**exempt, kind: proxy}
    spare_loopback()
    spare_loopback()  # again changes nothing
    with httpx.Client() as client:
        assert not any(through_proxy(client, url) for url in URLS)
        assert not any(through_proxy(client, f"http://{name}") for name in stays)
        assert through_proxy(client, "http://elsewhere.example")
    assert all(proxy_bypass(name) for name in (*LOOPBACK, *stays))
    assert not proxy_bypass("elsewhere.example")
    assert os.environ["NO_PROXY"].split(",").count("127.0.0.1") == 1


def test_an_environment_that_exempts_all_goes_on_doing_so() -> None:
    os.environ |= {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "*"}
    spare_loopback()
    assert getproxies()["no"] == "*"
    with httpx.Client() as client:
        assert not through_proxy(client, "http://elsewhere.example")
