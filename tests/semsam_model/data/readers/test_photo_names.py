"""A photo is found by whatever name others wrote down, and by none that may be another's."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import pytest

from semsam_model.data.readers.photo_names import PhotoFolder, original_name
from semsam_model.errors import DataError

FILE_URI = base64.urlsafe_b64encode("s3://bucket/may/cät 1.jpg".encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "name",
    [
        "pics/may/cät 1.jpg",
        "pics\\may\\cät 1.jpg",
        "C:\\Users\\me\\pics\\may\\cät 1.jpg",
        "..\\..\\label-studio\\media\\upload\\4\\cät 1.jpg",
        "/home/me/pics/may/cät 1.jpg",
        "may/c%C3%A4t%201.jpg",
        "https://host.example/bucket/may/c%C3%A4t%201.jpg?signature=1#top",
        "/data/local-files/?d=pics/may/cät 1.jpg",
        "/data/local-files/?d=pics%5Cmay%5Cc%C3%A4t%201.jpg",
        "/data/upload/3/1a832500-cät 1.jpg",
        "s3://bucket/may/cät 1.jpg",
        f"/tasks/12/presign/?fileuri={FILE_URI}",
        f"http://localhost:8080/tasks/12/resolve/?fileuri={FILE_URI}",
        unicodedata.normalize("NFD", "may/cät 1.jpg"),
    ],
)
def test_every_form_of_a_name_leads_to_the_photo(tmp_path: Path, name: str) -> None:
    for place in ("may", "", "images")[name.count("upload") :]:
        for form in ("NFC", "NFD"):
            photo = tmp_path / place / unicodedata.normalize(form, "cät 1.jpg")  # type: ignore[arg-type]
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.touch()
            assert PhotoFolder(tmp_path, [name]).path(name) == photo
            photo.unlink()


def test_names_that_may_mean_one_photo_get_none_unless_one_is_exactly_its_own(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    names = ["left/1.jpg", "right/1.jpg", "left\\1.jpg"]
    folder = PhotoFolder(tmp_path, names)
    for name in names:
        with pytest.raises(DataError, match="would both be"):
            folder.path(name)
    exact = PhotoFolder(tmp_path, ["1.jpg", "right/1.jpg"])
    assert exact.path("1.jpg") == tmp_path / "1.jpg"
    with pytest.raises(DataError, match="would both be"):
        exact.path("right/1.jpg")
    uploads = ["/data/upload/1/0a1b2c3d-1.jpg", "/data/upload/1/99999999-1.jpg"]
    with pytest.raises(DataError, match="would both be"):
        PhotoFolder(tmp_path, uploads).path(uploads[0])


@pytest.mark.parametrize(
    "name", ["", "\0", "x" * 5000, "http://[", "../", "..", "/", "?", "fileuri=", "/tasks/1/presign/?fileuri=%%%"]
)
def test_a_name_that_is_none_is_no_photo(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such photo"):
        PhotoFolder(tmp_path, [name]).path(name)


def test_odd_characters_in_a_name_are_its_own(tmp_path: Path) -> None:
    for name in ("50% off.jpg", "a#1.jpg", "what?.jpg", "a:b.jpg"):
        (tmp_path / name).touch()
        folder = PhotoFolder(tmp_path, [f"/somewhere/{name}"])
        assert folder.path(f"/somewhere/{name}").name == name


def test_the_original_name_is_what_the_annotator_uploaded() -> None:
    assert original_name("/data/upload/3/1a832500-cat.jpg") == "cat.jpg"
    assert original_name("/data/local-files/?d=pics%5C1a832500-cat.jpg") == "1a832500-cat.jpg"
    assert original_name("data:image/png;base64,AAAA") is None
    assert original_name(None) is None
