"""Downloads against a real server that drops, stalls, lies and changes its mind."""

import gzip
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from storage.errors import ChecksumError, StorageError
from storage.fetch.retries import Patience
from storage.fetch.transfer import download, probe
from tests.support.fault_server import Fault, FaultServer

BODY = random.Random(0).randbytes(3_000_000)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SLACK = 100_000  # bytes that may be on their way when a connection breaks, and are sent again


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


def fetch(
    url: str, target: Path, attempts: int = 5, timeout: float = 5.0, **options: object
) -> list[int]:
    """Download with quick retries; return what the progress bar was told."""
    told: list[int] = []
    chosen: dict[str, Any] = {
        "checksum": SHA256,
        "size": len(BODY),
        "patience": Patience(attempts, backoff=0.005, timeout=timeout),
        **options,
    }
    assert download(url, target, advance=told.append, **chosen) == target
    return told


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checksum", [SHA256, MD5, None], ids=["sha256", "md5", "none"])
def test_a_file_arrives_whole_and_alone(
    server: FaultServer, tmp_path: Path, checksum: str | None
) -> None:
    url = server.serve("/train.zip", b"PK" + BODY)
    body = b"PK" + BODY
    if checksum:
        algorithm = checksum.partition(":")[0]
        checksum = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
    told = fetch(url, tmp_path / "deep" / "train.zip", checksum=checksum, size=None)
    assert (tmp_path / "deep" / "train.zip").read_bytes() == body
    assert names(tmp_path / "deep") == ["train.zip"]
    assert sum(told) == len(body)


