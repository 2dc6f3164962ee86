"""What the photo's hierarchy of regions adds to masks of a whole photo: persistent regions that no mask covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semsam_model.inference.candidates import Proposal
from semsam_model.inference.region_proposals import SMALLEST, node_proposal
from semsam_model.network.region_hierarchy import CELL, RegionHierarchy

PERSISTENT = 0.7  #: a region of less persistence is not added: the merge that ends it must be three times as dear
COVERED = 0.5  #: a region with at least this IoU with a mask is not added


def uncovered_regions(hierarchy: RegionHierarchy, kept: Sequence[Proposal], most: int) -> list[Proposal]:
    """At most `most` regions, the most persistent first, that none of `kept`, nor another of them, covers."""
    nodes = np.arange(1, len(hierarchy.parent))  # the root is the photo
    persistence = hierarchy.persistence(nodes)
    merged = hierarchy.last[nodes] > hierarchy.first[nodes] + 1  # superpixels persist where the photo is busy
    wanted = merged & (persistence >= PERSISTENT) & (hierarchy.area[nodes] >= SMALLEST)
    nodes = nodes[wanted][np.argsort(-persistence[wanted], kind="stable")]
    covered = np.zeros(len(nodes), bool)
    for proposal in kept:
        covered |= _iou_with_mask(hierarchy, nodes, proposal.cells) >= COVERED
    chosen: list[int] = []
    for node in nodes[~covered].tolist():
        if len(chosen) == most:
            break
        if not (_iou_with_nodes(hierarchy, node, np.array(chosen, np.int64)) >= COVERED).any():
            chosen.append(node)
    return [node_proposal(hierarchy, node) for node in chosen]


def _iou_with_mask(hierarchy: RegionHierarchy, nodes: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(n,): IoU of nodes with a mask, bool (h, w); the middles of its cells count."""
    at_middle = hierarchy.superpixels[CELL // 2 :: CELL, CELL // 2 :: CELL]
    first, last, count = hierarchy.first[nodes], hierarchy.last[nodes], len(hierarchy.leaf)
    held, whole = (
        np.append(0, np.bincount(under.ravel(), minlength=count).cumsum()) for under in (at_middle[cells], at_middle)
    )
    both = held[last] - held[first]
    iou: np.ndarray = both / np.maximum(whole[last] - whole[first] + held[-1] - both, 1)
    return iou


def _iou_with_nodes(hierarchy: RegionHierarchy, node: int, others: np.ndarray) -> np.ndarray:
    """(n,). Two nodes are nested or apart, so their areas say it."""
    first, last = hierarchy.first, hierarchy.last
    nested = (first[others] <= first[node]) & (last[node] <= last[others])
    nested |= (first[node] <= first[others]) & (last[others] <= last[node])
    areas = hierarchy.area[others]
    iou: np.ndarray = nested * np.minimum(areas, hierarchy.area[node]) / np.maximum(areas, hierarchy.area[node])
    return iou
