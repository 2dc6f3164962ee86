"""`semsam click`: candidates for one prompt in a photo, without Label Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli import context
from backend.cli.console import print_candidates
from backend.cli.options import ModelName, PhotoFile, WeightsFile
from semsam_model.errors import PromptError
from semsam_model.types import Box, Click, Prompt

_EXAMPLE = {2: "320,213", 4: "100,80,400,300"}  #: by the count of numbers


def click(
    photo: PhotoFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, contact sheet and candidates.json.")],
    point: Annotated[list[str], typer.Option("--point", help="X,Y: a click on the object, photo pixels.")] = [],  # noqa: B006
    negative: Annotated[list[str], typer.Option("--not", help="X,Y: a click on what is not wanted.")] = [],  # noqa: B006
    box: Annotated[list[str], typer.Option("--box", help="X0,Y0,X1,Y1 around the object.")] = [],  # noqa: B006
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    all_levels: Annotated[bool, typer.Option("--all-levels", help="All six levels of one prompt, raw.")] = False,
) -> None:
    """Segment what is under a click, without Label Studio."""
    prompt = _prompt(point, negative, box)
    if all_levels and (negative or len(point) + len(box) != 1):
        raise PromptError(
            "--all-levels: expected exactly one --point or --box and no --not: raw levels are of one prompt"
        )
    from backend.cli.drawing import write
    from semsam_model.inference.predict import predict_candidates, raw_levels
    from semsam_model.inference.zoom import crop_encoder

    loaded = context.read_photo(photo)
    network, version = context.load_network(model, weights)
    embedding = network.encode(loaded.rgb)
    if all_levels:
        candidates = raw_levels(network, embedding, prompt)
    else:
        candidates = predict_candidates(network, embedding, prompt, encode_crop=crop_encoder(network, loaded.rgb))
    write(out, loaded, prompt, candidates, version)
    print_candidates(candidates)
    print(f"written to {out}")


def _prompt(points: list[str], negatives: list[str], boxes: list[str]) -> Prompt:
    """What the options ask for. Raises PromptError."""
    clicks = []
    for option, texts, positive in (("--point", points, True), ("--not", negatives, False)):
        for text in texts:
            x, y = _numbers(text, 2, option, "X,Y")
            clicks.append(Click(x, y, positive))
    return Prompt(tuple(clicks), tuple(Box(*_numbers(text, 4, "--box", "X0,Y0,X1,Y1")) for text in boxes))


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise PromptError(f"{option} {text!r}: expected {form} in photo pixels, for example {option} {_EXAMPLE[count]}")
    return values
