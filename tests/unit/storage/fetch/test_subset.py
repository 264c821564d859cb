"""Members of a zip behind HTTP, and files by address, from a real server that misbehaves."""

import io
import random
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.archives.archives import ArchiveLimits, open_archive
from storage.errors import NoRangeError, StorageError, UnsafeArchiveError
from storage.fetch.remote_zip import RemoteZip
from storage.fetch.retries import Patience
from storage.fetch.spans import Span, batches
from storage.fetch.subset import fetch_files, fetch_members
from tests.support.fault_server import Fault, FaultServer
from tests.support.loopback import LoopbackServer, QuietHandler

LIMITS = ArchiveLimits()
QUICK = Patience(attempts=3, backoff=0.005, timeout=5.0, connections=4)
RANDOM = random.Random(0)
FILES = {f"train2017/{number:012d}.jpg": RANDOM.randbytes(30_000) for number in range(60)}
CHOSEN = sorted(FILES)[::3]
ETAG = '"one"'


def packed(
    files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, stream: bool = False
) -> bytes:
    """A zip; `stream` gives data descriptors, as a packer does that writes to a pipe."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not stream

        def tell(self) -> int:
            if stream:
                raise io.UnsupportedOperation
            return super().tell()

    target = Pipe()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@pytest.fixture(scope="module")
def lasting() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


def fetch(url: str, target: Path, names: list[str] | None = None, **options: Any) -> dict[str, str]:
    with RemoteZip(url, LIMITS, QUICK) as archive:
        told: list[int] = []
        chosen = CHOSEN if names is None else names
        faults = fetch_members(
            archive, chosen, target, advance=told.append, patience=QUICK, **options
        )
        assert sum(told) == sum(archive.packed(name) for name in chosen)
    return faults


def content(target: Path) -> dict[str, bytes]:
    with open_archive(target) as archive:
        return {name: archive.read(name) for name in archive.names()}


def wanted(names: list[str] = CHOSEN) -> dict[str, bytes]:
    return {name: FILES[name] for name in names}


# -- which ranges -----------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 90)), max_size=40),
    st.floats(0, 1),
    st.integers(1, 500),
)
def test_batches_keep_every_span_and_the_budget(
    parts: list[tuple[int, int]], waste: float, longest: int
) -> None:
    spans, at = [], 0
    for number, (gap, size) in enumerate(parts):
        spans.append(Span(str(number), at + gap, at + gap + size))
        at += gap + size
    found = batches(reversed(spans), waste=waste, longest=longest)
    assert [span for batch in found for span in batch] == spans
    useful = sum(span.end - span.first for span in spans)
    moved = sum(batch[-1].end - batch[0].first for batch in found)
    assert moved <= useful * (1 + waste) + 1e-6
    assert all(len(b) == 1 or b[-1].end - b[0].first <= longest for b in found)


def test_neighbours_are_one_request_and_small_gaps_come_first() -> None:
    spans = [Span("a", 0, 100), Span("b", 100, 200), Span("c", 204, 300), Span("d", 900, 1000)]
    assert [[s.name for s in b] for b in batches(spans)] == [["a", "b", "c"], ["d"]]
    assert [[s.name for s in b] for b in batches(spans, waste=0)] == [["a", "b"], ["c"], ["d"]]


def test_overlapping_spans_are_asked_for_one_by_one() -> None:
    spans = [Span("a", 0, 100), Span("b", 50, 150)]
    assert [len(batch) for batch in batches(spans)] == [1, 1]


# -- a good server ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("stream", [False, True])
def test_only_the_chosen_members_are_moved(
    server: FaultServer, tmp_path: Path, method: int, stream: bool
) -> None:
    body = packed(FILES, method, stream)
    assert fetch(server.serve("/a.zip", body), tmp_path / "a.tar") == {}
    assert content(tmp_path / "a.tar") == wanted()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    useful = sum(map(len, wanted().values()))
    assert server.sent() <= 1.05 * useful
    assert all(seen.headers["If-Range"] for seen in server.requests[1:])


def test_neighbours_come_in_one_request(server: FaultServer, tmp_path: Path) -> None:
    names = sorted(FILES)[:30]
    fetch(server.serve("/a.zip", packed(FILES)), tmp_path / "a.tar", names)
    assert len(server.requests) == 3  # the probe, the end with the directory, and the members


def test_zip64_with_a_comment_is_read(server: FaultServer, tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
        archive.comment = b"of twelve thousand letters " * 450
    body = target.getvalue()
    # zipfile writes the zip64 end record only where it must; here is one by hand.
    end = body.rindex(b"PK\x05\x06")
    count, size, start = (int.from_bytes(body[end + a : end + b], "little")
                          for a, b in ((10, 12), (12, 16), (16, 20)))  # fmt: skip
    record = b"PK\x06\x06" + b"".join(
        value.to_bytes(width, "little")
        for value, width in ((44, 8), (45, 2), (45, 2), (0, 4), (0, 4), (count, 8), (count, 8),
                             (size, 8), (start, 8))
    )  # fmt: skip
    locator = b"PK\x06\x07" + (0).to_bytes(4, "little") + end.to_bytes(8, "little") + b"\1\0\0\0"
    tail = body[end : end + 8] + b"\xff" * 12 + body[end + 20 :]
    url = server.serve("/a.zip", body[:end] + record + locator + tail)
    fetch(url, tmp_path / "a.tar")
    assert content(tmp_path / "a.tar") == wanted()


def test_a_member_can_be_read_by_itself(server: FaultServer) -> None:
    with RemoteZip(server.serve("/a.zip", packed(FILES)), LIMITS, QUICK) as archive:
        assert archive.names() == sorted(FILES)
        assert archive.read(CHOSEN[3]) == FILES[CHOSEN[3]]
        with pytest.raises(StorageError, match=r"a\.zip member none: there is no such file"):
            archive.read("none")


def test_what_is_finished_is_not_asked_for_again(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", packed(FILES))
    fetch(url, tmp_path / "a.tar")
    server.requests.clear()
    fetch(url, tmp_path / "a.tar")
    assert len(server.requests) == 2  # the probe and the directory


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\nexec unzip $0\n"], ids=["alone", "program"])
def test_an_empty_zip_has_no_members(server: FaultServer, before: bytes) -> None:
    target = io.BytesIO(before)
    zipfile.ZipFile(target, "a").close()
    with RemoteZip(server.serve("/a.zip", target.getvalue()), LIMITS, QUICK) as archive:
        assert archive.names() == []


def test_unsafe_names_and_bombs_are_refused_as_in_a_local_zip(server: FaultServer) -> None:
    body = packed({"../out.jpg": b"x", "ok.jpg": b"y", "bomb.jpg": bytes(5 << 20)}, 8)
    with RemoteZip(server.serve("/a.zip", body), LIMITS, QUICK) as archive:
        assert archive.names() == ["ok.jpg"]
        assert archive.refused == {
            "../out.jpg": "path leaves its folder (..)",
            "bomb.jpg": "compression ratio over 200",
        }
    with pytest.raises(UnsafeArchiveError, match="more than 2 members"):
        RemoteZip(server.serve("/b.zip", body), ArchiveLimits(members=2), QUICK)


# -- a bad server -----------------------------------------------------------------------------

FAULTS = {
    "drops": Fault(drop_after=50_000),
    "stalls": Fault(stall_after=1_000, stall=5.0),
    "claims too much": Fault(claim=9_000_000),
    "ends early": Fault(claim=-1, drop_after=500),
    "is busy": Fault(status=503, retry_after="0"),
    "is overrun": Fault(status=429),
    "forgets the range": Fault(ignore_range=True),
    "sends a page": Fault(page=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [0, 3], ids=["at once", "later"])
def test_members_arrive_whatever_goes_wrong(
    server: FaultServer, tmp_path: Path, fault: str, before: int
) -> None:
    if before == 0 and fault in {"forgets the range", "sends a page"}:
        pytest.skip("that server has no Range; see below")
    faults = [Fault()] * before + [FAULTS[fault]] * 2
    url = server.serve("/a.zip", packed(FILES), *faults)
    quick = Patience(attempts=4, backoff=0.005, timeout=0.5, connections=4)
    with RemoteZip(url, LIMITS, quick) as archive:
        fetch_members(archive, CHOSEN, tmp_path / "a", advance=lambda _: None, patience=quick)
    assert content(tmp_path / "a") == wanted()


@pytest.mark.parametrize("fault", [Fault(ignore_range=True), Fault(page=True)])
def test_a_server_without_range_is_told_apart(server: FaultServer, fault: Fault) -> None:
    server.always = fault
    with pytest.raises(NoRangeError, match="does not support Range"):
        RemoteZip(server.serve("/a.zip", packed(FILES)), LIMITS, QUICK)


class Unhelpful(QuietHandler):
    """Gives ranges of zeros and, of the last 22 bytes, a zip's end that names a huge directory."""

    DIRECTORY = 300 << 20
    total = "*"

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, self.DIRECTORY, 0, 0)
        body = end.rjust(last + 1 - first, b"\0")[: last + 1 - first]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{self.total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Endless(Unhelpful):
    total = str(Unhelpful.DIRECTORY + 22)


def test_a_server_that_does_not_tell_the_size_is_told_apart() -> None:
    with (
        LoopbackServer(Unhelpful) as unhelpful,
        pytest.raises(NoRangeError, match=r"/a\.zip does not report its size\n  → fetch it whole"),
    ):
        RemoteZip(f"{unhelpful.url}/a.zip", LIMITS, QUICK)


def test_a_huge_directory_is_not_moved() -> None:
    with (
        LoopbackServer(Endless) as endless,
        pytest.raises(StorageError, match=rf"/a\.zip has a directory of {Endless.DIRECTORY} bytes"),
    ):
        RemoteZip(f"{endless.url}/a.zip", LIMITS, QUICK)


def test_a_server_that_stays_busy_before_the_directory_is_named(server: FaultServer) -> None:
    url = server.serve("/a.zip", packed(FILES), *[Fault(status=503)] * 9)
    with pytest.raises(StorageError, match=r"/a\.zip answered HTTP 503"):
        RemoteZip(url, LIMITS, QUICK)
    assert len(server.requests) == QUICK.attempts


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (20, 30_010, r"expected 30010 packed bytes, found 30\d+"),
        (42, -200, "no member begins where the directory says"),
    ],
    ids=["packed size", "place"],
)
def test_a_directory_that_lies_is_found(
    server: FaultServer, field: int, value: int, reason: str
) -> None:
    body = bytearray(packed(FILES))
    first = sorted(FILES)[0]
    place = body.index(b"PK\1\2") + field
    # A place below 0 counts from the end, behind all members.
    struct.pack_into("<I", body, place, value if value > 0 else len(body) + value)
    with (
        RemoteZip(server.serve("/a.zip", bytes(body)), LIMITS, QUICK) as archive,
        pytest.raises(StorageError, match=rf"member {first} is damaged .*{reason}"),
    ):
        archive.read(first)


