"""The demo, run once for all end-to-end tests, as a person runs it."""

import pytest

from tests.conftest import Cli


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, str]:
    """Run the demo in a fresh store with all cores, and return it with what it printed."""
    cli = Cli(tmp_path_factory.mktemp("demo") / "store", OMP_NUM_THREADS="2")
    return cli, cli.ok("run", "--preset", "demo", timeout=3000)
