"""The published Swin-T with names on top, from the checkpoint to a named click, on a few synthetic scenes.

    python -m benchmarks.finetune_published [--checkpoint FILE.pth] [--steps 2] [--size 128] [--folder DIR]

Without a checkpoint its weights are made by the rule of the parity tests: the way is shown, not what it is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from semsam_model.checkpoints.checkpoint import load
from semsam_model.checkpoints.published import convert, published_shapes
from semsam_model.checkpoints.run_weights import pack
from semsam_model.config import config_root, parse_config, read_model_config
from semsam_model.data.mixture import MixtureConfig, read_mixture
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import predict_candidates
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.config import SamplingConfig, Stage, read_train_config
from semsam_model.training.loop import train
from semsam_model.types import Click, LabelSet, Prompt

FEEDS = ["masks", "boxes", "iou", "object_names", "part_names"]


def made_checkpoint(path: Path) -> Path:
    """A Swin-T as published, its weights by rule."""
    from tests.semsam_model.published_rule import rule_weights

    config = read_model_config("swin_t")
    torch.save({"model": rule_weights(published_shapes(config), config.swin_window)}, path)
    return path


def run(folder: Path, checkpoint: Path | None, steps: int, size: int) -> None:
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    converted = folder / "swin_t.safetensors"
    convert(checkpoint or made_checkpoint(folder / "swin_t.pth"), "swin_t", converted)
    say(f"converted to {converted.name}")
    config = dataclasses.replace(
        read_train_config(config_root() / "train" / "swin_t_names.yaml"),
        init=str(converted),
        stages=(Stage(steps, size, 1),),
        sampling=SamplingConfig(prompts=4),
        workers=0,
        log_every=1,
        tensorboard=False,
    )
    made = {"name": "made", "kind": "synthetic", "count": 4, "size": 128, "feeds": FEEDS}
    mixture = read_mixture(parse_config(MixtureConfig, {"sources": [made]}, "mixture"))
    result = train(config, mixture, folder / "run")
    say(f"{result.steps} steps")
    packed = folder / "swin_t_names.safetensors"
    version = pack(result.weights, read_model_config("swin_t_names"), packed)
    model, _ = load(packed)
    say(f"packed as {version}")
    sample = mixture.samples[0]
    words = sorted({region.name for region in sample.regions if region.name})
    labels = LabelSet(tuple(words), (None,) * len(words), TextEncoder().embed(words).numpy())
    click = Click(sample.width / 2, sample.height / 2)
    for candidate in name_candidates(
        predict_candidates(model, model.encode(sample.image()), Prompt((click,))), labels, 0
    ):
        print(f"  {candidate.rank}  {candidate.area} px  " + ", ".join(f"{n} {s:.2f}" for n, s in candidate.names[:3]))
    say("a click answered with names")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="kept; a temporary one when not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, options.checkpoint, options.steps, options.size)


if __name__ == "__main__":
    main()
