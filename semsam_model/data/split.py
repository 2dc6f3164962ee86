"""Photos that train and photos that validate: told by a photo's digest alone, for ever.

Adding photos, projects or corrections never moves one, and every copy of a photo, in whatever task, is on one side.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

#: Share of photos that validate, of corrections: another value would move photos across.
VALIDATION_SHARE = 0.2
_SALT = b"semsam split 1:"


def split_of(sha256: str, share: float = VALIDATION_SHARE) -> Split:
    """The side of a photo, of the hex digest of its file's bytes; with a larger `share` more go over to val.

    Hashed once more with a salt: a set that was itself chosen by its digests is split evenly too.
    """
    place = int.from_bytes(hashlib.sha256(_SALT + sha256.encode()).digest()[:8], "big")
    return "val" if place < share * 2**64 else "train"
