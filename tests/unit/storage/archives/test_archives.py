"""Archives that somebody else made: good members are read, bad ones are named, nothing escapes."""

import gzip
import io
import os
import random
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.archives.archives import ArchiveLimits, open_archive, resolve_member
from storage.errors import StorageError, UnsafeArchiveError

FILES = {
    "train2017/000000000009.jpg": random.Random(1).randbytes(5000),
    "train2017/000000000025.jpg": b"",
    "annotations/captions.json": b'{"images": []}' * 400,
    "ünï cödé.txt": b"text",
}
KINDS = ["folder", "zip", "tar", "tar.gz"]


def pack(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    """Write `files` as an archive of one kind."""
    path = folder / f"set.{kind}"
    if kind == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.mkdir("train2017")
            for name, data in files.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") if kind == "tar.gz" else tarfile.open(path, "w") as packed:
            for name, data in files.items():
                packed.addfile(entry(name, len(data)), io.BytesIO(data))
    return path


def entry(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data)
    return path


def tarred(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as packed:
        for info in members:
            packed.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_alike(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path, kind, FILES)
    with open_archive(path) as archive:
        assert archive.names() == sorted(FILES)
        assert {name: archive.read(name) for name in archive.names()} == FILES
        for name, data in FILES.items():
            with archive.open(name) as stream:
                assert (stream.read(3), stream.read()) == (data[:3], data[3:])
        assert all(archive.size(name) == len(data) for name, data in FILES.items())
        assert archive.refused == {}
        with pytest.raises(StorageError, match=rf"set\.{kind} member none\.jpg: there is no such"):
            archive.read("none.jpg")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_extension_does_not_matter(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path, kind, FILES).rename(tmp_path / "set.jpg")
    with open_archive(path) as archive:
        assert archive.names() == sorted(FILES)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = pack(tmp_path, "zip", FILES).read_bytes()
    with open_archive(pack(tmp_path, "tar", {"inner.zip": inner})) as archive:
        assert archive.names() == ["inner.zip"]


@pytest.mark.parametrize(
    "body", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\0" * 9]
)
def test_what_is_no_archive_is_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "train2017.zip"
    path.write_bytes(body)
    with pytest.raises(StorageError, match=r"train2017\.zip is not a zip, tar or tar\.gz"):
        open_archive(path)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.zip cannot be opened: No such file"):
        open_archive(tmp_path / "none.zip")


# --- names -------------------------------------------------------------------------------------

BAD_NAMES = {
    "/etc/passwd": "absolute path",
    "../up.jpg": "path leaves its folder (..)",
    "a/../../up.jpg": "path leaves its folder (..)",
    "C:/windows.jpg": "drive letter in the name",
    "a\\b.jpg": "backslash in the name",
    "a\nb.jpg": "control character in the name",
    "x" * 300: "name too long",
}


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES.items(), ids=BAD_NAMES.values())
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_bad_name_is_refused_and_the_good_are_read(
    tmp_path: Path, kind: str, name: str, reason: str
) -> None:
    with open_archive(pack(tmp_path, kind, {name: b"bad", "good.jpg": b"good"})) as archive:
        assert archive.names() == ["good.jpg"]
        assert archive.read("good.jpg") == b"good"
        assert list(archive.refused.values()) == [reason]
        with pytest.raises(StorageError, match="member"):
            archive.read(name)


def test_a_refused_member_says_why(tmp_path: Path) -> None:
    with (
        open_archive(pack(tmp_path, "zip", {"../a": b""})) as archive,
        pytest.raises(StorageError, match=r"member \.\./a: path leaves its folder"),
    ):
        archive.read("../a")


@pytest.mark.parametrize("name", ["good.jpg\0evil", "\0good.jpg"], ids=["goes on", "begins"])
def test_a_name_with_nul_is_refused(tmp_path: Path, name: str) -> None:
    packed_as = name.replace("\0", "X")  # Python packs nothing behind NUL
    path = zipped(tmp_path / "a.zip", (packed_as, b"1"))
    path.write_bytes(path.read_bytes().replace(packed_as.encode(), name.encode()))
    with open_archive(path) as archive:
        assert archive.names() == []
        assert archive.refused == {name.replace("\0", r"\x00"): "control character in the name"}


def test_a_name_that_is_no_text_is_refused_and_can_be_reported(tmp_path: Path) -> None:
    with open_archive(tarred(tmp_path / "a.tar", entry("caf\udce9.jpg"))) as archive:
        assert archive.refused == {r"caf\udce9.jpg": "name is not valid text"}
        str(archive.refused).encode("utf-8")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_of_one_name_are_both_refused(tmp_path: Path, kind: str) -> None:
    files = {"a/b.jpg": b"1", "a//b.jpg": b"2", "./a/b.jpg": b"3", "A/b.jpg": b"4"}
    with open_archive(pack(tmp_path, kind, files)) as archive:
        assert archive.names() == ["A/b.jpg"]
        assert archive.refused == {"a/b.jpg": "several members have this name"}


def test_names_lose_their_dots(tmp_path: Path) -> None:
    with open_archive(pack(tmp_path, "tar", {"./train2017/./1.jpg": b"1"})) as archive:
        assert archive.names() == ["train2017/1.jpg"]
        assert archive.read("train2017/1.jpg") == b"1"


@pytest.mark.parametrize(
    ("root", "name", "member"),
    [
        ("train2017", "1.jpg", "train2017/1.jpg"),
        ("", "coco/train2017/1.jpg", "coco/train2017/1.jpg"),
        ("a/b/", "./c//1.jpg", "a/b/c/1.jpg"),
        ("", "no..dots/1..jpg", "no..dots/1..jpg"),
    ],
)
def test_resolve_member(root: str, name: str, member: str) -> None:
    assert resolve_member(root, name) == member


@pytest.mark.parametrize("name", [*BAD_NAMES, "", ".", "a/", "..", "a/..", "\0", None, 9, ["a"]])
def test_resolve_member_refuses(name: str) -> None:
    with pytest.raises(UnsafeArchiveError, match=r"file_name .*\n.*annotation file"):
        resolve_member("train2017", name)


@given(
    st.text(st.sampled_from("ab./\\:C\0\n\udc80é"), max_size=12) | st.text(max_size=40),
)
def test_a_resolved_name_stays_below_its_root(name: str) -> None:
    root = Path("/data/set")
    try:
        member = resolve_member("train2017", name)
    except UnsafeArchiveError as error:
        told = error.message
        assert told.isprintable()
        return
    place = Path(os.path.normpath(root / member))
    assert place.is_relative_to(root / "train2017")
    assert place != root / "train2017"
    assert resolve_member("", member) == member
    assert "\\" not in member
    assert "\0" not in member


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(st.text(min_size=1, max_size=20), st.binary(max_size=50), max_size=6))
def test_no_name_in_a_tar_escapes_or_is_lost(tmp_path: Path, files: dict[str, bytes]) -> None:
    files = {name: data for name, data in files.items() if "\0" not in name}
    with open_archive(pack(tmp_path, "tar", files)) as archive:
        for name in archive.names():
            assert resolve_member("", name) == name
            assert archive.read(name) in files.values()
        known = len(archive.names()) + len(archive.refused)
        assert known <= len(files)
        assert bool(known) == bool(files)


