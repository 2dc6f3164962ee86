"""What the refiner learns to correct: the answers of a network to clicks on annotated photos, a file a photo.

    photo    uint8 (H, W, 3)
    masks    uint8, packed bits of (n, H, W): the masks that were clicked
    clicks   float32 (n, 2): x, y of the click in each
    logits   float16 (n, P, h, w): proposals for that click, the first-ranked first, at stride 4 of the photo's frame;
             as many as the click with the fewest has
    frame    int64 (2,): resized height and width of that frame

Photos are drawn from the sources by their shares; the order is the same for the same seed, so more can be made later,
and several processes can each make a part.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Sample, clickable
from semsam_model.errors import DataError
from semsam_model.files import atomic_write
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.predict import expected_iou
from semsam_model.inference.proposals import predict_proposals
from semsam_model.inference.selection import order
from semsam_model.masks.clicker import innermost, near_middle
from semsam_model.network.frame import Frame
from semsam_model.network.model import SemanticSAM
from semsam_model.types import Click, Prompt, ShouldStop, never_stop

MASKS = 4  #: of a photo, at most
LEAST_AREA = 0.002  #: of a mask, share of the photo; smaller ones are answered on a magnified crop
ENDING = ".npz"


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers for one photo."""

    photo: np.ndarray  #: uint8 (H, W, 3)
    masks: np.ndarray  #: bool (n, H, W)
    clicks: tuple[Click, ...]  #: one in each mask
    logits: np.ndarray  #: float16 (n, P, h, w), as in the file
    frame: tuple[int, int]  #: resized (H, W)

    def start(self, mask: int, proposal: int) -> np.ndarray:
        """float32 (H, W): the logits of one proposal in the photo's pixels."""
        height, width = self.photo.shape[:2]
        frame = Frame((height, width), self.frame, self.frame, (0, 0, width, height))
        return frame.enlarge(self.logits[mask, proposal].astype(np.float32))


def drawn_samples(mixture: Mixture, seed: int = 0) -> Iterator[Sample]:
    """Samples drawn by the shares of their sources, none twice, until a source that is drawn has no more."""
    rng = np.random.default_rng(seed)
    names = list(mixture.datasets)
    shares = np.array([mixture.shares[name] for name in names])
    left = {name: list(rng.permutation(len(mixture.datasets[name].samples))) for name in names}
    while any(left.values()):
        open_shares = np.where([bool(left[name]) for name in names], shares, 0)
        if not open_shares.any():
            return
        name = names[int(rng.choice(len(names), p=open_shares / open_shares.sum()))]
        yield mixture.datasets[name].samples[int(left[name].pop())]


def collect_answers(
    model: SemanticSAM,
    mixture: Mixture,
    out: Path,
    *,
    photos: int,
    part: tuple[int, int] = (0, 1),
    seed: int = 0,
    on_photo: Callable[[], None] = lambda: None,
    should_stop: ShouldStop = never_stop,
) -> int:
    """Write the answers for the first so many drawn photos that are not there yet; returns how many were written.

    part: (i, n) does every n-th photo, from the i-th. A photo that cannot be read, or holds no mask worth a click, is
    passed over.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, sample in zip(range(photos), drawn_samples(mixture, seed), strict=False):
        path = out / f"{number:06}{ENDING}"
        if number % part[1] != part[0] or path.exists():
            continue
        if should_stop():
            break
        answers = answer(model, sample, np.random.default_rng([seed, number]))
        if answers is not None:
            _write(path, answers)
            written += 1
        on_photo()
    return written


def answer(model: SemanticSAM, sample: Sample, rng: np.random.Generator) -> Answers | None:
    """Click some masks of one photo."""
    try:
        masks = sample.masks()
        least = int(LEAST_AREA * sample.height * sample.width)
        chosen = rng.permutation(clickable(sample.regions, masks, least))[:MASKS]
        if not len(chosen):
            return None
        photo = sample.image()
    except DataError:
        return None
    embedding = model.encode(photo)
    clicks, logits = [], []
    for at in chosen:
        click = near_middle(masks[at], rng) if rng.random() < 0.5 else innermost(masks[at])
        proposals = predict_proposals(model, embedding, Prompt((click,)), CandidateOptions())
        ranked = order(proposals.crops, expected_iou(proposals, model.ranker))
        logits.append(np.stack([proposals.pairs[i][1].logits for i in ranked]).clip(-30, 30).astype(np.float16))
        clicks.append(click)
    fewest = min(map(len, logits))  # nested regions of the photo are proposed too, more at one click than at another
    kept = np.stack([of_click[:fewest] for of_click in logits])
    return Answers(photo, np.stack([masks[at] for at in chosen]), tuple(clicks), kept, embedding.frame.resized)


def _write(path: Path, answers: Answers) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        photo=answers.photo,
        masks=np.packbits(answers.masks),
        clicks=np.array([(c.x, c.y) for c in answers.clicks], np.float32),
        logits=answers.logits,
        frame=np.array(answers.frame),
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def read_answers(path: Path) -> Answers:
    """Raises DataError when the file is not one of `collect_answers`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            photo, clicks, logits, frame = file["photo"], file["clicks"], file["logits"], file["frame"]
            shape = (len(clicks), *photo.shape[:2])
            masks = np.unpackbits(file["masks"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    except (OSError, KeyError, ValueError) as exc:
        raise DataError(f"{path}: expected answers that `semsam refiner-answers` wrote: {exc}") from exc
    return Answers(photo, masks, tuple(Click(float(x), float(y)) for x, y in clicks), logits, (frame[0], frame[1]))


def answer_files(folder: Path) -> list[Path]:
    """In the order in which they were drawn. Raises DataError when there is none."""
    files = sorted(folder.glob(f"*{ENDING}"))
    if not files:
        raise DataError(f"{folder}: expected answers, found none; make them with `semsam refiner-answers`")
    return files
