from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from semsam_model.checkpoints.download import download, public_url
from semsam_model.errors import CheckpointError
from tests.semsam_model.file_server import FileServer

BODY = random.Random(1).randbytes(700_000)
CUT = 400_000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(BODY).running() as running:
        yield running


@pytest.fixture
def begun(server: FileServer, tmp_path: Path) -> Path:
    """A download that broke in the middle."""
    path = tmp_path / "new" / "weights.pth"
    server.cut_after = CUT
    with pytest.raises(CheckpointError, match="run the same command again, it continues from there"):
        download(server.url, path, progress=False)
    server.cut_after = None
    server.asked.clear()
    assert not path.exists()
    return path


def arrived(path: Path) -> int:
    return path.with_name(path.name + ".part").stat().st_size


def assert_whole(path: Path) -> None:
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_arrives_whole_with_nothing_left_beside_it(server: FileServer, tmp_path: Path) -> None:
    download(server.url, tmp_path / "weights.pth", progress=False)
    assert_whole(tmp_path / "weights.pth")


def test_progress_is_shown_on_stderr_alone(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(server.url, tmp_path / "weights.pth")
    shown = capsys.readouterr()
    assert shown.out == "" and "700.0/700.0 kB" in shown.err


def test_a_broken_download_is_continued_from_where_it_broke(server: FileServer, begun: Path) -> None:
    kept = arrived(begun)
    assert 0 < kept <= CUT
    download(server.url, begun, progress=False)
    assert [(asked["Range"], asked["If-Range"]) for asked in server.asked] == [(f"bytes={kept}-", '"one"')]
    assert_whole(begun)


def test_a_download_may_break_many_times(server: FileServer, begun: Path) -> None:
    server.cut_after = 70_000
    for _ in range(20):
        before = arrived(begun)
        try:
            download(server.url, begun, progress=False)
        except CheckpointError:
            assert arrived(begun) > before
        else:
            break
    assert_whole(begun)


def test_a_file_changed_on_the_server_is_begun_again(server: FileServer, begun: Path) -> None:
    server.body, server.etag = BODY[::-1], '"two"'
    download(server.url, begun, progress=False)
    assert begun.read_bytes() == BODY[::-1]


def test_a_server_that_sends_a_range_of_a_changed_file_is_not_believed(server: FileServer, begun: Path) -> None:
    server.body, server.etag, server.honest = BODY[::-1], '"two"', False
    download(server.url, begun, progress=False)
    assert begun.read_bytes() == BODY[::-1]


def test_a_range_that_was_not_asked_for_is_not_appended(server: FileServer, begun: Path) -> None:
    server.shift = 10
    download(server.url, begun, progress=False)
    assert_whole(begun)


def test_a_server_that_knows_no_ranges_sends_everything_again(server: FileServer, begun: Path) -> None:
    server.ranges = False
    download(server.url, begun, progress=False)
    assert_whole(begun)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_reliable_tag_nothing_is_continued(etag: str | None, server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    server.etag, server.cut_after = etag, CUT
    with pytest.raises(CheckpointError):
        download(server.url, path, progress=False)
    server.cut_after = None
    server.asked.clear()
    download(server.url, path, progress=False)
    assert "Range" not in server.asked[0]
    assert_whole(path)


def test_a_part_that_is_already_everything_is_taken(server: FileServer, begun: Path) -> None:
    begun.with_name(begun.name + ".part").write_bytes(BODY)
    download(server.url, begun, progress=False)
    assert len(server.asked) == 1
    assert_whole(begun)


def test_a_part_longer_than_the_file_is_begun_again(server: FileServer, begun: Path) -> None:
    begun.with_name(begun.name + ".part").write_bytes(BODY + b"more")
    download(server.url, begun, progress=False)
    assert_whole(begun)


def test_a_body_without_a_length_ends_with_the_connection(server: FileServer, tmp_path: Path) -> None:
    server.length = False
    download(server.url, tmp_path / "weights.pth", progress=False)
    assert_whole(tmp_path / "weights.pth")


def test_a_rest_that_ends_early_without_a_length_is_noticed(server: FileServer, begun: Path) -> None:
    server.length, server.cut_after = False, 1000
    kept = arrived(begun)
    with pytest.raises(CheckpointError, match=f"{kept + 1000} of {len(BODY)} bytes arrived"):
        download(server.url, begun, progress=False)
    server.cut_after = None
    download(server.url, begun, progress=False)
    assert_whole(begun)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_told_and_keeps_what_had_arrived(status: int, server: FileServer, begun: Path) -> None:
    kept = arrived(begun)
    server.status = status
    with pytest.raises(CheckpointError, match=f"the server answered {status} .*, expected the file"):
        download(server.url, begun, progress=False)
    assert arrived(begun) == kept


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with FileServer(BODY).running() as gone:
        pass
    with pytest.raises(CheckpointError, match=r"weights\.pth: ConnectionError after 0 bytes"):
        download(gone.url, tmp_path / "weights.pth", progress=False)


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MissingSchema|InvalidSchema"):
        download("weights.pth", tmp_path / "weights.pth", progress=False)
    with pytest.raises(CheckpointError, match="InvalidSchema"):
        download("file:///etc/passwd", tmp_path / "weights.pth", progress=False)


def test_a_folder_that_cannot_be_made_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "weights.pth", progress=False)


def test_secrets_in_an_address_stay_out_of_messages(server: FileServer, tmp_path: Path) -> None:
    secret = server.url.replace("http://", "http://user:hunter2@") + "?X-Signature=s3cr3t#part"
    assert public_url(secret) == server.url
    server.status = 403
    with pytest.raises(CheckpointError) as refused:
        download(secret, tmp_path / "weights.pth", progress=False)
    server.status, server.cut_after = 200, 10
    with pytest.raises(CheckpointError) as broken:
        download(secret, tmp_path / "weights.pth", progress=False)
    for caught in (refused, broken):
        assert "hunter2" not in str(caught.value) and "s3cr3t" not in str(caught.value)
