"""A photo as one binary tree of nested regions, the same for every prompt. NumPy and SciPy; no torch.

Superpixels are merged, neighbours that are most alike first, until one region is left (hierarchies of regions: Arbelaez
et al. 2011, gPb-OWT-UCM; Pont-Tuset et al. 2017, MCG). What lies under a click is one superpixel and its ancestors.

Merges that do not touch are made together: in each round all pairs that are each other's cheapest neighbours and cost
at most `TOGETHER` times the cheapest of all, or `CHEAP`. That gives nearly the tree of one merge at a time, sooner.

Frame: region pixels, three by three of them a cell of the mask logits, over all cells that touch the unpadded frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from semsam_model.network.frame import LOGIT_STRIDE
from semsam_model.network.merge_cost import AREA, PLAIN, SMALL_FIRST, LearnedCost, PlainCost
from semsam_model.network.superpixels import Touching, added_up, lab_colours, superpixels, touching

CELL = 3  #: region pixels along the side of a cell of the mask logits
TOGETHER = 2.0
CHEAP = 0.5  #: differences of cost below this say little


@dataclass(frozen=True, eq=False)
class RegionHierarchy:
    """N = 2 n - 1 nodes over n superpixels. The superpixels under a node are a range of numbers; the root is node 0.

    A parent has a smaller number than its children.
    """

    superpixels: np.ndarray  #: uint16 (3 h, 3 w): number of the superpixel at each region pixel
    first: np.ndarray  #: uint16 (N,), first superpixel under a node
    last: np.ndarray  #: uint16 (N,), one beyond its last
    parent: np.ndarray  #: int16 (N,); -1 for the root
    leaf: np.ndarray  #: uint16 (n,), the node that is a superpixel
    height: np.ndarray  #: float32 (N,), what its merge cost, at least as much as those under it; 0 for a superpixel
    area: np.ndarray  #: int32 (N,), region pixels
    boxes: np.ndarray  #: int16 (N, 4), bounding boxes, half-open x0, y0, x1, y1, region pixels
    pairs: np.ndarray  #: uint16 (E, 2), superpixels that touch
    length: np.ndarray  #: uint16 (E,), of their border, region pixels
    strength: np.ndarray  #: float16 (E,), of their border: 0..1, how likely it is one of a thing

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def ancestors(self, row: int, column: int) -> np.ndarray:
        """Nodes that hold a region pixel, the smallest (a superpixel) first, the root last."""
        nodes = [int(self.leaf[self.superpixels[row, column]])]
        while (parent := int(self.parent[nodes[-1]])) >= 0:
            nodes.append(parent)
        return np.array(nodes)

    def persistence(self, nodes: np.ndarray) -> np.ndarray:
        """float32 (n,), 0..1: by how much the merge that ends a node is dearer than the one that made it; root 0."""
        ends = np.where(self.parent[nodes] < 0, self.height[nodes], self.height[self.parent[nodes]])
        lasting: np.ndarray = 1 - (self.height[nodes] + CHEAP) / (ends + CHEAP)
        return lasting

    def mask(self, node: int) -> np.ndarray:
        """bool (3 h, 3 w), region pixels."""
        inside: np.ndarray = (self.superpixels >= self.first[node]) & (self.superpixels < self.last[node])
        return inside

    def share(self, node: int) -> np.ndarray:
        """float32 (h, w): the share of each cell of the mask logits that lies in the node."""
        height, width = self.superpixels.shape
        cells = self.mask(node).reshape(height // CELL, CELL, width // CELL, CELL)
        share: np.ndarray = cells.sum((1, 3), dtype=np.float32) / CELL**2
        return share

    def strength_along(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (n,): mean strength along the outlines of masks, bool (h, w) cells of the mask logits; 0 for a mask
        that has none. A superpixel is inside a mask that holds more than half of its cells, taken at their middles.
        """
        at_middle = self.superpixels[CELL // 2 :: CELL, CELL // 2 :: CELL]
        count = len(self.leaf)
        held = np.stack([np.bincount(at_middle[mask], minlength=count) for mask in masks])
        inside = 2 * held > np.bincount(at_middle.ravel(), minlength=count)
        outline = inside[:, self.pairs[:, 0]] != inside[:, self.pairs[:, 1]]
        lengths = outline * self.length.astype(np.float32)
        mean: np.ndarray = lengths @ self.strength.astype(np.float32) / np.maximum(lengths.sum(1), 1)
        return mean


def region_hierarchy(
    resized: np.ndarray, mask_features: np.ndarray, cost: PlainCost | LearnedCost = PLAIN
) -> RegionHierarchy:
    """The hierarchy of a photo. resized: `Frame.resize` of it, uint8 (H, W, 3).

    mask_features: float32 (K, h, w), `cost.features_of` of the network's, without the cells of the padding.
    """
    lab = lab_colours(region_pixels(resized))
    pieces = superpixels(lab)
    borders = touching(pieces, lab)
    sums = region_sums(pieces, lab, mask_features)
    children, height = merge(sums, borders, cost)
    costs = cost(sums[borders.pairs[:, 0]], sums[borders.pairs[:, 1]], borders.borders)
    return _numbered(pieces, sums[:, AREA], children, height, borders, 1 - np.exp(-costs))


def region_pixels(resized: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of the model frame -> (3 h, 3 w, 3), the last rows and columns repeated to whole cells."""
    height, width = (-(-side // LOGIT_STRIDE) for side in resized.shape[:2])
    more = height * LOGIT_STRIDE - resized.shape[0], width * LOGIT_STRIDE - resized.shape[1]
    whole = cv2.copyMakeBorder(resized, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
    pixels: np.ndarray = cv2.resize(whole, (width * CELL, height * CELL), interpolation=cv2.INTER_AREA)
    return pixels


def region_sums(pieces: np.ndarray, lab: np.ndarray, mask_features: np.ndarray) -> np.ndarray:
    """float64 (n, 4 + K), a row a superpixel: pixels, sums of Lab colours, sums of features. See `merge_cost`."""
    from scipy import sparse  # a tenth of a second to import; the service starts without it

    height, width = mask_features.shape[1:]
    cells = (np.arange(pieces.shape[0]) // CELL)[:, None] * width + np.arange(pieces.shape[1]) // CELL
    count = int(pieces.max()) + 1
    ones = np.ones(pieces.size, np.float32)
    inside = sparse.csr_matrix((ones, (pieces.ravel(), cells.ravel())), (count, height * width))
    colours = [np.bincount(pieces.ravel(), lab[..., channel].ravel(), count) for channel in range(3)]
    area = np.bincount(pieces.ravel(), minlength=count)
    features = inside @ np.ascontiguousarray(mask_features.reshape(len(mask_features), -1).T)
    return np.concatenate([area[:, None], np.stack(colours, 1), features], 1)


def merge(sums: np.ndarray, borders: Touching, cost: PlainCost | LearnedCost) -> tuple[np.ndarray, np.ndarray]:
    """Superpixels -> children int (n - 1, 2) of the nodes n, n + 1, ... in the order made, and heights (2 n - 1,)."""
    count = len(sums)
    nodes = np.concatenate([sums, np.zeros((count - 1, sums.shape[1]))])
    children, height = np.zeros((count - 1, 2), np.int64), np.zeros(2 * count - 1)
    pairs, values = borders
    made = count
    while len(pairs):
        one, other = nodes[pairs[:, 0]], nodes[pairs[:, 1]]
        costs = cost(one, other, values) * np.minimum(one[:, AREA], other[:, AREA]) ** SMALL_FIRST
        chosen = _each_others_cheapest(pairs, costs, made)
        new = np.arange(made, made + len(chosen))
        left, right = pairs[chosen].T
        nodes[new] = nodes[left] + nodes[right]
        children[new - count] = pairs[chosen]
        height[new] = np.maximum(costs[chosen], np.maximum(height[left], height[right]))
        made += len(chosen)
        now = np.arange(made)
        now[left] = now[right] = new
        pairs = np.sort(now[pairs], 1)
        apart = pairs[:, 0] != pairs[:, 1]
        pairs, values = added_up(pairs[apart], values[apart], made)
    return children, height


def _each_others_cheapest(pairs: np.ndarray, costs: np.ndarray, count: int) -> np.ndarray:
    """Indices of pairs that no cheaper pair of either node keeps from being merged now.

    Equals, which a flat photo has thousands of, take turns by a number that depends on the pair alone: by their places
    in the photo they would wait for each other in long rows.
    """
    order = np.lexsort((pairs[:, 0] * 40503 * pairs[:, 1] % 65521, costs))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    best = np.full(count, len(order))
    for side in pairs.T:
        np.minimum.at(best, side, place)
    mutual = (best[pairs[:, 0]] == place) & (best[pairs[:, 1]] == place)
    chosen: np.ndarray = np.flatnonzero(mutual & (costs <= max(TOGETHER * costs[order[0]], CHEAP)))
    return chosen


def _numbered(
    pieces: np.ndarray,
    area: np.ndarray,
    children: np.ndarray,
    height: np.ndarray,
    borders: Touching,
    strength: np.ndarray,
) -> RegionHierarchy:
    """Numbers superpixels in the order of a walk through the tree, nodes from the root down."""
    count, nodes = len(area), len(height)
    size, first, parent = np.ones(nodes, np.int64), np.zeros(nodes, np.int64), np.full(nodes, -1)
    boxes = np.concatenate([_boxes(pieces, count), np.zeros((nodes - count, 4), np.int64)])
    areas = np.concatenate([area, np.zeros(nodes - count)])
    for node, (left, right) in enumerate(children.tolist(), count):
        size[node] = size[left] + size[right]
        areas[node] = areas[left] + areas[right]
        boxes[node, :2] = np.minimum(boxes[left, :2], boxes[right, :2])
        boxes[node, 2:] = np.maximum(boxes[left, 2:], boxes[right, 2:])
        parent[left] = parent[right] = nodes - 1 - node
    for node in range(nodes - 1, count - 1, -1):
        left, right = children[node - count]
        first[left], first[right] = first[node], first[node] + size[left]
    number = first[:count]  # of the superpixel that each piece becomes
    leaf = np.empty(count, np.int64)
    leaf[number] = nodes - 1 - np.arange(count)
    down = slice(None, None, -1)  # the last merge is the root
    return RegionHierarchy(
        superpixels=number[pieces].astype(np.uint16),
        first=first[down].astype(np.uint16),
        last=(first + size)[down].astype(np.uint16),
        parent=parent[down].astype(np.int16),
        leaf=leaf.astype(np.uint16),
        height=height[down].astype(np.float32),
        area=areas[down].astype(np.int32),
        boxes=boxes[down].astype(np.int16),
        pairs=number[borders.pairs].astype(np.uint16),
        length=borders.borders[:, 0].astype(np.uint16),
        strength=strength.astype(np.float16),
    )


def _boxes(pieces: np.ndarray, count: int) -> np.ndarray:
    """int (n, 4): x0, y0, x1, y1 of each piece."""
    height, width = pieces.shape
    rows, columns = np.repeat(np.arange(height), width), np.tile(np.arange(width), height)
    boxes = np.zeros((count, 4), np.int64)
    boxes[:, :2] = max(height, width)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(boxes[:, axis], pieces.ravel(), places)
        np.maximum.at(boxes[:, axis + 2], pieces.ravel(), places + 1)
    return boxes