# --- links and devices -------------------------------------------------------------------------

TAR_KINDS = {
    "symlink": entry("x", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": entry("x", kind=tarfile.LNKTYPE, link="good"),
    "device or pipe": entry("x", kind=tarfile.CHRTYPE),
}


@pytest.mark.parametrize(("reason", "info"), TAR_KINDS.items(), ids=TAR_KINDS)
def test_a_tar_serves_regular_files_only(
    tmp_path: Path, reason: str, info: tarfile.TarInfo
) -> None:
    members = [entry("good", 10), entry("folder", kind=tarfile.DIRTYPE), info]
    with open_archive(tarred(tmp_path / "a.tar", *members)) as archive:
        assert archive.names() == ["good"]
        assert archive.refused == {"x": reason}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(stat.S_IFLNK, "symlink"), (stat.S_IFCHR, "not a regular file"), (stat.S_IFIFO, "not a reg")],
)
def test_a_zip_serves_regular_files_only(tmp_path: Path, mode: int, reason: str) -> None:
    info = zipfile.ZipInfo("x")
    info.external_attr = (mode | 0o644) << 16
    with open_archive(zipped(tmp_path / "a.zip", (info, b"/etc/passwd"))) as archive:
        assert archive.names() == []
        assert archive.refused["x"].startswith(reason)


