"""Loss of names: each matched query's class embedding against the text vectors of its own source's labels.

Object names reach only the object head, part names only the part head, and a mask without a usable name neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.data.vocabulary import NO_LABEL, NameTable
from semsam_model.training.distributed import ReduceMean, no_reduce

LABEL_REMOVED = 0.25  #: share of queries whose own label is taken off the list
FULL_LIST = 0.5  #: share of queries that are classified among the whole list
MIN_SHARE = 0.02  #: of the list, for the other queries


@dataclass(frozen=True, eq=False)
class NameLoss:
    """Unweighted cross-entropies, scalars, and how often the right label was the first."""

    object_name: Tensor
    part_name: Tensor
    object_top1: float | None  #: share of the named objects of the batch; None without any
    part_top1: float | None

    @property
    def total(self) -> Tensor:
        return self.object_name + self.part_name

    def figures(self) -> dict[str, float]:
        """Name -> value, for the log."""
        losses = {"object_name": float(self.object_name.detach()), "part_name": float(self.part_name.detach())}
        shares = {"object_top1": self.object_top1, "part_top1": self.part_top1}
        return losses | {name: share for name, share in shares.items() if share is not None}


@dataclass(frozen=True, eq=False)
class CandidateLabels:
    """The labels that each of n queries is classified among, with "none of these", which some queries learn."""

    none: Tensor  #: (2,), the logit of "none of these" beside the labels of the object and of the part head
    removed: Tensor  #: bool (n,): the query's own label is not on its list, and "none of these" is right
    others: Tensor  #: bool (n, V): the other labels on its list

    @classmethod
    def draw(cls, none: Tensor, n: int, labels: int) -> CandidateLabels:
        """For n queries and V labels. Half of the queries have whole lists, half random shorter ones, down to a few
        labels: people ask for one word as well as for a hundred.
        """
        device = none.device
        whole = torch.rand(n, 1, device=device) < FULL_LIST
        share = torch.where(whole, 1.0, MIN_SHARE ** torch.rand(n, 1, device=device))
        removed = torch.rand(n, device=device) < LABEL_REMOVED
        return cls(none, removed, torch.rand(n, labels, device=device) < share)


def name_loss(
    object_embedding: Tensor,
    part_embedding: Tensor,
    labels: Tensor,
    table: NameTable,
    scales: Tensor,
    candidates: CandidateLabels | None = None,
    reduce_mean: ReduceMean = no_reduce,
) -> NameLoss:
    """n queries: two embeddings (n, E), any length; labels long (n,) rows of `table` or NO_LABEL; scales (2,).

    Softmax over scale times cosine with the labels of the same source and kind, and "none of these" with
    `candidates`; mean over objects, and over parts, weighted by label; with `reduce_mean`, over the mean weight of the
    processes. Heads without a named query get exactly no gradient.
    """
    terms: list[Tensor] = []
    shares: list[float | None] = []
    named = torch.nonzero(labels != NO_LABEL)[:, 0]
    of_head = [named[table.heads[labels[named]] == head] for head in range(2)]
    totals = reduce_mean(torch.stack([table.weights[labels[chosen]].sum() for chosen in of_head]))
    for head, embedding in enumerate((object_embedding, part_embedding)):
        chosen = of_head[head]
        if not len(chosen):
            terms.append(embedding.new_zeros((), dtype=torch.float32))
            shares.append(None)
            continue
        target = labels[chosen]
        logits = scales[head].float() * (F.normalize(embedding[chosen].float(), dim=-1) @ table.vectors.T)
        logits = logits.masked_fill(table.lists[target][:, None] != table.lists, float("-inf"))
        weights = table.weights[target]
        if candidates is not None:
            removed = candidates.removed[chosen]
            own = F.one_hot(target, logits.shape[1]).bool()
            left_out = torch.where(own, removed[:, None], ~candidates.others[chosen])
            logits = logits.masked_fill(left_out, float("-inf"))
            none = candidates.none[head].float().expand(len(logits), 1)
            logits = torch.cat((logits, none), 1)
            target = torch.where(removed, logits.shape[1] - 1, target)
        terms.append((weights * F.cross_entropy(logits, target, reduction="none")).sum() / totals[head])
        shares.append(float((logits.detach().argmax(1) == target).float().mean()))
    return NameLoss(terms[0], terms[1], shares[0], shares[1])
