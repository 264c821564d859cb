"""How many bytes the subset of a remote zip moves, beside the members' own bytes.

Run it from the repository root: `python tests/benchmarks/remote_subset.py`. A zip like COCO's
train2017.zip, stored JPEG-sized members of random bytes, lies behind a real HTTP server on
loopback, and a third of its members are fetched, drawn by chance as the recipe does. fsspec's own
zip filesystem reads the same members from the same server for comparison. Bytes are counted by the
server, headers of HTTP left out. Goal: at most 1.05 bytes moved per useful byte.
"""

import argparse
import io
import random
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import fsspec

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.archives.archives import open_archive
from storage.archives.members import ArchiveLimits
from storage.fetch.remote_zip import RemoteZip
from storage.fetch.retries import Patience
from storage.fetch.subset import fetch_members
from tests.support.fault_server import FaultServer


def made_zip(members: int, mean: int) -> bytes:
    """A zip of stored members whose sizes vary as COCO's do, about threefold."""
    chance = random.Random(0)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(members):
            data = chance.randbytes(int(mean * chance.uniform(0.5, 1.5)))
            archive.writestr(f"train2017/{number:012d}.jpg", data)
    return target.getvalue()


def ours(url: str, chosen: list[str], target: Path) -> int:
    """Fetch the members, check that all are there, and return their packed bytes."""
    patience = Patience()
    with RemoteZip(url, ArchiveLimits(), patience) as remote:
        useful = sum(map(remote.packed, chosen))
        faults = fetch_members(remote, chosen, target, advance=lambda _: None, patience=patience)
    assert not faults
    with open_archive(target) as archive:
        assert archive.names() == sorted(chosen)
    return useful


def fsspecs(url: str, chosen: list[str], block: int) -> None:
    """Read the members through fsspec's zip over HTTP, one after the other."""
    remote = fsspec.filesystem(
        "zip", fo=url, remote_options={"block_size": block}, skip_instance_cache=True
    )
    for name in chosen:
        remote.cat_file(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, default=1500)
    parser.add_argument("--mean", type=int, default=163_000, help="bytes; COCO's mean")
    parser.add_argument("--share", type=float, default=0.338, help="40,000 of 118,287")
    given = parser.parse_args()
    body = made_zip(given.members, given.mean)
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    chosen = sorted(random.Random(1).sample(names, int(given.share * len(names))))
    with FaultServer() as server, tempfile.TemporaryDirectory() as folder:
        url = server.serve("/train2017.zip", body)
        began = time.perf_counter()
        useful = ours(url, chosen, Path(folder) / "subset.tar")
        seconds, moved, asked = time.perf_counter() - began, server.sent(), len(server.requests)
        print(f"zip {len(body) / 1e6:.1f} MB, {len(names)} members; wanted {len(chosen)} members")
        print(f"useful       {useful / 1e6:8.1f} MB")
        told = f"{moved / useful:.4f} of the useful bytes; goal 1.05"
        print(f"phivision    {moved / 1e6:8.1f} MB in {asked} requests, {seconds:.1f} s; {told}")
        server.requests.clear()
        began = time.perf_counter()
        fsspecs(url, chosen, 1 << 18)
        seconds, moved, asked = time.perf_counter() - began, server.sent(), len(server.requests)
        told = f"{moved / useful:.4f} of the useful bytes"
        print(f"fsspec zip   {moved / 1e6:8.1f} MB in {asked} requests, {seconds:.1f} s; {told}")


if __name__ == "__main__":
    main()
