"""A hub on loopback that this process takes for the Hugging Face Hub, with an empty cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub

TOKEN = "hf_planted9Rk2LmWx5Tq"
_CONSTANTS = "huggingface_hub.constants."


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that can be reached, without a token."""
    with FakeHub(TOKEN) as hub:
        _use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(f"{_CONSTANTS}HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        use_cache(monkeypatch, tmp_path / "cache")
        yield hub


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the Hub's client keep its files elsewhere, as HF_HUB_CACHE does."""
    monkeypatch.setattr(f"{_CONSTANTS}HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(f"{_CONSTANTS}HF_TOKEN_PATH", str(cache / "token"))


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid the Hub's client to ask anybody, as HF_HUB_OFFLINE=1 does."""
    monkeypatch.setattr(f"{_CONSTANTS}HF_HUB_OFFLINE", True)


def lose_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody answer."""
    _use_endpoint(monkeypatch, "http://127.0.0.1:9")


def _use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(f"{_CONSTANTS}ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{_CONSTANTS}HUGGINGFACE_CO_URL_TEMPLATE", template)
