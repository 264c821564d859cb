"""What a failure is told as, and which failures are worth another attempt."""

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from flows.cli import main
from flows.failures import explain, may_pass
from model.errors import ModelError
from pipeline.errors import PipelineError, RecipeError, UnreachableError
from pipeline.hub.snapshots import fetching, hub_file
from storage.errors import ChecksumError, ExpectedError, StorageError, TransientError
from storage.features.shards import ShardError
from storage.fetch.retries import Patience
from storage.fetch.transfer import download
from tests.support.fault_server import Fault, FaultServer
from tests.support.small_store import build_store


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UnreachableError("the Hub is away"), True),
        (TransientError("answered HTTP 503"), True),
        (ChecksumError("other bytes"), False),
        (StorageError("no room"), False),
        (PipelineError("no image"), False),
        (RecipeError("no such field"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ZeroDivisionError("a defect"), False),
        ("a result", False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: object, *, again: bool) -> None:
    assert may_pass(error) is again


@pytest.mark.parametrize("kind", [ModelError, PipelineError, RecipeError, StorageError, ShardError])
def test_errors_of_all_layers_have_one_form(kind: type[ModelError | ExpectedError]) -> None:
    error = pickle.loads(pickle.dumps(kind("x.png is empty", "give another file")))
    assert explain(error) == "x.png is empty\n  → give another file"
    assert (error.message, error.remedy) == ("x.png is empty", "give another file")
    assert explain(kind("x.png is empty")) == "x.png is empty"


def answer(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"HTTP {status}", response=response)


def behind(cause: Exception, told: type[Exception]) -> Exception:
    """An error as a library tells it, which hides its cause."""
    try:
        raise told("cannot find the file\nand more") from cause
    except told as error:
        return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (answer(503), True),
        (answer(429), True),
        (answer(404), False),
        (answer(401), False),
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (behind(ConnectionRefusedError("refused"), LocalEntryNotFoundError), True),
        (behind(answer(404), LocalEntryNotFoundError), False),
        (behind(ConnectionRefusedError("refused"), RuntimeError), True),
        (LocalEntryNotFoundError("not in the cache"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
    ids=str,
)
def test_a_failure_of_the_hub_is_one_line_and_tried_again_if_it_may_pass(
    error: Exception, *, again: bool
) -> None:
    asked = pytest.raises(PipelineError, match=r"cannot fetch the weights.*\n.*check")
    with asked as told, fetching("the weights", "check the network"):
        raise error
    assert may_pass(told.value) is again
    assert "and more" not in str(told.value)


def test_what_is_not_the_hubs_fault_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), fetching("the weights", "check the network"):
        raise ZeroDivisionError


def test_a_hub_that_is_switched_off_is_not_asked_again() -> None:
    with pytest.raises(PipelineError, match=r"talk\.json of someone/set") as told:
        hub_file("someone/set", "talk.json", "main")
    assert not may_pass(told.value)


@pytest.mark.parametrize(("status", "again"), [(503, True), (404, False)])
def test_a_download_that_gave_up_may_pass_if_the_server_was_busy(
    tmp_path: Path, status: int, *, again: bool
) -> None:
    with FaultServer() as server:
        server.always = Fault(status=status)
        url, target = server.serve("/a.zip", b"PK"), tmp_path / "a.zip"
        options = {"checksum": None, "size": None, "patience": Patience(attempts=2, backoff=0.01)}
        with pytest.raises(StorageError) as told:
            download(url, target, advance=lambda amount: None, **options)  # ty: ignore
    assert may_pass(told.value) is again


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ENOTDIR, errno.EDQUOT])
def test_what_the_system_refuses_is_named_with_a_remedy(number: int) -> None:
    line = explain(OSError(number, os.strerror(number), "/some/where"))
    assert line is not None
    assert line.startswith("/some/where: ")
    assert "→" in line


def test_a_result_is_not_written_over_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIVISION_STORE", build_store(tmp_path).uri)
    for style in ("csv", "parquet"):
        with pytest.raises(SystemExit) as ended:
            main(["sql", "SELECT 1", "--format", style, "--output", str(tmp_path)])
        assert ended.value.code == 1
        assert f"{tmp_path}" in capsys.readouterr().err


def test_a_stage_run_tells_that_it_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    from flows.runner.stage_task import run_stage

    again = run_stage.retry_condition_fn
    assert again is not None
    run = TaskRun(task_key="run_stage", dynamic_key="0", name="images")
    assert again(run_stage, run, Failed(data=TransientError("x.zip answered HTTP 503")))
    assert "images: x.zip answered HTTP 503: trying again" in capsys.readouterr().out
    assert not again(run_stage, run, Failed(data=ChecksumError("x.zip has other bytes")))
    assert not capsys.readouterr().out


def test_ctrl_c_ends_a_comparison_instead_of_one_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> str:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise PipelineError("Prefect's server does not answer any more") from None

    monkeypatch.setattr("flows.commands.run.run_pipeline", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["compare", "--grid", "seed=1,2", "--store", str(tmp_path / "store")])
    told = capsys.readouterr()
    assert "stopped; finished work is kept" in told.err
    assert told.out.count("──") == 1
