"""A prompt on the photo's hierarchy of regions -> a few of its nested masks, as proposals beside the network's.

A click falls into one superpixel; its ancestors, 15 to 25 nested regions, are what it may mean. Offered are the few
that persist longest while the tree is merged, no two alike. A box is met by the nodes that fit it best.

Where the network's answers to several clicks all disobey one, the tree makes the best of them obey: the node that
persists longest of those that hold the click, and no click of the other sign, is added or taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from semsam_model.inference.candidates import PromptCells, Proposal, level_of_span, stability
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.region_hierarchy import CELL, RegionHierarchy
from semsam_model.types import Click, Prompt

NO_TOKEN = -1  #: of a proposal that no level token of the network made
FIT = 0.3  #: a node whose bounding box has a smaller IoU with a box prompt does not answer it
STEEP = 8.0  #: logits a share of a cell
SURE = 10.0  #: logit of the cells that no outline is near
SMALLEST = 100 * (CELL / LOGIT_STRIDE) ** 2  #: region pixels of a node that is offered: what is smaller is a speck
_SAME = 0.85  #: of two nodes with a larger IoU one is offered


def region_proposals(frame: Frame, hierarchy: RegionHierarchy, prompt: Prompt, most: int) -> list[Proposal]:
    """At most `most` nodes that answer the prompt, the most persistent first."""
    nodes = _nodes_of_clicks(frame, hierarchy, prompt)
    fit = _fit(frame, hierarchy, prompt)
    if not prompt.positives:
        nodes = np.flatnonzero(fit > FIT)
    nodes = nodes[hierarchy.area[nodes] >= min(SMALLEST, hierarchy.area[nodes].max(initial=0))]
    worth = hierarchy.persistence(nodes) * (fit[nodes] if prompt.boxes else 1)
    chosen = _distinct(hierarchy, nodes[np.argsort(-worth, kind="stable")], most)
    return [node_proposal(hierarchy, node) for node in chosen]


def obeying(
    frame: Frame, hierarchy: RegionHierarchy, prompt: Prompt, cells: PromptCells, proposal: Proposal
) -> Proposal:
    """The proposal with a node added or taken away for each click that it disobeys, where the tree has one."""
    logits = proposal.logits
    for click, at in zip([*prompt.positives, *prompt.negatives], [*cells.positives, *cells.negatives], strict=True):
        if (logits[at] > 0) == click.positive:
            continue
        others = prompt.negatives if click.positive else prompt.positives
        nodes = hierarchy.ancestors(*_pixel(frame, hierarchy, click))
        nodes = nodes[~_holds(frame, hierarchy, nodes, others).any(1)]
        if len(nodes):
            region = region_logits(hierarchy, nodes[hierarchy.persistence(nodes).argmax()])
            logits = np.maximum(logits, region) if click.positive else np.minimum(logits, -region)
    return replace(proposal, logits=logits, stability=stability(logits))


def region_logits(hierarchy: RegionHierarchy, node: int) -> np.ndarray:
    """float32 (h, w): zero where half of a cell is in the node, so that outlines are finer than cells."""
    share = hierarchy.share(node)
    near = np.ones((3, 3), np.uint8)
    logits = STEEP * (share - 0.5)
    logits[cv2.dilate(share, near) == 0] = -SURE
    logits[cv2.erode(share, near) == 1] = SURE
    return logits


def _nodes_of_clicks(frame: Frame, hierarchy: RegionHierarchy, prompt: Prompt) -> np.ndarray:
    """The ancestors of positive clicks that agree with most of the clicks."""
    chains = [hierarchy.ancestors(*_pixel(frame, hierarchy, click)) for click in prompt.positives]
    if not chains:
        return np.zeros(0, np.int64)
    nodes = np.unique(np.concatenate(chains))
    agrees = _holds(frame, hierarchy, nodes, prompt.clicks) == [click.positive for click in prompt.clicks]
    found: np.ndarray = nodes[agrees.sum(1) == agrees.sum(1).max()]
    return found


def _holds(frame: Frame, hierarchy: RegionHierarchy, nodes: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """bool (n, clicks): whether a node holds a click."""
    under = np.array([hierarchy.superpixels[_pixel(frame, hierarchy, click)] for click in clicks], np.int64)
    held: np.ndarray = (under >= hierarchy.first[nodes, None]) & (under < hierarchy.last[nodes, None])
    return held


def _pixel(frame: Frame, hierarchy: RegionHierarchy, click: Click) -> tuple[int, int]:
    """(row, column) of the region pixel under a click."""
    height, width = hierarchy.superpixels.shape
    x, y = frame.in_cells(click.x, click.y)
    return min(max(int(y * CELL), 0), height - 1), min(max(int(x * CELL), 0), width - 1)


def _fit(frame: Frame, hierarchy: RegionHierarchy, prompt: Prompt) -> np.ndarray:
    """(N,) mean IoU of the nodes' bounding boxes with the boxes of the prompt, 0 without one."""
    total = np.zeros(len(hierarchy.parent))
    for box in prompt.boxes:
        wanted = np.array([*frame.in_cells(box.x0, box.y0), *frame.in_cells(box.x1, box.y1)]) * CELL
        low, high = np.maximum(hierarchy.boxes[:, :2], wanted[:2]), np.minimum(hierarchy.boxes[:, 2:], wanted[2:])
        both = (high - low).clip(min=0).prod(1)
        sizes = (hierarchy.boxes[:, 2:] - hierarchy.boxes[:, :2]).astype(np.int64).prod(1)
        total += both / (sizes + (wanted[2:] - wanted[:2]).prod() - both) / len(prompt.boxes)
    return total


def _distinct(hierarchy: RegionHierarchy, ordered: np.ndarray, most: int) -> list[int]:
    """The first of the ordered nodes that differ. Two nodes are nested or apart, so areas say their IoU."""
    chosen: list[int] = []
    for node in ordered.tolist():
        first, last = hierarchy.first[node], hierarchy.last[node]
        nested = [
            other
            for other in chosen
            if (hierarchy.first[other] <= first and last <= hierarchy.last[other])
            or (first <= hierarchy.first[other] and hierarchy.last[other] <= last)
        ]
        areas = hierarchy.area[[node, *nested]].astype(float)
        if all(min(areas[0], area) <= _SAME * max(areas[0], area) for area in areas[1:]):
            chosen.append(node)
        if len(chosen) == most:
            break
    return chosen


def node_proposal(hierarchy: RegionHierarchy, node: int) -> Proposal:
    """A node as a proposal; its persistence is its predicted IoU."""
    logits = region_logits(hierarchy, node)
    x0, y0, x1, y1 = hierarchy.boxes[node].tolist()
    side = max(x1 - x0, y1 - y0) / max(hierarchy.superpixels.shape)
    persistence = float(hierarchy.persistence(np.array([node]))[0])
    return Proposal(
        logits,
        NO_TOKEN,
        level_of_span(side),
        predicted_iou=persistence,
        stability=stability(logits),
        persistence=persistence,
    )
