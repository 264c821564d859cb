"""A small published assistant for the tests that talk to one; torch is imported when it is made."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights."""
    from tests.support.tiny_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("tiny-bundle"))


@pytest.fixture(scope="session")
def wary_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, said to be trained on discs, so that it warns of images unlike them."""
    from tests.support.tiny_bundle import trained_on_discs

    return trained_on_discs(tiny_bundle, tmp_path_factory.mktemp("wary") / "bundle")


@pytest.fixture(scope="session")
def assistant(tiny_bundle: Path) -> Any:
    """The assistant of that bundle."""
    from model.assistant import load_assistant

    return load_assistant(str(tiny_bundle))