def test_links_in_a_folder_stay_inside(tmp_path: Path) -> None:
    root = pack(tmp_path, "folder", {"pics/1.jpg": b"1"})
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "inside.jpg").symlink_to("pics/1.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret")
    (root / "up.jpg").symlink_to("../secret")
    (root / "nothing.jpg").symlink_to("gone")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "more").symlink_to("pics")
    os.mkfifo(root / "pipe.jpg")
    (tmp_path / "other name").symlink_to(root)
    with open_archive(tmp_path / "other name") as archive:
        assert archive.names() == ["inside.jpg", "pics/1.jpg"]
        assert archive.read("inside.jpg") == b"1"
        assert archive.refused == {
            "out.jpg": "symlink leaves the folder",
            "up.jpg": "symlink leaves the folder",
            "nothing.jpg": "symlink to nothing",
            "loop.jpg": "symlink to nothing",
            "more": "symlink to a folder",
            "pipe.jpg": "not a regular file",
        }


def test_links_in_a_folder_of_the_users_own_lead_anywhere(tmp_path: Path) -> None:
    root = pack(tmp_path, "folder", {"pics/1.jpg": b"1"})
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "2.jpg").write_bytes(b"2")
    (tmp_path / "far" / "back").symlink_to(root)
    (root / "out.jpg").symlink_to("../far/2.jpg")
    (root / "more").symlink_to("../far")
    (root / "nothing.jpg").symlink_to("gone")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.jpg")
    with open_archive(root, own=True) as archive:
        assert archive.names() == ["more/2.jpg", "out.jpg", "pics/1.jpg"]
        assert archive.read("more/2.jpg") == archive.read("out.jpg") == b"2"
        assert archive.refused == {
            "nothing.jpg": "symlink to nothing",
            "loop": "symlink to nothing",
            "pipe.jpg": "not a regular file",
        }


