"""python -m benchmarks.finetune DATA: what corrections of a new domain give, and what they cost elsewhere.

DATA holds adapt/ and val/ with SOURCE.json and photos (docs/train/data.md). Photos of DATA/adapt are taken in a fixed
shuffled order until they have as many regions as asked for; the weight of a region is what the model's best candidate
missed, as an annotator's correction of it would say. Measured before and after on all of DATA/val of the same source,
as `semsam evaluate clicks` counts, and on the gate's guard set. With --shuffle the masks (or names) are dealt out anew
among the regions, also of the held-out fifth: the gate has to refuse, where it can before anything is learned.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.config import parse_config
from semsam_model.data.folder import read_samples
from semsam_model.data.samples import Annotation, CocoMask, Region, Sample
from semsam_model.evaluation.clicks import evaluate_clicks
from semsam_model.evaluation.names import evaluate_names
from semsam_model.evaluation.photos import evaluate_photos
from semsam_model.finetuning.config import FineTuneConfig, read_finetune_config
from semsam_model.finetuning.loop import fine_tune
from semsam_model.gate.clicks import guard_samples
from semsam_model.gate.config import GateConfig
from semsam_model.gate.photo_agreement import measure_agreement
from semsam_model.gate.verdict import compare
from semsam_model.inference.predict import raw_levels
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Prompt

MEASURES = ("oracle", "first", "top1_given_kind", "max")
CORRECTED = 16  #: photos on which one mask is clicked until it is right


def corrections(model: SemanticSAM, pool: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Photos with at least `count` regions in all, each region weighted by what the model missed."""
    taken: list[Sample] = []
    for index in np.random.default_rng(seed).permutation(len(pool)):
        if sum(len(s.regions) for s in taken) >= count:
            break
        sample = pool[index]
        embedding = model.encode(sample.image())
        regions = []
        for number, region in enumerate(sample.regions):
            mask = sample.mask(number)
            levels = raw_levels(model, embedding, Prompt((innermost(mask),))) if mask.any() else []
            missed = 1 - max((crop_iou(c.crop, c.bbox, mask) for c in levels), default=0.0)
            regions.append(dataclasses.replace(region, weight=0.25 + 0.75 * missed))
        annotation = Annotation(sample.width, sample.height, tuple(regions))
        taken.append(Sample(sample.photo, sample.source, annotation))
    return taken


def shuffled(samples: Sequence[Sample], what: str, seed: int) -> list[Sample]:
    """The masks, or the names, of all regions dealt out anew; a mask is stretched to the photo it comes to."""
    rng = np.random.default_rng(seed)
    places = [(s, i) for s, sample in enumerate(samples) for i in range(len(sample.regions))]
    order = rng.permutation(len(places))
    dealt: list[list[Region]] = [[] for _ in samples]
    for (s, i), other in zip(places, order, strict=True):
        region, (t, j) = samples[s].regions[i], places[other]
        if what == "names":
            dealt[s].append(dataclasses.replace(region, name=samples[t].regions[j].name))
            continue
        mask = samples[t].mask(j)
        rows = np.arange(samples[s].height) * mask.shape[0] // samples[s].height
        columns = np.arange(samples[s].width) * mask.shape[1] // samples[s].width
        dealt[s].append(dataclasses.replace(region, segmentation=CocoMask.of(mask[rows][:, columns])))
    return [
        Sample(sample.photo, sample.source, Annotation(sample.width, sample.height, tuple(regions)))
        for sample, regions in zip(samples, dealt, strict=True)
    ]


def figures(model: SemanticSAM, samples: Sequence[Sample], encoder: TextEncoder | None) -> dict[str, float]:
    report = evaluate_clicks(model, samples, corrected=CORRECTED)
    found = {m: round(100 * float(np.mean([getattr(c, m) for c in report.clicks])), 1) for m in MEASURES}
    for clicks in (1, 2, 3, 5):
        found[f"after {clicks} clicks"] = round(100 * float(np.mean([c.after(clicks) for c in report.corrected])), 1)
    everything = evaluate_photos(model, samples, _no_names, "everything").by_source
    found |= {f"everything {name}": values[name] for values in everything.values() for name in ("ar10", "ar100")}
    if encoder is not None:
        kinds = evaluate_names(model, samples, encoder).by_source
        for source in kinds.values():
            found |= {f"{kind} top-1": scores.percent()["top1"] for kind, scores in source.items()}
    return found


def _no_names(labels: Sequence[str]) -> np.ndarray:
    return np.zeros((len(labels), 1), np.float32)


def tuned_and_judged(
    model: SemanticSAM,
    taken: Sequence[Sample],
    val: Sequence[Sample],
    hold_out: bool,
    config: FineTuneConfig,
    gate_config: GateConfig,
    encoder: TextEncoder,
    guard: Sequence[Sample],
) -> dict[str, Any]:
    """Fine-tune on `taken` and ask the gate.

    hold_out: a fifth of the same corrections is held out, as the worker does, in place of `val`.
    """
    cut = max(1, len(taken) // 5) if hold_out else 0
    train, held_out = taken[cut:], taken[:cut] if hold_out else val
    began = time.monotonic()
    agreement = measure_agreement(model, taken, gate_config)
    row: dict[str, Any] = {
        "regions": sum(len(s.regions) for s in train),
        "photos": len(train),
        "pictures": agreement.to_dict() | {"refused": agreement.reason},
        "prepared": minutes_since(began),
    }
    if agreement.reason:
        return row
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tuned = fine_tune(model, train, config, Path(folder), encoder=encoder)
    row |= {"minutes": minutes_since(began), "loss": round(tuned.loss, 2)}
    if not hold_out:
        row["after"] = {"val": figures(tuned.model, val, encoder), "guard": figures(tuned.model, guard, None)}
    began = time.monotonic()
    verdict = compare(
        model, tuned.model, held_out, gate_config, agreement=agreement, encoder=encoder, lists=taken
    ).verdict
    row["judged"] = minutes_since(began)
    row["gate"] = {k: v for k, v in verdict.to_dict().items() if k not in ("by_level", "by_label")}
    return row


def minutes_since(began: float) -> float:
    return round((time.monotonic() - began) / 60, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--source", nargs="+", default=["car_parts", "wbc"])
    parser.add_argument("--count", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--shuffle", choices=["masks", "names"])
    parser.add_argument("--config", type=Path, help="configs/finetune.yaml when not given")
    parser.add_argument("--weights", type=Path, help="of the model to start from; the default when not given")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the section finetune")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/finetune.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, gate_config = read_finetune_config(GateConfig, arguments.config)
    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in arguments.set)}
    config = parse_config(FineTuneConfig, dataclasses.asdict(config) | changes, "--set")
    model, version = load_model("mobile", arguments.weights)
    encoder = TextEncoder()
    rows = []
    guard = guard_samples(gate_config.scenes)
    for source in arguments.source:
        pool = read_samples(arguments.data / "adapt", [source]).samples
        val = read_samples(arguments.data / "val", [source]).samples
        before = {}
        if not arguments.shuffle:
            before = {"val": figures(model, val, encoder), "guard": figures(model, guard, None)}
        print(json.dumps({"source": source, "model": version.version, "before": before}), flush=True)
        for count in arguments.count:
            taken = corrections(model, pool, count, config.seed)
            if arguments.shuffle:
                taken = shuffled(taken, arguments.shuffle, config.seed)
            row = {"source": source, "shuffled": arguments.shuffle, "before": before}
            row |= tuned_and_judged(model, taken, val, bool(arguments.shuffle), config, gate_config, encoder, guard)
            print(json.dumps(row), flush=True)
            rows.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