@pytest.mark.parametrize("scheme", ["plain", "file", "memory"])
def test_every_scheme_goes_the_same_way(tmp_path: Path, scheme: str) -> None:
    source = tmp_path / "source file.bin"
    source.write_bytes(BODY)
    url = {"plain": str(source), "file": source.as_uri(), "memory": ""}[scheme]
    if scheme == "memory":
        url = "memory://transfer/source.bin"
        fsspec.filesystem("memory").pipe_file("/transfer/source.bin", BODY)
    fetch(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BODY
    probe(url)
    with pytest.raises(StorageError, match=r"none.*\.bin does not exist"):
        fetch(url.replace("source", "none"), tmp_path / "other")


def test_an_empty_file_is_a_file(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/empty", b"")
    fetch(url, tmp_path / "empty", checksum=None, size=0)
    assert (tmp_path / "empty").read_bytes() == b""


def test_what_is_there_is_not_fetched_again(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY)
    fetch(url, tmp_path / "a")
    assert fetch(url, tmp_path / "a") == [len(BODY)]
    assert fetch(url, tmp_path / "a", checksum=None) == [len(BODY)]
    assert fetch(url, tmp_path / "a", checksum=None, size=None) == [len(BODY)]
    assert len(server.requests) == 1


@pytest.mark.parametrize("damaged", [BODY[:-1], BODY[:-1] + b"?"], ids=["short", "wrong"])
def test_a_damaged_target_is_replaced(server: FaultServer, tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "a").write_bytes(damaged)
    fetch(server.serve("/a", BODY), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_dropped_connection_goes_on_at_its_last_byte(server: FaultServer, tmp_path: Path) -> None:
    drops = [Fault(drop_after=500_000)] * 4
    told = fetch(server.serve("/a", BODY, *drops), tmp_path / "a", attempts=2)
    first, *later = server.starts("/a")
    assert first == 0
    assert len(later) == 4
    assert later == sorted(set(later))
    assert min(later) >= 500_000 - SLACK
    assert server.sent() <= len(BODY) + SLACK
    assert [seen.headers.get("If-Range") for seen in server.requests[1:]] == [
        f'"{hashlib.md5(BODY).hexdigest()}"'
    ] * 4
    assert sum(told) == len(BODY)
    assert min(told) > 0


def test_a_killed_download_goes_on_in_the_next_process(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, Fault(pace=3_000_000))
    part = tmp_path / "a.part"
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from storage.fetch.transfer import download
        download(sys.argv[1], Path(sys.argv[2]), checksum=None, size=None, advance=lambda _: None)
    """)
    command = [sys.executable, "-c", script, url, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[4]) as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > 1_000_000):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = part.stat().st_size
    told = fetch(url, tmp_path / "a")
    assert server.starts("/a") == [0, kept]
    assert server.requests[1].sent == len(BODY) - kept
    assert told[0] == kept
    assert (tmp_path / "a").read_bytes() == BODY
    assert names(tmp_path) == ["a"]


def stop_in_the_middle(server: FaultServer, target: Path, **options: object) -> str:
    """Leave a part of about a third behind; return the URL."""
    url = server.serve(f"/{target.name}", BODY, Fault(drop_after=1_000_000))
    with pytest.raises(StorageError, match="the transfer resumes where it stopped"):
        fetch(url, target, attempts=1, **options)
    return url


def test_a_stalled_connection_is_given_up(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, Fault(stall_after=1_000_000, stall=20))
    started = time.monotonic()
    fetch(url, tmp_path / "a", timeout=0.3)
    assert time.monotonic() - started < 20  # the stall was not sat out
    assert server.starts("/a")[1] > 0


def test_a_busy_server_is_asked_again(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, Fault(status=503), Fault(status=500), Fault(status=429))
    fetch(url, tmp_path / "a", attempts=4)
    assert [seen.status for seen in server.requests] == [503, 500, 429, 200]


def test_retry_after_is_kept(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, Fault(status=503, retry_after="1"))
    started = time.monotonic()
    fetch(url, tmp_path / "a")
    assert time.monotonic() - started >= 1


def test_a_server_that_stays_busy_ends_the_attempts(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, *[Fault(status=503)] * 9)
    with pytest.raises(
        StorageError, match=r"/a answered HTTP 503 .*attempts in a row: 3.*\n  → check"
    ):
        fetch(url, tmp_path / "a", attempts=3)
    assert len(server.requests) == 3
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "address"), (403, "credentials"), (401, "cred")]
)
def test_a_refusal_is_final(server: FaultServer, tmp_path: Path, status: int, hint: str) -> None:
    url = server.serve("/a", BODY, Fault(status=status))
    with pytest.raises(StorageError, match=f"/a answered HTTP {status} .*\n.*{hint}"):
        fetch(url, tmp_path / "a")
    assert len(server.requests) == 1


def test_nobody_listens(tmp_path: Path) -> None:
    with FaultServer() as gone:
        url = gone.serve("/a", BODY)
    with pytest.raises(StorageError, match=r"/a cannot be read: .*attempts in a row: 2"):
        fetch(url, tmp_path / "a", attempts=2)


@pytest.mark.parametrize("etag", [None, 'W/"weak"', ""])
def test_range_ignored_starts_again(server: FaultServer, tmp_path: Path, etag: str | None) -> None:
    faults = [Fault(drop_after=900_000), Fault(ignore_range=True)]
    told = fetch(server.serve("/a", BODY, *faults, etag=etag), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert min(told) < 0
    assert sum(told) == len(BODY)


@pytest.mark.parametrize("etag", [None, 'W/"new"', ""])
def test_a_remote_that_changed_is_fetched_anew(
    server: FaultServer, tmp_path: Path, etag: str | None
) -> None:
    stop_in_the_middle(server, tmp_path / "a")
    changed = bytes(reversed(BODY))
    url = server.serve("/a", changed, etag=etag)
    checksum = f"sha256:{hashlib.sha256(changed).hexdigest()}"
    told = fetch(url, tmp_path / "a", checksum=checksum)
    assert (tmp_path / "a").read_bytes() == changed
    assert sum(told) == len(BODY)


def test_a_remote_that_changes_between_two_attempts(server: FaultServer, tmp_path: Path) -> None:
    changed = bytes(reversed(BODY))
    url = server.serve("/a", BODY, Fault(drop_after=1_000_000))

    def change(_: int) -> None:
        server.serve("/a", changed)

    download(
        url,
        tmp_path / "a",
        checksum=None,
        size=None,
        advance=change,
        patience=Patience(backoff=0.005),
    )
    assert (tmp_path / "a").read_bytes() == changed
    assert [seen.status for seen in server.requests] == [200, 200]


def test_a_remote_that_changed_behind_weak_marks_is_fetched_anew(
    server: FaultServer, tmp_path: Path
) -> None:
    """Nothing can be sent as If-Range, so the server gives the rest of another object."""
    server.serve("/a", BODY, Fault(drop_after=1_000_000), etag='W/"old"')
    url = f"{server.url}/a"
    with pytest.raises(StorageError, match="the transfer resumes"):
        fetch(url, tmp_path / "a", attempts=1, checksum=None)
    server.serve("/a", BODY[::-1], etag='W/"new"')
    fetch(url, tmp_path / "a", checksum=None)
    assert (tmp_path / "a").read_bytes() == BODY[::-1]
    assert server.starts("/a")[1] > 0
    assert server.starts("/a")[2:] == [0]


def test_a_part_of_another_size_than_the_recipe_now_wants_is_dropped(
    server: FaultServer, tmp_path: Path
) -> None:
    stop_in_the_middle(server, tmp_path / "a")
    longer = BODY + b"more"
    checksum = f"sha256:{hashlib.sha256(longer).hexdigest()}"
    told = fetch(server.serve("/a", longer), tmp_path / "a", size=len(longer), checksum=checksum)
    assert (tmp_path / "a").read_bytes() == longer
    assert sum(told) == len(longer)
    assert server.starts("/a") == [0, 0]


def test_a_remote_that_shrank_is_fetched_anew(server: FaultServer, tmp_path: Path) -> None:
    stop_in_the_middle(server, tmp_path / "a", checksum=None, size=None)
    url = server.serve("/a", b"small", etag="")
    fetch(url, tmp_path / "a", checksum=None, size=None)
    assert (tmp_path / "a").read_bytes() == b"small"


def test_bytes_of_an_unknown_object_are_not_joined(server: FaultServer, tmp_path: Path) -> None:
    nameless = Fault(anonymous=True, claim=-1, drop_after=1_000_000)
    url = server.serve("/a", BODY, nameless, Fault(anonymous=True))
    fetch(url, tmp_path / "a", checksum=None)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("record", ["", "[]", '{"url": 1}', "{", '{"url": "u", "version": 3}'])
def test_a_part_without_a_true_record_is_dropped(
    server: FaultServer, tmp_path: Path, record: str
) -> None:
    url = stop_in_the_middle(server, tmp_path / "a")
    (tmp_path / "a.part.json").write_text(record)
    fetch(url, tmp_path / "a")
    assert server.starts("/a") == [0, 0]


def test_a_part_damaged_on_disk_is_fetched_once_more(server: FaultServer, tmp_path: Path) -> None:
    url = stop_in_the_middle(server, tmp_path / "a")
    with (tmp_path / "a.part").open("r+b") as part:
        part.write(bytes(4096))
    told = fetch(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert sum(told) == len(BODY)


def test_all_bytes_here_but_not_renamed_needs_no_server(
    server: FaultServer, tmp_path: Path
) -> None:
    url = stop_in_the_middle(server, tmp_path / "a")
    (tmp_path / "a.part").write_bytes(BODY)
    fetch(url, tmp_path / "a")
    assert len(server.requests) == 1


def test_a_wrong_checksum_names_both_and_leaves_nothing(
    server: FaultServer, tmp_path: Path
) -> None:
    url = server.serve("/a", BODY)
    wrong = "md5:" + "0" * 32
    with pytest.raises(
        ChecksumError, match=f"/a has the wrong checksum: expected {wrong}, found"
    ) as e:
        fetch(url, tmp_path / "a", checksum=wrong)
    assert MD5 in str(e.value)
    assert names(tmp_path) == []
    fetch(url, tmp_path / "a")
    assert server.starts("/a") == [0, 0]


@pytest.mark.parametrize("told", [len(BODY) + 7, len(BODY) - 7])
def test_a_size_other_than_expected_names_both(
    server: FaultServer, tmp_path: Path, told: int
) -> None:
    url = server.serve("/a", BODY)
    with pytest.raises(StorageError, match=f"expected {told} bytes, found {len(BODY)}"):
        fetch(url, tmp_path / "a", size=told)
    assert names(tmp_path) == []


def test_a_length_that_promises_too_much(server: FaultServer, tmp_path: Path) -> None:
    server.always = Fault(claim=len(BODY) + 1000)
    url = server.serve("/a", BODY, etag="")
    with pytest.raises(StorageError, match=f"expected {len(BODY)} bytes, found {len(BODY) + 1000}"):
        fetch(url, tmp_path / "a")
    with pytest.raises(StorageError, match=r"/a .*attempts in a row: 2"):
        fetch(url, tmp_path / "a", size=None, attempts=2)


def test_a_length_that_promises_too_little(server: FaultServer, tmp_path: Path) -> None:
    server.always = Fault(claim=1000)
    url = server.serve("/a", BODY)
    # The HTTP library refuses the surplus itself where it arrives together with the head.
    surplus = "Data after"
    with pytest.raises(StorageError, match=f"expected {len(BODY)} bytes, found 1000|{surplus}"):
        fetch(url, tmp_path / "a")
    with pytest.raises(StorageError, match=f"over 1000 bytes|{surplus}"):
        fetch(url, tmp_path / "a", size=None)
    assert not (tmp_path / "a").exists()


def test_no_length_at_all(server: FaultServer, tmp_path: Path) -> None:
    server.always = Fault(claim=-1)
    url = server.serve("/a", BODY)
    fetch(url, tmp_path / "a", size=None, checksum=None)
    assert (tmp_path / "a").read_bytes() == BODY
    with pytest.raises(StorageError, match=f"expected {len(BODY) - 1} bytes, found more"):
        fetch(url, tmp_path / "b", size=len(BODY) - 1)
    with pytest.raises(
        StorageError, match=f"ended after {len(BODY)} bytes, expected {len(BODY) + 1}"
    ):
        fetch(url, tmp_path / "b", size=len(BODY) + 1, attempts=2)


@pytest.mark.parametrize("name", ["train2017.zip", "captions.json", "000000000009.jpg", "plain"])
def test_a_web_page_is_not_a_file(server: FaultServer, tmp_path: Path, name: str) -> None:
    url = server.serve(f"/{name}", BODY, Fault(page=True))
    with pytest.raises(
        StorageError, match=rf"/{name} gave a web page .*in place of {name}\n.*browser"
    ):
        fetch(url, tmp_path / name, checksum=None, size=None)
    assert names(tmp_path) == []


def test_a_page_that_is_wanted_is_a_file(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/terms.html", b"", Fault(page=True))
    fetch(url, tmp_path / "terms.html", checksum=None, size=None)
    assert (tmp_path / "terms.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_a_page_is_known_by_its_first_bytes_too(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", b" \n<HTML>sorry")
    with pytest.raises(StorageError, match="web page"):
        fetch(url, tmp_path / "a.zip", checksum=None, size=None)


def test_a_packed_file_stays_packed(server: FaultServer, tmp_path: Path) -> None:
    server.always = Fault(packed="gzip")
    body = gzip.compress(BODY)
    fetch(server.serve("/a.tar.gz", body), tmp_path / "a.tar.gz", checksum=None, size=len(body))
    assert (tmp_path / "a.tar.gz").read_bytes() == body
    with pytest.raises(StorageError, match="arrives compressed as gzip"):
        fetch(server.serve("/a.json", body), tmp_path / "a.json", checksum=None, size=None)


def test_a_redirect_is_followed_and_its_secrets_are_kept(
    server: FaultServer, tmp_path: Path
) -> None:
    goal = server.serve("/goal", BODY, Fault(drop_after=1_000_000))
    moved = Fault(redirect=f"{goal}?X-Amz-Signature=s3cret")
    url = server.serve("/a", b"", moved, moved)
    fetch(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.starts("/goal")[1] > 0
    server.serve("/a", b"", moved)
    server.serve("/goal", BODY, Fault(status=403))
    with pytest.raises(StorageError, match="/a answered HTTP 403") as caught:
        fetch(url, tmp_path / "b")
    assert "s3cret" not in str(caught.value)


def test_a_disk_too_small_is_known_before_the_first_byte(
    server: FaultServer, tmp_path: Path
) -> None:
    server.always = Fault(claim=10**16)
    url = server.serve("/a", BODY)
    with pytest.raises(
        StorageError, match=rf"not enough disk space in {tmp_path} for a: {10**16} more bytes"
    ):
        fetch(url, tmp_path / "a", size=None)


def test_a_disk_that_fills_up_names_folder_and_bytes(server: FaultServer, tmp_path: Path) -> None:
    server.always = Fault(claim=-1)  # nobody knows the size beforehand
    url = server.serve("/a", BODY)
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from storage.fetch.transfer import download
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        download(sys.argv[1], Path(sys.argv[2]), checksum=None, size=None, advance=lambda _: None)
    """)
    assert resource.RLIMIT_FSIZE
    command = [sys.executable, "-c", script, url, str(tmp_path / "a")]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[4], capture_output=True, text=True, check=False
    )
    assert (
        f"StorageError: not enough disk space in {tmp_path} for a: " in done.stderr.splitlines()[-2]
    )
    assert "a" not in names(tmp_path)


def test_a_folder_is_no_target_and_a_file_no_folder(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder is a folder"):
        fetch(url, tmp_path / "folder")
    with pytest.raises(StorageError, match=r"cannot write in .*file"):
        fetch(url, tmp_path / "file" / "a")
    with pytest.raises(StorageError, match=r"folder is a folder\n  → name one file"):
        fetch(str(tmp_path / "folder"), tmp_path / "b")


def test_two_at_once_fetch_once(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY, Fault(pace=10_000_000))
    threads = [threading.Thread(target=fetch, args=(url, tmp_path / "a")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert names(tmp_path) == ["a"]


def test_an_error_of_the_progress_bar_is_not_swallowed(server: FaultServer, tmp_path: Path) -> None:
    def cancel(_: int) -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        download(server.serve("/a", BODY), tmp_path / "a", checksum=None, size=None, advance=cancel)


@pytest.mark.parametrize("checksum", ["abc", "md5:abc", "sha1:" + "0" * 40, "sha256:" + "0" * 63])
def test_a_malformed_checksum_is_refused_at_once(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(StorageError, match="malformed"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", checksum=checksum)


@pytest.mark.parametrize(
    "url", ["nosuch://a/b", "http://", "http://[", "http://user:pw@/x", "ftp4:x"]
)
def test_an_odd_address_gives_one_line_and_a_remedy(tmp_path: Path, url: str) -> None:
    with pytest.raises(StorageError) as caught:
        fetch(url, tmp_path / "a", attempts=1)
    assert "\n" not in caught.value.message + caught.value.remedy


@pytest.mark.s3
def test_an_object_store_resumes_and_tells_versions_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server")
    store = moto.ThreadedMotoServer(port=0)
    store.start()
    host, port = store.get_host_and_port()
    keys = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for name, value in {"ENDPOINT_URL": f"http://{host}:{port}", **keys}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # they know the addresses of other tests' stores
    try:
        fs = fsspec.filesystem("s3")
        fs.mkdir("pics")
        fs.pipe_file("pics/a.zip", BODY)
        url, target = "s3://pics/a.zip", tmp_path / "a.zip"

        def stop(told: int) -> None:
            raise KeyboardInterrupt(told)

        with pytest.raises(KeyboardInterrupt):
            download(url, target, checksum=None, size=None, advance=stop)
        told = fetch(url, target)
        assert told[0] > 0
        assert sum(told) == len(BODY)
        before = probe(url)
        fs.pipe_file("pics/a.zip", BODY[::-1])
        assert probe(url) != before
        with pytest.raises(ChecksumError, match=r"s3://pics/a\.zip has the wrong checksum"):
            fetch(url, tmp_path / "b.zip")
        with pytest.raises(StorageError, match=r"s3://pics/none does not exist"):
            fetch("s3://pics/none", tmp_path / "c")
        assert list(probe("s3://pics")) == ["listing"]
    finally:
        s3.clear_instance_cache()
        store.stop()


# --- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://amy:s3cret@127.0.0.1:{port}/a.zip",
        "http://127.0.0.1:{port}/a.zip?X-Amz-Signature=s3cret&X-Amz-Date=1",
        "http://127.0.0.1:{port}/a.zip?s3cret",
        "http://127.0.0.1:{port}/a.zip#s3cret",
        "http://amy:p/s3cret@127.0.0.1:{port}/a.zip",
    ],
)
@pytest.mark.parametrize(
    "fault",
    [Fault(status=404), Fault(status=503), Fault(page=True), Fault(claim=7), Fault(drop_after=5)],
)
def test_no_error_tells_a_secret(
    server: FaultServer, tmp_path: Path, address: str, fault: Fault
) -> None:
    server.serve("/a.zip", b"PK" + BODY)
    server.always = fault
    with pytest.raises(StorageError) as caught:
        fetch(address.format(port=server.port), tmp_path / "a.zip", attempts=2)
    shown, files = caught.getrepr(style="long", chain=True), list(tmp_path.iterdir())
    told = str(caught.value) + str(shown.reprcrash) + "".join(p.read_text("latin1") for p in files)
    assert "s3cret" not in told
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_user_and_password_are_sent(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a", BODY).replace("http://", "http://amy:p%40ss@")
    fetch(url, tmp_path / "a")
    assert server.requests[0].headers["Authorization"] == "Basic YW15OnBAc3M="


def test_a_freshly_signed_address_still_resumes(server: FaultServer, tmp_path: Path) -> None:
    url = stop_in_the_middle(server, tmp_path / "a")
    fetch(f"{url}?sig=one", tmp_path / "b", checksum=None)
    server.serve("/a", BODY, Fault(drop_after=1_000_000))
    with pytest.raises(StorageError):
        fetch(f"{url}?sig=two", tmp_path / "c", attempts=1)
    fetch(f"{url}?sig=three", tmp_path / "c")
    assert server.starts("/a")[-1] > 0


def test_the_record_is_readable(server: FaultServer, tmp_path: Path) -> None:
    url = stop_in_the_middle(server, tmp_path / "a")
    record = json.loads((tmp_path / "a.part.json").read_text())
    assert record["url"] == url
    assert record["version"]["size"] == str(len(BODY))
