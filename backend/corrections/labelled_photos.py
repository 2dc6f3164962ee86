"""Photos with the newest annotation of each: what fine-tuning learns from, a few photos in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from sqlalchemy import and_, select

from backend.corrections.queries import emptied_tasks, to_region
from backend.records import ProjectKey, StoredRegion
from backend.store.database import Store
from backend.store.statements import IS_USABLE, of_project
from backend.store.tables import regions

_PAGE = 50  #: photos whose regions are in memory at a time


def labelled_photos(store: Store, key: ProjectKey) -> list[str]:
    """Digests of the photos that a project has usable regions of, in order. Raises StoreError."""
    usable = and_(of_project(regions, key), IS_USABLE)  # answered by an index alone
    query = select(regions.c.image_sha256).distinct().where(usable, regions.c.image_sha256.is_not(None))
    with store.read() as connection:
        return sorted(connection.scalars(query))


def newest_annotations(store: Store, key: ProjectKey, photos: Sequence[str]) -> Iterator[list[StoredRegion]]:
    """For each of these photos, the regions of the annotation that was submitted or updated last, in their order.

    photos: digests. One of which nothing is left by then gives nothing; so does one whose task has a later annotation
    with nothing in it. Raises StoreError.
    """
    emptied = emptied_tasks(store, key)
    for first in range(0, len(photos), _PAGE):
        page = photos[first : first + _PAGE]
        query = select(regions).where(of_project(regions, key), IS_USABLE, regions.c.image_sha256.in_(page))
        found: dict[str, list[StoredRegion]] = {}
        with store.read() as connection:
            for row in connection.execute(query):  # not ordered here: that would be by an index of the whole project
                if row.task in emptied:
                    continue
                found.setdefault(row.image_sha256, []).append(to_region(row))
        yield from (_newest(found[sha256]) for sha256 in page if sha256 in found)


def _newest(of_a_photo: list[StoredRegion]) -> list[StoredRegion]:
    """The regions of one annotation, of those of a photo, in order of their keys."""
    in_order = sorted(of_a_photo, key=lambda each: each.key)
    annotations = [list(own) for _, own in groupby(in_order, key=lambda each: (each.key.task, each.key.annotation))]
    return max(annotations, key=lambda own: (own[0].updated_at, own[0].key.task, own[0].key.annotation))
