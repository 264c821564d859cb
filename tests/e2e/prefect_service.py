"""A real Prefect server, its workers and the deployments, on loopback, for tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.made_database import database_in

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
AUTH = "planner:only-for-this-test"
PATIENCE = 8  # times that a question is asked
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class PatientTransport(httpx.HTTPTransport):
    """Asks again as Prefect's own client does.

    On a busy machine the server is silent for a minute, or says 503, where SQLite is locked.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer to the last of several attempts."""
        for attempt in range(PATIENCE - 1):
            try:
                found = super().handle_request(request)
            except httpx.TimeoutException:
                continue
            if found.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return found
            found.close()
            time.sleep(attempt)
        return super().handle_request(request)


class Service:
    """Starts what `make server`, `make worker` and `make deploy` start, and ends it again.

    Args:
        folder: Prefect's home, logs and the store of the runs.
        variables: More environment.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = folder / "store"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment = {
            **inherited,
            # A worker starts runs in temporary folders, and they are to run this very checkout.
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PHIVISION_STORE": str(self.store),
            "PHIVISION_WANDB": "disabled",
            "PHIVISION_THREADS": "1",
            "COLUMNS": "200",
            **variables,
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        user, _, password = AUTH.partition(":")
        self.client = httpx.Client(
            base_url=f"{self.url}/api/",
            auth=(user, password),
            timeout=60,
            transport=PatientTransport(trust_env=False),
            trust_env=False,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that lasts, in a process group of its own."""
        log = self.folder / f"process-{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def server(self) -> None:
        """Start the server and wait until it answers."""
        other = "PREFECT_SERVER_DATABASE_CONNECTION_URL" in self.environment
        with nullcontext() if other else database_in(self.folder / "home"):
            self.start(sys.executable, "-m", "deployments.server", "--port", str(self.port))
            self.wait(self.is_up, 600)

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker that takes one run at a time."""
        options = ("--pool", "phivision", "--type", "process", "--limit", "1")
        return self.start(str(BIN / "prefect"), "worker", "start", *options)

    def is_up(self) -> bool:
        """Whether the server answers."""
        try:
            return self.client.get("health").status_code == 200
        except httpx.TransportError:
            return False

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with more environment, and without what is set to ""."""
        environment = self.environment | variables
        return subprocess.run(
            command,
            cwd=ROOT,
            env={name: value for name, value in environment.items() if value},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Prefect's command line as a person does."""
        return self.run(str(BIN / "prefect"), "--no-prompt", *arguments)

    def phivision(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run phivision's command line as a person does."""
        return self.run(sys.executable, "-m", "flows.cli", *arguments, **variables)

    def start_phivision(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start phivision's command line and let it run."""
        return self.start(sys.executable, "-m", "flows.cli", *arguments)

    def deploy(self, pool: str = "") -> None:
        """Write the deployments, for a work pool."""
        variables = {"PREFECT_DEFAULT_WORK_POOL_NAME": pool}
        done = self.run("make", "-o", ".venv/.ready", f"BIN={BIN}", "deploy", **variables)
        assert done.returncode == 0, done.stdout + done.stderr

    def lost_after(self, seconds: int) -> None:
        """Have a run count as crashed after so many seconds without a heartbeat."""
        module = ("-m", "deployments.finish_deploy", "--silence", str(seconds))
        done = self.run(sys.executable, *module)
        assert done.returncode == 0, done.stderr

    def submit(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run over HTTP and return its id."""
        found = self.answer("GET", f"deployments/name/{deployment}")
        told = {"parameters": parameters, "idempotency_key": uuid.uuid4().hex}
        return self.answer("POST", f"deployments/{found['id']}/create_flow_run", told)["id"]

    def runs(self) -> list[Mapping[str, Any]]:
        """Return all flow runs."""
        return self.asked("flow_runs", {})

    def asked(self, kind: str, filters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return what the server has of one kind, by its own filters."""
        return self.answer("POST", f"{kind}/filter", filters)

    def answer(self, method: str, path: str, told: Mapping[str, Any] | None = None) -> Any:
        """Return what the server answers."""
        found = self.client.request(method, path, json=told)
        assert found.is_success, found.text
        return found.json()

    def flow_run(self, run: str) -> Mapping[str, Any]:
        """Return a flow run as the server knows it."""
        return self.answer("GET", f"flow_runs/{run}")

    def finished(self, run: str, seconds: float = 900) -> Mapping[str, Any]:
        """Wait for a run's last state and return it."""
        self.wait(lambda: self.flow_run(run)["state_type"] in TERMINAL, seconds)
        return self.flow_run(run)["state"]

    def stages(self, run: str) -> dict[str, str]:
        """Return the names of the states of a run's stages."""
        rows = self.asked("task_runs", of_run(run))
        return {row["name"]: row["state_name"] for row in rows if row["state_name"]}

    def artifacts(self, run: str) -> dict[str, Mapping[str, Any]]:
        """Return the newest Prefect artifact of each key of a run."""
        rows = self.asked("artifacts", of_run(run) | {"sort": "CREATED_DESC"})
        return {row["key"]: row for row in reversed(rows)}

    def table(self, run: str, key: str) -> dict[str, str]:
        """Return the figures that a stage's Prefect artifact shows, by name."""
        lines = self.artifacts(run)[key]["data"].splitlines()
        cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        return {cell[0]: cell[1] for cell in cells if len(cell) == 2}

    def logs_of(self, run: str) -> list[str]:
        """Return the lines of a run's log and of its stages'."""
        asked = {"logs": {"flow_run_id": {"any_": [run]}}}
        return [row["message"] for row in self.asked("logs", asked)]

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so."""
        last = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < last, self.logs()
            time.sleep(0.5)

    def logs(self) -> str:
        """Return the last words of every program."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
            for log in sorted(self.folder.glob("process-*.log"))
        )

    def stop(self) -> None:
        """End every program and what it started."""
        self.client.close()
        for process in reversed(self.processes):
            kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all it started, as a machine that loses its power does."""
    for child in descendants(process.pid):
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(timeout=30)


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Halt all that a program started, but not itself."""
    for child in descendants(process.pid)[1:]:
        os.kill(child, signal.SIGSTOP)


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants, whatever group they are in."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found.extend(parents.get(each, []))
    return found


def of_run(run: str) -> Mapping[str, Any]:
    """Return the filter of what belongs to one flow run."""
    return {"flow_runs": {"id": {"any_": [run]}}}


def as_json(value: object) -> str:
    """Return a parameter as Prefect's command line wants it."""
    return json.dumps(value)
