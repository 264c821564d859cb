"""A checkpoint is taken up only as it was written, whenever the kill came."""

from pathlib import Path

import pytest

from pipeline.training.checkpoint_seals import KEPT, drop_altered, seal


def save(folder: Path, data: bytes, *, killed: bool = False) -> Path:
    """Write a checkpoint as a training does; a kill comes before the rename."""
    folder.mkdir(exist_ok=True)
    new, target = folder / ".last.ckpt.tmp", folder / "last.ckpt"
    new.write_bytes(data)
    seal(new, target)
    if not killed:
        new.replace(target)
    return target


def dropped(folder: Path) -> list[str]:
    told: list[str] = []
    drop_altered(folder, told.append)
    return told


def test_what_was_written_stays_whenever_the_kill_came(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert dropped(folder) == []
    for number in range(3 * KEPT):
        path = save(folder, b"%d" % number)
        assert dropped(folder) == []
        for kill in range(KEPT - 1):
            save(folder, b"%d killed %d" % (number, kill), killed=True)
            assert dropped(folder) == []
        assert path.read_bytes() == b"%d" % number


@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_flipped_bit_lets_it_start_over_and_says_so(tmp_path: Path, at: int) -> None:
    folder = tmp_path / "checkpoints"
    path = save(folder, bytes(1000))
    data = bytearray(1000)
    data[at] ^= 64
    path.write_bytes(data)
    assert dropped(folder) == [
        "  last.ckpt was altered since it was written: the training starts over"
    ]
    assert not folder.exists()


def test_one_without_a_word_beside_it_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"from somewhere")
    assert len(dropped(tmp_path)) == 1