def test_an_archive_of_the_users_own_is_guarded_like_any_other(tmp_path: Path) -> None:
    link = entry("link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
    with open_archive(tarred(tmp_path / "a.tar", link), own=True) as archive:
        assert (archive.names(), archive.refused) == ([], {"link.jpg": "symlink"})


def test_utf_8_names_that_a_zip_does_not_declare_are_read(tmp_path: Path) -> None:
    names = ("M\u00f6we.jpg", "plain.jpg")
    path = zipped(tmp_path / "mac.zip", *((name, b"1") for name in names))
    data = bytearray(path.read_bytes())
    flag = struct.pack("<H", 0x800)
    for at in (data.find(b"PK\3\4") + 6, data.find(b"PK\1\2") + 8):
        assert data[at : at + 2] == flag
        data[at : at + 2] = b"\0\0"
    path.write_bytes(data)
    with open_archive(path) as archive:
        assert archive.names() == sorted(names)
        assert archive.read(names[0]) == b"1"


def test_a_file_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    root = pack(tmp_path, "folder", {"a": b"12345", "b": b"12345", "c": b""})
    with open_archive(root) as archive:
        (root / "a").write_bytes(b"123456")
        (root / "b").write_bytes(b"1234")
        (root / "c").unlink()
        for name, found in {"a": "found more", "b": "found 4", "c": "FileNotFound"}.items():
            with pytest.raises(StorageError, match=rf"member {name} is damaged .*{found}"):
                archive.read(name)


# --- bombs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_over_its_limit_is_refused(tmp_path: Path, kind: str) -> None:
    files = {"big.jpg": b"x" * 1001, "good.jpg": b"x" * 1000}
    limits = ArchiveLimits(member_bytes=1000)
    with open_archive(pack(tmp_path, kind, files), limits=limits) as archive:
        assert archive.names() == ["good.jpg"]
        assert archive.refused == {"big.jpg": "larger than 1000 bytes"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ArchiveLimits(members=3), "more than 3 members"),
        (ArchiveLimits(total_bytes=9_000), "more than 9000 bytes unpacked"),
    ],
)
def test_an_archive_over_its_limits_is_refused_whole(
    tmp_path: Path, kind: str, limits: ArchiveLimits, reason: str
) -> None:
    path = pack(tmp_path, kind, FILES)
    with pytest.raises(UnsafeArchiveError, match=rf"set\.{kind} has {reason}\n  → if"):
        open_archive(path, limits=limits)


def test_a_zip_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("bomb", bytes(52_000_000)), ("ok", os.urandom(300_000)))
    assert path.stat().st_size < 360_000
    with open_archive(path) as archive:
        assert archive.names() == ["ok"]
        assert archive.refused == {"bomb": "compression ratio over 200"}


def test_a_bomb_of_many_small_members_is_refused(tmp_path: Path) -> None:
    many = [(f"{n}.jpg", bytes(1 << 20)) for n in range(20)]
    with pytest.raises(UnsafeArchiveError, match="compression ratio over 200"):
        open_archive(zipped(tmp_path / "a.zip", *many))


def test_a_gzip_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        for _ in range(64):
            packed.write(bytes(1 << 20))
    with pytest.raises(UnsafeArchiveError, match="compression ratio over"):
        open_archive(path)
    limits = ArchiveLimits(members=10, total_bytes=5 << 20, ratio=1e9)
    with pytest.raises(UnsafeArchiveError, match=f"more than {5 << 20} bytes unpacked"):
        open_archive(path, limits=limits)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_stopped_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as packed:
        packed.writestr("a.jpg", b"1")
    with open_archive(tmp_path / "a.zip") as archive:
        assert archive.refused == {"a.jpg": "packed by a method other than deflate"}


