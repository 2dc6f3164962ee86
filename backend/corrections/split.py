"""Which photos train and which validate: decided by the photo's digest alone, for ever.

Adding photos, projects or corrections never moves one, and every copy of a photo, in whatever task, is on one side. The
export and fine-tuning ask here, so that what one holds out the other does too.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

#: Share of photos that validate. A constant, not a setting: another value would move photos across.
VALIDATION_SHARE = 0.2
_SALT = b"semsam split 1:"


def split_of(image_sha256: str) -> Split:
    """The side of a photo, of the hex digest of its file's bytes.

    Hashed once more with a salt: a set that was itself chosen by its digests is split evenly too.
    """
    place = int.from_bytes(hashlib.sha256(_SALT + image_sha256.encode()).digest()[:8], "big")
    return "val" if place < VALIDATION_SHARE * 2**64 else "train"
