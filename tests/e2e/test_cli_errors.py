"""What goes wrong is one clear line that names the thing and the remedy, without a traceback."""

import socket
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from deployments.server import main as start_server
from flows.cli import main
from flows.commands.ports import refuse_taken
from flows.failures import explain
from pipeline.errors import PipelineError
from tests.conftest import Cli, ForkedCli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return ForkedCli(tmp_path / "store")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("run", "--set", "pretrain.lerning_rate=1"), 1, "pretrain.learning_rate"),
        (("run", "--set", "pretrain.batch"), 1, "dotted.path=value"),
        (("plan", "--preset", "dmeo"), 1, "demo, coco"),
        (("plan", "--rerun", "pretrian"), 1, "pretrain"),
        (("run", "--nonsense"), 2, "--help"),
        (("nonsense",), 2, "--help"),
        (("sql", "DROP VIEW images"), 1, "read-only"),
        (("sql", "SELECT * FROM images"), 1, "has not run yet"),
        (("ask", "nowhere.jpg", "What?"), 1, "nowhere.jpg"),
        (("show", "7"), 1, "phivision run"),
        (("scores",), 1, "phivision run"),
        (("verify",), 1, "no artifact is in"),
        (("gc", "--keep", "-1"), 2, ">= 0"),
        (("gc", "--days", "nan"), 2, ">= 0"),
        (
            ("run", "--set", "images.source.kind=folder", "--set", "images.source.root=/nowhere"),
            1,
            "conversations.source",
        ),
    ],
)
def test_expected_errors_are_one_clear_line(
    cli: Cli, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = cli(*arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_cocos_layout_is_named(cli: Cli, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    talk.write_text("[]")
    done = cli(
        "plan",
        *("--set", "images.source.kind=folder", "--set", f"images.source.root={tmp_path}"),
        *("--set", "conversations.source.kind=file"),
        *("--set", f"conversations.source.path={talk}"),
        *("--set", "conversations.source.sha256=null"),
    )
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "train2017" in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:{free}/api", "127.0.0.1:4200", "http://"])
def test_a_prefect_server_that_does_not_answer_is_named(tmp_path: Path, url: str) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = url.format(free=taken.getsockname()[1])
        done = ForkedCli(tmp_path / "store", PREFECT_API_URL=address)("run")
    assert done.returncode == 1, done.stderr
    assert address in done.stderr
    assert "PREFECT_API_URL" in done.stderr
    started, told, remedy = done.stderr.strip().splitlines()
    assert started.startswith("starting Prefect")
    assert told.startswith("phivision: no Prefect server answers")
    assert "→" in remedy


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = ForkedCli(blocked / "store")("run", "--set", "images.source.train=60")
    assert done.returncode == 1
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_image_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    done = cli("caption", str(tmp_path / "x.jpg"), "--bundle", str(folder))
    assert done.returncode == 1
    assert "x.jpg" in done.stderr


def test_a_setting_is_named_as_the_variable_that_it_came_from(tmp_path: Path) -> None:
    done = ForkedCli(tmp_path / "store", PHIVISION_DEVICE="gpu")("plan")
    assert done.returncode == 1
    assert "PHIVISION_DEVICE" in done.stderr
    assert "'cuda'" in done.stderr
    assert "'gpu'" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("--debug", "plan", "--preset", "dmeo")
    assert "Traceback" in done.stderr


def test_help_names_every_command(cli: Cli) -> None:
    printed = cli.ok("--help")
    for command in ("run", "plan", "sql", "show", "ask", "caption", "scores", "recipe", "runs"):
        assert command in printed


@pytest.fixture
def taken() -> Generator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_chat_on_a_taken_port_is_refused_before_a_model_is_looked_for(
    taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIVISION_STORE", str(tmp_path / "empty"))
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--port", str(taken)])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"port {taken}" in said
    assert "--port" in said
    assert "published" not in said


def test_a_server_on_a_taken_port_is_refused_in_one_line(taken: int) -> None:
    with pytest.raises(SystemExit, match=rf"port {taken} .*in use.*\n.*PREFECT_SERVER_API_PORT"):
        start_server(["--port", str(taken)])


def test_a_taken_port_is_explained() -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as caught:
            second.bind(first.getsockname())
    assert "port is in use" in str(explain(caught.value))


def test_a_number_that_is_no_port_is_told() -> None:
    with pytest.raises(PipelineError, match="99999 is not a port"):
        refuse_taken("127.0.0.1", 99_999, "choose another with --port")


def test_a_prefect_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ForkedCli(tmp_path / "store", PREFECT_HOME=str(tmp_path / "file" / "home"))(
        "run", timeout=60
    )
    assert done.returncode == 1
    assert "set PREFECT_HOME to a folder that can be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prefect_server_that_went_away_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**parameters: object) -> None:
        del parameters
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr("flows.full_pipeline.full_pipeline", fail)
    monkeypatch.setattr("flows.runner.own_server.own_server", lambda: None)
    with pytest.raises(SystemExit, match="1"):
        main(["run", "--store", str(tmp_path / "store")])
    told = capsys.readouterr().err
    assert "Prefect's server does not answer any more: All connection attempts failed" in told


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert Cli(tmp_path)("--version").stdout.strip() == version("phivision")
