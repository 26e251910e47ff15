"""Two generations of a checkpoint, whatever happens to the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from privcode.checkpoints import Generations
from privcode.errors import StageFailed
from privcode.workspace import Workspace


def write(folder: Path, *steps: int) -> None:
    generations = Generations(folder)
    generations.newest()
    for step in steps:
        generations.write(step, lambda file, step=step: file.write(b"state %d " % step * 100))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def flip(path: Path, *, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit": lambda path: flip(path, byte=3),
    "last bit": lambda path: flip(path, byte=-1),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


def test_two_are_kept(tmp_path: Path) -> None:
    assert Generations(tmp_path).newest() is None
    write(tmp_path, 9, 10, 100)
    assert steps(tmp_path) == [10, 100]
    newest = Generations(tmp_path).newest()
    assert newest is not None
    assert (newest.step, newest.path.read_bytes()) == (100, b"state 100 " * 100)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    keep = Workspace.of(tmp_path, "s").keep
    keep.mkdir(parents=True)
    write(keep, 10, 20)
    older, newer = sorted(keep.iterdir())
    DAMAGES[damage](newer)
    assert Workspace.of(tmp_path, "s").checkpointed_steps() == 10
    write(keep, 15)
    assert steps(keep) == [10, 15], "the whole one stays, the damaged one goes"
    for path in keep.iterdir():
        DAMAGES[damage](path)
    with pytest.raises(StageFailed) as refused:
        Workspace.of(tmp_path, "s").checkpointed_steps()
    assert refused.value.code == "checkpoint_unusable"
    assert older.exists(), "nothing is removed by looking"


def test_the_only_one_damaged_is_not_a_new_beginning(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")
    with pytest.raises(StageFailed):
        Generations(tmp_path).newest()


def test_a_write_that_breaks_off_leaves_the_last_ones(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)

    def save(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Generations(tmp_path).write(30, save)
    assert (tmp_path / "checkpoint.tmp").exists()
    newest = Generations(tmp_path).newest()
    assert newest is not None
    assert newest.step == 20
    write(tmp_path, 30)
    assert steps(tmp_path) == [20, 30]
    assert not (tmp_path / "checkpoint.tmp").exists()
