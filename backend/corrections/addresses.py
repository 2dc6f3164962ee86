"""Addresses of photos as they are stored. One that brings the whole picture along, a data URL, is kept once, by digest.

What stands for it elsewhere is short: `data:image/png;sha256,DIGEST`, the digest of the address.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, select

from backend.store.database import Store
from backend.store.statements import insert_if_new
from backend.store.tables import data_addresses

_MARK = ";sha256,"


def is_kept_elsewhere(address: str) -> bool:
    """Whether this stands for a data URL."""
    return address[:5].lower() == "data:" and _MARK in address[:200]


def save_address(connection: Connection, address: str) -> str:
    """What to store for an address: itself, unless it is a data URL, which is written once."""
    if address[:5].lower() != "data:" or is_kept_elsewhere(address):
        return address
    digest = hashlib.sha256(address.encode()).hexdigest()
    connection.execute(insert_if_new(connection, data_addresses), {"digest": digest, "address": address})
    return short_address(address, digest)


def short_address(address: str, digest: str) -> str:
    """digest: of the whole address, hexadecimal."""
    kind = address[5:100].partition(",")[0].partition(";")[0]
    return f"data:{kind}{_MARK}{digest}"


def whole_address(store: Store, address: str) -> str:
    """The address that a stored one stands for."""
    if not is_kept_elsewhere(address):
        return address
    query = select(data_addresses.c.address).where(data_addresses.c.digest == address.rpartition(",")[2])
    with store.read() as connection:
        return connection.scalar(query) or address
