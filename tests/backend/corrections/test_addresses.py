"""A picture that a task brings along in its address is in the store once, however many regions are on it."""

from __future__ import annotations

import base64
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import select

from backend.corrections.addresses import whole_address
from backend.corrections.archive import PhotoArchive
from backend.corrections.photos import fetch_photos
from backend.corrections.queries import stream_regions
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import data_addresses, regions, tasks
from tests.backend.annotations import KEY, SIZE, annotation, brush_row, event, square
from tests.backend.corrections.test_inbox import receive
from tests.backend.stored import photo

ADDRESS = "data:image/png;base64," + base64.b64encode(photo(1, SIZE)).decode()


def annotated(store: Store, *, times: int = 1) -> None:
    for number in range(times):
        body = event("ANNOTATION_CREATED", annotation=annotation(5 + number, [brush_row("a", square(5, 5, 9))]))
        body["task"]["data"]["image"] = ADDRESS
        receive(store, body)


def stored(store: Store) -> tuple[list[str], list[str]]:
    """Addresses of the regions, and those that were kept whole."""
    with store.read() as connection:
        of_regions = connection.scalars(select(regions.c.image_url)).all()
        return [url or "" for url in of_regions], list(connection.scalars(select(data_addresses.c.address)))


def test_a_picture_in_an_address_is_kept_once_and_fetched_from_there(store: Store, tmp_path: Path) -> None:
    annotated(store, times=3)
    short, whole = stored(store)
    assert len(short) == 3 and len(set(short)) == 1 and len(short[0]) < 120
    assert whole == [ADDRESS] == [whole_address(store, short[0])]
    photos = PhotoArchive(tmp_path)
    studio = LabelStudio(Settings(label_studio_url=KEY.origin))
    assert fetch_photos(store, studio, photos, KEY) == (1, 0)
    digests = {region.image_sha256 or "" for region in stream_regions(store, KEY)}
    assert [photos.path(sha256).read_bytes() for sha256 in digests] == [photo(1, SIZE)]
    annotated(store)  # the same picture again is no other photo
    assert fetch_photos(store, studio, photos, KEY).fetched == 0


def test_pictures_in_an_older_database_are_gathered(store: Store) -> None:
    annotated(store, times=2)
    short, _ = stored(store)
    with store.write() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "backend.store:migrations")
        command.downgrade(config, "0007")
        for table in (regions, tasks):
            connection.execute(table.update().values(image_url=ADDRESS))
        command.upgrade(config, "head")
    assert stored(store) == (short, [ADDRESS])
    with store.read() as connection:
        assert connection.scalars(select(tasks.c.image_url)).all() == short[:1]
