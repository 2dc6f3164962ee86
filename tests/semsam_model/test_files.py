"""A file is whole under its name or not there."""

import errno
import stat
from pathlib import Path

import pytest

from semsam_model.files import atomic_write


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_the_content_gets_its_name_when_it_is_whole(tmp_path: Path, shared: bool, sync: bool) -> None:
    path = tmp_path / "made" / "file"
    for content in ("first", "second"):
        with atomic_write(path, shared=shared, sync=sync) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as temporary:
        name = temporary
        temporary.write_text("")
    name.write_text("left by a killed process")
    with atomic_write(path, mode=0o600) as temporary, temporary.open("a") as file:
        file.write("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_writers_of_a_shared_file_do_not_touch_each_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path, shared=True) as one:
        one.write_text("one")
        with atomic_write(path, shared=True) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(OSError, match="No space") as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