def patch_zip(path: Path, field: int, value: int) -> None:
    """Overwrite a 4-byte field of the central directory's first entry."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + field, value)
    path.write_bytes(data)


@pytest.mark.parametrize("size", [10, 60_000_000], ids=["less", "more"])
def test_a_lie_about_the_unpacked_size_is_found(tmp_path: Path, size: int) -> None:
    path = zipped(tmp_path / "a.zip", ("a.jpg", os.urandom(500_000)))
    patch_zip(path, 24, size)
    with (
        open_archive(path) as archive,
        pytest.raises(StorageError, match=r"a\.zip member a\.jpg is"),
    ):
        archive.read("a.jpg")


def test_a_lie_hides_no_bomb(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a.jpg", bytes(100_000_000)))
    patch_zip(path, 24, 1000)
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from storage.archives.archives import open_archive
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open_archive(Path(sys.argv[1])) as archive:
            try:
                archive.read("a.jpg")
            except Exception as error:
                print(type(error).__name__)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
    )
    kind, kib = done.stdout.split()
    assert kind == "StorageError"
    assert int(kib) < 20_000


def test_a_tar_header_that_eats_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as handle:
        handle.write(entry("x", 50_000_000, kind=tarfile.XHDTYPE).tobuf())
        handle.truncate(50_100_000)
    with pytest.raises(UnsafeArchiveError, match=r"a\.tar has a tar header of 50\d+ bytes"):
        open_archive(path)


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = entry("x.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "10"}
    with open_archive(tarred(tmp_path / "a.tar", info)) as archive:
        assert archive.refused == {"x.jpg": "sparse file"}


# --- damage ------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_zip_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path, "zip", FILES)
    data = bytearray(path.read_bytes())
    data[data.index(FILES["train2017/000000000009.jpg"][:40]) + 20] ^= 1
    path.write_bytes(data)
    with open_archive(path) as archive:
        with pytest.raises(
            StorageError, match=r"set\.zip member train2017/0+9\.jpg is damaged .*CRC"
        ):
            archive.read("train2017/000000000009.jpg")
        assert archive.read("ünï cödé.txt") == b"text"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.8])
def test_a_truncated_archive_is_never_taken_for_whole(
    tmp_path: Path, kind: str, share: float
) -> None:
    path = pack(tmp_path, kind, {f"{n}.jpg": random.Random(n).randbytes(2000) for n in range(20)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(StorageError, match=rf"set\.{kind} is (damaged|no zip)"):
        open_archive(path)


def test_a_tar_cut_between_two_members_is_not_whole(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", entry("1.jpg", 512), entry("2.jpg", 512))
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(StorageError, match="no header and no end mark at byte 1024"):
        open_archive(path)
    path = tarred(tmp_path / "b.tar", entry("1.jpg", 512), entry("2.jpg", 512))
    data = bytearray(path.read_bytes())
    data[1030] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="no header and no end mark at byte 1024"):
        open_archive(path)


def test_a_tar_whose_headers_go_in_a_circle_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members = [entry(f"{n}.jpg", 512).tobuf() + bytes(512) for n in range(2)]
    back = entry("2.jpg", -1536).tobuf(tarfile.GNU_FORMAT)  # to the header of 1.jpg
    path.write_bytes(b"".join([*members, back, bytes(1024)]))
    # Newer versions of tarfile refuse that size, and end there.
    with pytest.raises(StorageError, match=r"a\.tar is damaged .*(points back|no end mark)"):
        open_archive(path)


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path, "zip", FILES)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)  # the first is a folder
    data[at + 8] |= 1
    path.write_bytes(data)
    with (
        open_archive(path) as archive,
        pytest.raises(StorageError, match=r"9\.jpg is encrypted\n  → unpack it with its password"),
    ):
        archive.read("train2017/000000000009.jpg")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_damage_anywhere_gives_our_error_or_the_truth(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    body = bytearray(pack(tmp_path, kind, FILES).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(body)
    try:
        with open_archive(path) as archive:
            for name in archive.names():
                assert resolve_member("", name) == name
                archive.read(name)
    except StorageError as error:
        told = error.message
        assert told.isprintable()
        assert str(path) in told


def test_no_room_to_unpack_names_the_folder(tmp_path: Path) -> None:
    path = pack(tmp_path, "tar.gz", {"a": os.urandom(3_000_000)})
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from storage.archives.archives import open_archive
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        open_archive(Path(sys.argv[1]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        f"StorageError: not enough disk space in {tmp_path} to unpack set.tar.gz"
        in done.stderr.splitlines()[-2]
    )


def test_an_archive_in_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    path = pack(tmp_path, "tar.gz", FILES)
    tmp_path.chmod(0o555)
    try:
        with open_archive(path) as archive:
            assert archive.names() == sorted(FILES)
    finally:
        tmp_path.chmod(0o755)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:700], lambda data: data], ids=["cut", "large"]
)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_refused_archive_leaves_no_file_open(
    tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    path = pack(tmp_path, kind, FILES)
    path.write_bytes(spoil(path.read_bytes()))
    before = open_files()
    with pytest.raises(StorageError):
        open_archive(path, limits=ArchiveLimits(members=1))
    assert open_files() == before
