"""The commands of the README and of docs/deployments.md, in order, on the demo's store.

Only the port is ours. The server has no password, as the pages have it, so what other sites' pages
can do to it is tried here, too.
"""

import os
import re
from collections.abc import Generator
from contextlib import nullcontext

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Cli
from tests.e2e.made_database import database_in
from tests.e2e.prefect_service import BIN, ROOT, Service

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.timeout(3000)]

LASTING = {"make server", "make worker"}
STEPS = ("make server", "make worker", "make deploy", "deployment run", "resume", "pause")


def commands(page: str) -> list[str]:
    """Return what a page lets a reader type, without the remarks beside it."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    if page == "README.md":  # the others are run by test_readme.py
        blocks = [block for block in blocks if "make server" in block]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


PAGES = {page: commands(page) for page in ("README.md", "docs/deployments.md")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, demo: tuple[Cli, str]) -> Generator[Service]:
    running = Service(
        tmp_path_factory.mktemp("page"),
        PHIVISION_STORE=str(demo[0].store),
        PHIVISION_PUBLISH_ANYWAY="false",
        PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
    )
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        del running.environment[name]
    running.environment["PREFECT_SERVER_API_PORT"] = str(running.port)
    running.environment["PREFECT_API_URL"] = f"{running.url}/api"
    yield running
    running.stop()


@pytest.fixture(scope="module")
def printed(service: Service) -> dict[str, str]:
    """Run all commands of the pages, each once, and return what each printed."""
    found: dict[str, str] = {}
    exports: list[str] = []
    for command in dict.fromkeys([*PAGES["README.md"], *PAGES["docs/deployments.md"]]):
        if command in LASTING:
            start(service, command)
            continue
        line = command.replace(":4200", f":{service.port}")
        if line.startswith(("export ", "source ")):
            exports.append(line)
            continue
        script = "\n".join(["set -e", *exports, line])
        done = service.run("bash", "-c", script)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{service.logs()}"
        found[command] = done.stdout + done.stderr
    return found


def start(service: Service, command: str) -> None:
    """Start a program that lasts, and wait for the server to answer."""
    is_server = command == "make server"
    with database_in(service.folder / "home") if is_server else nullcontext():
        service.start("bash", "-c", f"exec {command}")
        if is_server:
            service.wait(service.is_up, 600)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_server_worker_deploy_run_and_schedule_in_order(page: str) -> None:
    shown = " ; ".join(PAGES[page])
    places = [shown.index(each) for each in STEPS]
    assert places == sorted(places)


@pytest.mark.usefixtures("printed")
def test_every_command_of_the_pages_works(service: Service) -> None:
    ended = [row["state_name"] for row in service.runs() if row["state_type"] == "COMPLETED"]
    assert len(ended) == 3
    assert "Nothing new" in ended


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, 200),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "elsewhere.example:{port}"}, 403),
        ({"Host": "elsewhere.example:{port}", "Origin": "http://elsewhere.example:{port}"}, 403),
    ],
)
def test_without_a_password_pages_of_other_sites_are_refused(
    service: Service, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(port=service.port) for name, value in headers.items()}
    with httpx.Client(base_url=f"{service.url}/api/", timeout=60, trust_env=False) as browser:
        assert browser.post("flow_runs/filter", headers=sent, json={}).status_code == status


@pytest.mark.usefixtures("printed")
def test_what_a_browser_sends_unasked_for_another_site_changes_nothing(service: Service) -> None:
    name = "made-by-another-site"
    sent = httpx.post(
        f"{service.url}/api/flows/",
        content=f'{{"name": "{name}"}}'.encode(),  # without a content type, so without a preflight
        headers={"Origin": "https://elsewhere.example"},
        trust_env=False,
    )
    assert sent.status_code == 403
    assert service.client.get(f"flows/name/{name}").status_code == 404


@pytest.mark.usefixtures("printed")
def test_pages_of_other_sites_cannot_listen_to_events(service: Service) -> None:
    address = f"ws://127.0.0.1:{service.port}/api/events/out"
    with connect(address, origin=f"http://127.0.0.1:{service.port}", proxy=None):  # ty: ignore
        pass
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(address, origin="https://elsewhere.example", proxy=None),  # ty: ignore
    ):
        pass
