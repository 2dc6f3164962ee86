"""Object queries made by hand, and texts that they fit."""

import numpy as np

from semsam_model.config import read_model_config
from semsam_model.inference.object_queries import ObjectQueries
from semsam_model.network.frame import Frame

TINY = read_model_config("tiny")


def invented() -> tuple[ObjectQueries, Frame]:
    """A car with a wheel, and a wheel that lies on the ground. Texts: car along x, wheel along y, moon against both."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 4:20, 4:28] = masks[1, 14:20, 6:12] = masks[2, 24:30, 20:26] = True
    kinds = np.array([[0.9, 0, 0], [0, 0.8, 0], [0, 0.8, 0]], np.float32)
    embeddings = np.zeros((3, 2, 3), np.float32)
    embeddings[0, :, 0] = embeddings[1:, :, 1] = 8
    logits = np.where(masks, 9.0, -9.0).astype(np.float32)
    tokens, levels = np.array([3, 5, 5]), np.array([1, 6, 6])
    queries = ObjectQueries(logits, kinds, embeddings, np.full(2, 3.0), tokens, levels, np.full(3, 0.8))
    return queries, Frame((128, 128), (128, 128), (128, 128), (0, 0, 128, 128))


def embed(words: object) -> np.ndarray:
    vectors = {"car": (1, 0, 0), "wheel": (0, 1, 0), "moon": (0, 0, 1)}
    return np.array([vectors[str(word)] for word in words], np.float32)  # type: ignore[attr-defined]
