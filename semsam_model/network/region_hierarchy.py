"""A photo as one binary tree of nested regions, the same for every prompt. NumPy and SciPy; no torch.

Superpixels are merged, neighbours that are most alike first, until one region is left (hierarchies of regions: Arbelaez
et al. 2011, gPb-OWT-UCM; Pont-Tuset et al. 2017, MCG). What lies under a click is one superpixel and its ancestors.

Merges that do not touch are made together: in each round all pairs that are each other's cheapest neighbours and cost
at most `TOGETHER` times the cheapest of all, or `CHEAP`. That gives nearly the tree of one merge at a time, sooner.

Frame: region pixels, three by three of them a cell of the mask logits, over all cells that touch the unpadded frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np

from semsam_model.network.frame import LOGIT_STRIDE
from semsam_model.network.merge_cost import AREA, PLAIN, SMALL_FIRST, LearnedCost, PlainCost
from semsam_model.network.superpixels import Touching, added_up, lab_colours, superpixels, touching

Cost = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  #: as `PlainCost.__call__`
OnRound = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  #: takes sums of regions, pairs that touch, `borders`

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
        x0, y0, x1, y1 = self.boxes[node].tolist()
        left, top, right, bottom = x0 // CELL, y0 // CELL, -(-x1 // CELL), -(-y1 // CELL)
        around = self.superpixels[top * CELL : bottom * CELL, left * CELL : right * CELL]
        inside = ((around >= self.first[node]) & (around < self.last[node])).view(np.uint8)
        rows = sum(inside[i::CELL] for i in range(CELL))
        share = np.zeros([side // CELL for side in self.superpixels.shape], np.float32)
        share[top:bottom, left:right] = sum(rows[:, i::CELL] for i in range(CELL)) / np.float32(CELL**2)
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
    return _numbered(pieces, merge(sums, borders, cost), borders)


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

    channels, height, width = mask_features.shape
    places = pieces.ravel().astype(np.intp)
    area = np.bincount(places)
    colours = [np.bincount(places, channel) for channel in lab.reshape(-1, 3).T]
    of_cells = pieces.reshape(height, CELL, width, CELL).transpose(0, 2, 1, 3).ravel()
    starts = np.arange(0, pieces.size + 1, CELL**2)
    shape = (height * width, len(area))
    inside = sparse.csr_matrix((np.ones(pieces.size, np.float32), of_cells, starts), shape).tocsc()
    inside.sum_duplicates()
    features = inside.T @ np.ascontiguousarray(mask_features.reshape(channels, -1).T)
    return np.concatenate([area[:, None], np.stack(colours, 1), features], 1)


class Merges(NamedTuple):
    """How n superpixels became one region."""

    children: np.ndarray  #: int (n - 1, 2), of the nodes n, n + 1, ... in the order made
    height: np.ndarray  #: float64 (2 n - 1,)
    costs: np.ndarray  #: float64 (E,), of the borders of the superpixels, whatever the sizes


def merge(sums: np.ndarray, borders: Touching, cost: Cost, on_round: OnRound | None = None) -> Merges:
    """Merge superpixels, `region_sums`. on_round: called before each round, see `OnRound`.

    What touches no region that was just made keeps its cost.
    """
    count, total = len(sums), 2 * len(sums) - 1
    nodes = np.concatenate([sums, np.zeros((count - 1, sums.shape[1]))])
    children, height = np.zeros((count - 1, 2), np.int64), np.zeros(total)
    now = np.arange(total)  # the region that holds a node; a node that was just merged
    pairs, values = borders
    of_superpixels = cost(sums[pairs[:, 0]], sums[pairs[:, 1]], values)
    costs = of_superpixels * _small_first(nodes, pairs)
    made = count
    while len(pairs):
        if on_round is not None:
            on_round(nodes, pairs, values)
        chosen = _each_others_cheapest(pairs, costs, made)
        new = np.arange(made, made + len(chosen))
        left, right = pairs[chosen].T
        children[new - count] = pairs[chosen]
        nodes[new] = nodes[left] + nodes[right]
        height[new] = np.maximum(costs[chosen], np.maximum(height[left], height[right]))
        now[left] = now[right] = new
        made += len(chosen)
        renamed = now.take(pairs)
        changed = (renamed[:, 0] != pairs[:, 0]) | (renamed[:, 1] != pairs[:, 1])
        others, of_others = _united(renamed[changed], values[changed], total)
        fresh = cost(nodes.take(others[:, 0], 0), nodes.take(others[:, 1], 0), of_others)
        fresh *= _small_first(nodes, others)
        kept = np.flatnonzero(~changed)
        pairs = np.concatenate([pairs.take(kept, 0), others])
        values = np.concatenate([values.take(kept, 0), of_others])
        costs = np.concatenate([costs.take(kept), fresh])
    return Merges(children, height, of_superpixels)


def _united(pairs: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`added_up` of pairs in any order, without those of a region and itself."""
    low, high = np.minimum(pairs[:, 0], pairs[:, 1]), np.maximum(pairs[:, 0], pairs[:, 1])
    apart = np.flatnonzero(low != high)
    return added_up(np.stack([low.take(apart), high.take(apart)], 1), values.take(apart, 0), count)