def test_another_file_in_between_stops_the_work(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", packed(FILES), etag='"old"')
    with RemoteZip(url, LIMITS, QUICK) as archive:
        server.serve("/a.zip", packed(FILES), etag='"new"')
        with pytest.raises(StorageError, match="changed while it was read"):
            fetch_members(archive, CHOSEN, tmp_path / "a", advance=lambda _: None, patience=QUICK)
    assert not (tmp_path / "a").exists()


def test_what_came_of_an_older_archive_is_not_mixed_in(server: FaultServer, tmp_path: Path) -> None:
    fetch(server.serve("/a.zip", packed(FILES)), tmp_path / "a", CHOSEN[:5])
    (tmp_path / "a").rename(tmp_path / "a.part")
    newer = {name: data[::-1] for name, data in FILES.items()}
    fetch(server.serve("/a.zip", packed(newer)), tmp_path / "a")
    assert content(tmp_path / "a") == {name: newer[name] for name in CHOSEN}


def test_a_network_that_stays_away_keeps_what_came(server: FaultServer, tmp_path: Path) -> None:
    dead = [Fault()] * 8 + [Fault(status=503)] * 500
    url = server.serve("/a.zip", packed(FILES), *dead)
    with pytest.raises(StorageError, match=r"503.*attempts in a row: 3\)\n.*run again"):
        fetch(url, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with FaultServer() as better:
        fetch(better.serve("/a.zip", packed(FILES)), tmp_path / "a")
        assert better.sent() < sum(map(len, wanted().values())) - 30_000
    assert content(tmp_path / "a") == wanted()


def test_a_damaged_member_is_named_and_tried_again_by_the_next_run(
    server: FaultServer, tmp_path: Path
) -> None:
    body = bytearray(packed(FILES))
    body[body.index(FILES[CHOSEN[2]]) + 7] ^= 1
    faults = fetch(server.serve("/a.zip", bytes(body)), tmp_path / "a")
    assert list(faults) == [CHOSEN[2]]
    assert "CRC-32 differs" in faults[CHOSEN[2]]
    assert content(tmp_path / "a") == wanted([name for name in CHOSEN if name != CHOSEN[2]])
    server.requests.clear()
    assert fetch(server.serve("/a.zip", packed(FILES)), tmp_path / "a") == {}
    assert content(tmp_path / "a") == wanted()
    assert sum(seen.sent > 20_000 for seen in server.requests) == 1


def test_a_second_look_at_a_damaged_member_may_have_to_wait(
    server: FaultServer, tmp_path: Path
) -> None:
    names = sorted(FILES)[:3]
    body = bytearray(packed(FILES))
    body[body.index(FILES[names[1]]) + 7] ^= 1
    # The probe, the directory, all three members, and then the second look.
    url = server.serve("/a.zip", bytes(body), *[Fault()] * 3, Fault(status=503))
    with RemoteZip(url, LIMITS, QUICK) as archive:
        faults = fetch_members(
            archive, names, tmp_path / "a", advance=lambda _: None, patience=QUICK
        )
    assert [seen.status for seen in server.requests] == [206, 206, 206, 503, 206, 206]
    assert list(faults) == [names[1]]
    assert content(tmp_path / "a") == wanted([names[0], names[2]])


def test_a_failure_stops_the_others_at_their_next_member(
    server: FaultServer, tmp_path: Path
) -> None:
    names = sorted(FILES)
    there, gone = names[:20], names[30:50]
    slow, missing = Fault(pace=1_000_000), Fault(status=404)
    url = server.serve("/a.zip", packed(FILES), Fault(), Fault(), slow, missing)
    with (
        RemoteZip(url, LIMITS, QUICK) as archive,
        pytest.raises(StorageError, match="HTTP 404"),
    ):
        fetch_members(
            archive, [*there, *gone], tmp_path / "a", advance=lambda _: None, patience=QUICK
        )
    assert server.sent() < 500_000  # of 600,000 in the slow request


def test_a_failure_wakes_who_waits_for_a_busy_server(server: FaultServer, tmp_path: Path) -> None:
    busy = server.serve("/busy", b"", *[Fault(status=503, retry_after="50")] * 9)
    dropped = server.serve("/dropped", b"", *[Fault(status=500)] * 9)
    urls, started = {"busy": busy, "dropped": dropped}, time.monotonic()
    with pytest.raises(StorageError, match=r"HTTP 500.*attempts in a row: 3"):
        fetch_files(urls, tmp_path / "a", largest=9, advance=lambda _: None, patience=QUICK)
    assert time.monotonic() - started < 40


def test_no_zip_is_called_no_zip(server: FaultServer) -> None:
    with pytest.raises(StorageError, match=r"/a\.zip is damaged or cut short \(BadZipFile"):
        RemoteZip(server.serve("/a.zip", RANDOM.randbytes(100_000)), LIMITS, QUICK)
    with pytest.raises(StorageError, match=r"/short\.zip is damaged or cut short"):
        RemoteZip(server.serve("/short.zip", b"PK"), LIMITS, QUICK)
    with pytest.raises(StorageError, match="HTTP 404"):
        RemoteZip(f"http://127.0.0.1:{server.port}/none.zip", LIMITS, QUICK)


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_zip_gives_members_or_a_clear_error(
    lasting: FaultServer, data: st.DataObject
) -> None:
    body = bytearray(packed({f"{n}.jpg": bytes([n]) * 300 for n in range(6)}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    body = body[:cut] if data.draw(st.booleans()) else body
    try:
        with RemoteZip(lasting.serve("/a.zip", bytes(body)), LIMITS, QUICK) as archive:
            for name in archive.names():
                archive.read(name)
    except StorageError as error:
        assert "a.zip" in str(error)  # noqa: PT017


# -- after a kill -----------------------------------------------------------------------------

KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from storage.archives.members import ArchiveLimits
    from storage.fetch.remote_zip import RemoteZip
    from storage.fetch.retries import Patience
    from storage.fetch.subset import fetch_members
    patience = Patience(connections=2)
    with RemoteZip(sys.argv[1], ArchiveLimits(), patience) as archive:
        fetch_members(archive, sys.argv[3:], Path(sys.argv[2]), advance=print, patience=patience)
    """
)


def test_a_killed_fetch_goes_on_member_by_member(server: FaultServer, tmp_path: Path) -> None:
    url = server.serve("/a.zip", packed(FILES))
    server.always = Fault(pace=640_000)
    command = [sys.executable, "-u", "-c", KILLED, url, str(tmp_path / "a"), *CHOSEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.kill()
    part = tmp_path / "a.part"
    assert part.is_file()
    came = part.stat().st_size // 31_000
    assert came >= 4
    part.write_bytes(part.read_bytes() + b"half a header")
    server.always = Fault()
    server.requests.clear()
    fetch(url, tmp_path / "a")
    assert content(tmp_path / "a") == wanted()
    assert server.sent() < (len(CHOSEN) - came + 1) * 30_500


@pytest.mark.parametrize("damage", ["cut", "flip", "zeros"])
def test_a_torn_file_is_fetched_again(server: FaultServer, tmp_path: Path, damage: str) -> None:
    url = server.serve("/a.zip", packed(FILES))
    fetch(url, tmp_path / "a", CHOSEN[:4])
    raw = bytearray((tmp_path / "a").read_bytes())
    half = len(raw) // 2
    if damage == "cut":
        raw = raw[:half]
    elif damage == "flip":
        raw[half] ^= 1
    else:
        raw[half:] = bytes(len(raw) - half)
    (tmp_path / "a").unlink()
    (tmp_path / "a.part").write_bytes(bytes(raw))
    fetch(url, tmp_path / "a")
    assert content(tmp_path / "a") == wanted()


# -- an address for each file -----------------------------------------------------------------


def by_address(server: FaultServer, target: Path, **odd: str) -> tuple[dict[str, str], int]:
    urls = {name: server.serve(f"/{name}", FILES[name]) for name in CHOSEN} | odd
    told: list[int] = []
    faults = fetch_files(urls, target, largest=40_000, advance=told.append, patience=QUICK)
    return faults, sum(told)


def test_files_come_by_their_addresses(server: FaultServer, tmp_path: Path) -> None:
    server.serve(f"/{CHOSEN[0]}", b"", Fault(drop_after=99), Fault(claim=10**6))
    server.serve(f"/{CHOSEN[1]}", b"", Fault(status=503), Fault(stall_after=9, stall=0.1))
    assert by_address(server, tmp_path / "a") == ({}, len(CHOSEN))
    assert content(tmp_path / "a") == wanted()
    server.requests.clear()
    assert by_address(server, tmp_path / "a") == ({}, len(CHOSEN))
    assert server.requests == []


def test_files_that_cannot_be_had_are_named(server: FaultServer, tmp_path: Path) -> None:
    large = server.serve("/large", bytes(40_001))
    secret = "http://me:pass@127.0.0.1:1"
    odd = {"gone": large.replace("large", "gone"), "local": "file:///etc/passwd", "large": large}
    faults, told = by_address(server, tmp_path / "a", **odd)
    assert told == len(CHOSEN) + 3
    assert "HTTP 404" in faults["gone"]
    assert "not an HTTP address" in faults["local"]
    assert "more than 40000 bytes" in faults["large"]
    assert content(tmp_path / "a") == wanted()
    with pytest.raises(StorageError, match="attempts in a row: 3") as told_of:
        by_address(server, tmp_path / "b", unreachable=secret)
    assert "pass" not in str(told_of.value)


class Stingy(QuietHandler):
    """Gives the first five bytes of nine, unasked."""

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-4/9")
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")


def test_the_beginning_of_a_file_is_not_taken_for_the_file(tmp_path: Path) -> None:
    with (
        LoopbackServer(Stingy) as stingy,
        pytest.raises(StorageError, match=r"/a\.jpg ended after 5 bytes, expected 9"),
    ):
        fetch_files(
            {"a.jpg": f"{stingy.url}/a.jpg"},
            tmp_path / "a",
            largest=99,
            advance=lambda _: None,
            patience=QUICK,
        )
    assert not (tmp_path / "a").exists()


def test_crc_of_the_directory_is_what_counts(server: FaultServer) -> None:
    with RemoteZip(server.serve("/a.zip", packed(FILES)), LIMITS, QUICK) as archive:
        assert archive.crc(CHOSEN[0]) == zlib.crc32(FILES[CHOSEN[0]])
