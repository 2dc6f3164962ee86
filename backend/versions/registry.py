"""Model versions: which exist, which one answers, and the way back. Rows in the store, files beside it. No torch.

Version 0 is the model that the settings name: the weights that come with semsam, or the file of SEMSAM_WEIGHTS. It has
no row and is never removed. Every other version is a folder (`backend.versions.files`) and a row, made once and never
changed.

What is live is the last row of `activations`, a list that only grows. Each row says which activation it was put over,
so the rows that count form a stack: `activate` puts a version on top, `rollback` takes the top one off and so gives
back what answered before. Each model (mobile, swin_t, ...) has a stack of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, text, update

from backend.errors import VersionError
from backend.settings import Settings
from backend.store.database import Store
from backend.store.statements import to_record
from backend.store.tables import activations, versions
from backend.versions import files as version_files
from backend.versions.files import Manifest
from backend.versions.version import Activation, ModelVersion, Pruned
from semsam_model.checkpoints.header import Header, find_weights

BASE, LIVE = "base", "live"  #: names that `find` knows besides numbers and versions
STEPS = 5  #: rollbacks that pruning leaves possible
RECENT = timedelta(hours=1)  #: versions younger than this are not pruned


class Registry:
    """Safe to use from several threads and processes."""

    def __init__(self, store: Store, folder: Path, base_weights: Path, base: Header) -> None:
        """folder: of the versions' files. base_weights, base: of version 0."""
        self._store = store
        self._folder = folder
        self.base = ModelVersion(0, base.version.version, base.version.name, base.version.digest, base_weights)

    # ---- looking

    def all(self, *, pruned: bool = False) -> list[ModelVersion]:
        """Every version, version 0 first; pruned: also those whose files were removed."""
        with self._store.read() as connection:
            rows = connection.execute(select(versions).order_by(versions.c.number)).all()
        found = [self._version(row) for row in rows]
        return [self.base, *(version for version in found if pruned or version.pruned_at is None)]

    def find(self, which: str) -> ModelVersion:
        """By number, name, beginning of the name or of its digest, "base" or "live". Raises VersionError."""
        if which == LIVE:
            return self.live().version
        every = self.all(pruned=True)
        if which == BASE:
            return self.base
        if which.isdecimal() and (numbered := [v for v in every if v.number == int(which)]):
            return numbered[0]
        named = [v for v in every if v.version == which]
        named = named or [v for v in every if which and which in (v.version[: len(which)], v.digest[: len(which)])]
        if len(named) == 1:
            return named[0]
        if named:
            raise VersionError(f"version {which!r}: could be {', '.join(v.version for v in named)}")
        raise VersionError(f"version {which!r}: not registered; `semsam versions list` shows those that are")

    def live(self) -> Activation:
        """The activation of the version that answers now. Cheap: backends ask every few seconds."""
        with self._store.read() as connection:
            return self._live(connection)

    def stack(self) -> list[Activation]:
        """The live activation, then what each rollback would go back to; version 0 is always the last."""
        with self._store.read() as connection:
            return self._stack(connection, self.base.model)

    def has_been_live(self, version: ModelVersion) -> bool:
        """Whether it was ever activated, also if something else has replaced it since."""
        mine = select(func.count()).select_from(activations).where(activations.c.version == version.version)
        with self._store.read() as connection:
            return bool(connection.scalar(mine))

    def problems(self, version: ModelVersion, *, thorough: bool = True) -> list[str]:
        """Why its files cannot be served; [] when they can. thorough: read every byte of them."""
        if version.number == 0:
            return [] if version.weights.is_file() else [f"{version.weights} is missing"]
        if version.pruned_at is not None:
            return [f"its files were removed on {version.pruned_at:%Y-%m-%d}"]
        return version_files.problems(version.folder, version.version, version.files_digest, thorough=thorough)

    # ---- changing

    def register(
        self,
        weights: Path,
        *,
        parent: str | None,
        data_digest: str | None = None,
        figures: Mapping[str, Any] | None = None,
        attachments: Iterable[Path] = (),
        at: datetime | None = None,
    ) -> ModelVersion:
        """Keep a weights file as a version; it does not answer before `activate`.

        parent: version it was trained from. figures: plain JSON values. attachments: further files to keep with it,
        such as the gate's report. Weights that are registered already, and whole, stay as they were registered, so
        that a job may do this again. Raises VersionError, CheckpointError, StoreError, OSError; then nothing is
        registered.
        """
        at = at or datetime.now(UTC)
        manifest, digest = version_files.write(
            self._folder,
            weights,
            parent=parent,
            data_digest=data_digest,
            figures=figures or {},
            attachments=attachments,
            created_at=at.astimezone(UTC).isoformat(),
        )
        if manifest.weights_digest == self.base.digest:
            version_files.remove(version_files.set_aside(self._folder / manifest.version))
            return self.base
        with self._exclusive() as connection:
            self._save(connection, manifest, digest)
            if not (self._folder / manifest.version).is_dir():
                raise VersionError(f"version {manifest.version}: its files were pruned meanwhile; register it again")
            return self._find(connection, manifest.version)

    def activate(self, which: str, *, reason: str = "", if_live: str | None = None) -> Activation:
        """Make a version the live one; running backends follow within seconds. Once live, nothing changes.

        if_live: the version that has to be live still, for a caller that compared the new one with it. One that is
        live already is returned whatever was live before: a caller that was cut off may ask again.
        Raises VersionError when it is unknown, of another model, or its files are not what was registered.
        """
        version = self.find(which)
        if version.model != self.base.model:
            raise VersionError(
                f"version {version.version}: of model {version.model}, SEMSAM_MODEL is {self.base.model}"
            )
        self._check_files(version)
        with self._exclusive() as connection:
            live = self._live(connection)
            if live.version.version == version.version:
                return live
            if if_live is not None and live.version.version != if_live:
                raise VersionError(
                    f"version {version.version}: not activated: it was compared with {if_live}, but"
                    f" {live.version.version} has become the live one meanwhile"
                )
            if version.number and self._find(connection, version.version).pruned_at is not None:
                raise VersionError(f"version {version.version}: its files have just been removed")
            return self._make_live(connection, live, version, over=live.number, reason=reason)

    def rollback(self, *, reason: str = "rollback") -> Activation:
        """Make the version live that was live before the present one. A second rollback goes on from there.

        Raises VersionError when there is nothing to go back to, or its files are not what was registered.
        """
        stack = self.stack()
        if len(stack) < 2:
            raise VersionError(f"version {stack[0].version.version}: nothing was live before it")
        self._check_files(stack[1].version)
        with self._exclusive() as connection:
            if self._stack(connection, self.base.model) != stack:
                raise VersionError("another process has just changed what is live; look at it and try again")
            return self._make_live(connection, stack[0], stack[1].version, over=stack[1].over, reason=reason)

    def pin(self, which: str, pinned: bool = True) -> ModelVersion:
        """Keep a version from being pruned, or no longer. Version 0 never is. Raises VersionError."""
        version = self.find(which)
        with self._exclusive() as connection:
            connection.execute(update(versions).where(versions.c.number == version.number).values(pinned=pinned))
        return self.find(version.version)

    def prune(self, *, steps: int = STEPS, dry_run: bool = False, at: datetime | None = None) -> Pruned:
        """Remove the files of versions that nobody needs; their rows stay, so that predictions can still be explained.

        Kept are the live version, those that the next `steps` rollbacks come to, both for every model, pinned ones, and
        those of the last hour, which a job may be about to activate. at: now, if not given.
        """
        at = at or datetime.now(UTC)
        with self._store.read() if dry_run else self._exclusive() as connection:
            every = [self._version(row) for row in connection.execute(select(versions)).all()]
            present = [version for version in every if version.pruned_at is None]
            unneeded = self._unneeded(connection, present, steps, at)
            strays = version_files.strays(self._folder, {version.version for version in present}, at - RECENT)
            folders = [version.folder for version in unneeded] + strays
            pruned = Pruned(unneeded, strays, sum(map(version_files.size, folders)))
            if dry_run:
                return pruned
            numbers = [version.number for version in unneeded]
            connection.execute(update(versions).where(versions.c.number.in_(numbers)).values(pruned_at=at))
        # rows first: killed in between, there are files that nobody needs, never a row whose files are gone
        with self._exclusive() as connection:
            rows = connection.execute(select(versions.c.version).where(versions.c.pruned_at.is_(None)))
            registered_again = set(rows.scalars())
            aside = [version_files.set_aside(path) for path in folders if path.name not in registered_again]
        for path in aside:
            version_files.remove(path)
        return pruned

    def _unneeded(
        self, connection: Connection, present: list[ModelVersion], steps: int, at: datetime
    ) -> list[ModelVersion]:
        """Of the versions that have files, those that may be pruned, by number."""
        needed = {
            activation.version.version
            for model in {version.model for version in present}
            for activation in self._stack(connection, model)[: steps + 1]
        }
        return [
            version
            for version in sorted(present, key=lambda version: version.number)
            if not version.pinned and version.version not in needed
            if version.created_at is None or at - version.created_at > RECENT
        ]

    # ---- rows

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[Connection]:
        """A transaction during which no other process changes versions or what is live."""
        with self._store.write() as connection:  # on SQLite, that is enough
            if connection.dialect.name == "postgresql":
                connection.execute(text("LOCK TABLE versions IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    def _check_files(self, version: ModelVersion) -> None:
        if problems := self.problems(version):
            raise VersionError(f"version {version.version} cannot be served: {'; '.join(problems)}")

    def _save(self, connection: Connection, manifest: Manifest, files_digest: str) -> None:
        """Write a version's row; one that is there stays as it is, unless its files had been removed or damaged."""
        values = {
            "model": manifest.config["name"],
            "digest": manifest.weights_digest,
            "parent": manifest.parent,
            "data_digest": manifest.data_digest,
            "figures": manifest.figures,
            "files_digest": files_digest,
            "created_at": datetime.fromisoformat(manifest.created_at),
            "pruned_at": None,
        }
        known = connection.execute(select(versions).where(versions.c.version == manifest.version)).one_or_none()
        if known is None:
            number = connection.scalar(select(func.max(versions.c.number))) or 0
            row = {"number": number + 1, "version": manifest.version, "pinned": False, **values}
            connection.execute(insert(versions).values(row))
            return
        changed = {"pruned_at": None} if known.files_digest == files_digest else values
        connection.execute(update(versions).where(versions.c.number == known.number).values(changed))

    def _find(self, connection: Connection, version: str) -> ModelVersion:
        return self._version(connection.execute(select(versions).where(versions.c.version == version)).one())

    def _version(self, row: Row[Any]) -> ModelVersion:
        return to_record(ModelVersion, row, weights=self._folder / row.version / version_files.WEIGHTS)

    def _live(self, connection: Connection) -> Activation:
        newest = select(activations).where(activations.c.model == self.base.model).order_by(activations.c.number.desc())
        row = connection.execute(newest.limit(1)).one_or_none()
        return Activation(0, self.base) if row is None else self._activation(connection, row)

    def _stack(self, connection: Connection, model: str) -> list[Activation]:
        """Of any model; version 0, at the bottom, is that of the settings for all of them."""
        rows = connection.execute(select(activations).where(activations.c.model == model)).all()
        by_number = {row.number: row for row in rows}
        at = max(by_number, default=None)
        found: list[Activation] = []
        while at:  # 0: before the first activation
            activation = self._activation(connection, by_number[at])
            if not found or activation.version.pruned_at is None:
                found.append(activation)
            at = activation.over
        return found if found and found[-1].version.number == 0 else [*found, Activation(0, self.base)]

    def _activation(self, connection: Connection, row: Row[Any]) -> Activation:
        version = self.base if row.version is None else self._find(connection, row.version)
        return to_record(Activation, row, version=version)

    def _make_live(
        self, connection: Connection, live: Activation, version: ModelVersion, *, over: int | None, reason: str
    ) -> Activation:
        activation = Activation(live.number + 1, version, over, datetime.now(UTC), reason)
        row = {
            "model": self.base.model,
            "number": activation.number,
            "version": version.version if version.number else None,
            "over": over,
            "at": activation.at,
            "reason": reason,
        }
        connection.execute(insert(activations).values(**row))
        return activation


def open_registry(settings: Settings, store: Store) -> Registry:
    """The registry of the model that the settings name. Raises CheckpointError when that has no weights."""
    weights, header = find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")
    return Registry(store, settings.data_dir / "versions", weights, header)