def _small_first(nodes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(E,): what the cost of a pair is multiplied with."""
    area = nodes[:, AREA]
    factor: np.ndarray = np.minimum(area[pairs[:, 0]], area[pairs[:, 1]]) ** SMALL_FIRST
    return factor


def _each_others_cheapest(pairs: np.ndarray, costs: np.ndarray, count: int) -> np.ndarray:
    """Indices of pairs that no cheaper pair of either node keeps from being merged now, in order of their nodes.

    Equals, which a flat photo has thousands of, take turns by a number that depends on the pair alone: by their places
    in the photo they would wait for each other in long rows.
    """
    near = np.flatnonzero(costs <= max(TOGETHER * costs.min(), CHEAP))  # what is dearer keeps none of these from it
    one, other = pairs[near].T
    order = np.lexsort((other, one, one * 40503 * other % 65521, costs[near]))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    best = np.full(count, len(order))
    for side in (one, other):
        np.minimum.at(best, side, place)
    mutual = np.flatnonzero((best[one] == place) & (best[other] == place))
    chosen: np.ndarray = near[mutual[np.lexsort((other[mutual], one[mutual]))]]
    return chosen


def _numbered(pieces: np.ndarray, merges: Merges, borders: Touching) -> RegionHierarchy:
    """Numbers superpixels in the order of a walk through the tree, nodes from the root down."""
    nodes = len(merges.height)
    count = nodes // 2 + 1
    size, first, parent = [1] * nodes, [0] * nodes, [-1] * nodes
    children = merges.children.tolist()
    for node, (left, right) in enumerate(children, count):
        size[node] = size[left] + size[right]
        parent[left] = parent[right] = nodes - 1 - node
    for node in range(nodes - 1, count - 1, -1):
        left, right = children[node - count]
        first[left], first[right] = first[node], first[node] + size[left]
    number = np.array(first[:count])  # of the superpixel that each piece becomes
    leaf = np.empty(count, np.int64)
    leaf[number] = nodes - 1 - np.arange(count)
    walked = number.astype(np.uint16)[pieces]
    firsts = np.array(first[::-1])  # the last merge is the root
    lasts = firsts + size[::-1]
    upto = np.concatenate([[0], np.bincount(walked.ravel()).cumsum()])  # region pixels before a superpixel
    return RegionHierarchy(
        superpixels=walked,
        first=firsts.astype(np.uint16),
        last=lasts.astype(np.uint16),
        parent=np.array(parent[::-1], np.int16),
        leaf=leaf.astype(np.uint16),
        height=merges.height[::-1].astype(np.float32),
        area=(upto[lasts] - upto[firsts]).astype(np.int32),
        boxes=_boxes(walked, firsts, lasts),
        pairs=number[borders.pairs].astype(np.uint16),
        length=borders.borders[:, 0].astype(np.uint16),
        strength=(1 - np.exp(-merges.costs)).astype(np.float16),
    )


def _boxes(superpixels: np.ndarray, firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
    """int16 (N, 4): x0, y0, x1, y1 around the superpixels from `firsts` up to `lasts`."""
    height, width = superpixels.shape
    count = int(lasts.max())
    boxes = np.zeros((4, count + 1), np.int16)  # one more, so that `lasts` are places too
    boxes[:2] = max(height, width)
    begins, ends = np.ones(superpixels.shape, bool), np.ones(superpixels.shape, bool)  # of what lies in a row
    begins[:, 1:] = ends[:, :-1] = superpixels[:, 1:] != superpixels[:, :-1]
    for places, corner, extreme, beyond in ((begins, boxes[:2], np.minimum, 0), (ends, boxes[2:], np.maximum, 1)):
        rows, columns = np.nonzero(places)
        under = superpixels[places].astype(np.intp)
        extreme.at(corner[0], under, (columns + beyond).astype(np.int16))
        extreme.at(corner[1], under, (rows + beyond).astype(np.int16))
    ranges = np.stack([firsts, lasts], 1).ravel()
    extremes = (np.minimum, np.minimum, np.maximum, np.maximum)
    return np.stack([of.reduceat(side, ranges)[::2] for of, side in zip(extremes, boxes, strict=True)], 1)
