"""What the tests of training start from; torch is imported when it is made."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny artifacts that both trainings read, for reading only: all tests share them."""
    from tests.support.training_inputs import pretrained, write_inputs

    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    pretrained(root, tmp_path_factory.mktemp("pretraining"))
    return root
