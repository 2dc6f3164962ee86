"""`semsam click` and `semsam segment`: masks in one photo, without Label Studio."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.shared import ModelName, WeightsFile, load_network, open_text_encoder
from semsam_model.errors import PromptError
from semsam_model.types import KINDS, LEVELS, Box, Candidate, Click, Concept, LabelSet, Prompt

if TYPE_CHECKING:
    import numpy as np

    from backend.images import Photo
    from backend.settings import Settings
    from semsam_model.checkpoints.header import Version
    from semsam_model.network.model import SemanticSAM

PhotoFile = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF.")]

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
    from backend.cli.drawing import contact_sheet, write_candidates
    from semsam_model.inference.predict import predict_candidates, raw_levels
    from semsam_model.inference.zoom import crop_encoder

    loaded = _read_photo(photo)
    network, version = load_network(model, weights)
    embedding = network.encode(loaded.rgb)
    if all_levels:
        candidates = raw_levels(network, embedding, prompt)
    else:
        candidates = predict_candidates(network, embedding, prompt, encode_crop=crop_encoder(network, loaded.rgb))
    write_candidates(out, loaded, candidates, version)
    contact_sheet(loaded.rgb, prompt, candidates).save(out / "contact_sheet.png")
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


def segment(
    photo: PhotoFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overview.png and candidates.json.")],
    labels: Annotated[list[str], typer.Option("--label", help="A name to give; may be repeated.")] = [],  # noqa: B006
    parts: Annotated[list[str], typer.Option("--part", help="A name for parts; may be repeated.")] = [],  # noqa: B006
    grid: Annotated[int, typer.Option(min=1, max=128, help="Clicks along each side of the photo.")] = 32,
    level: Annotated[list[int], typer.Option("--level", help="1 = whole ... 6 = smallest part; all when absent.")] = [],  # noqa: B006
    most: Annotated[int, typer.Option(min=1, help="Masks to keep, the surest.")] = 150,
    model: ModelName = "mobile",
    weights: WeightsFile = None,
) -> None:
    """Segment everything: by a grid of clicks, or, with labels and the setting `concepts`, by what they name."""
    from backend.cli.drawing import overview, write_candidates
    from backend.settings import load_settings
    from semsam_model.inference.automatic import AutomaticOptions, automatic_masks

    options = AutomaticOptions(grid=grid, most=most, levels=tuple(sorted(set(level))) or LEVELS)
    loaded = _read_photo(photo)
    network, version = load_network(model, weights)
    known = None
    if labels or parts:
        words = (*labels, *parts)
        kinds = (KINDS[0],) * len(labels) + (KINDS[1],) * len(parts)
        known = LabelSet(words, kinds, open_text_encoder().embed(list(words)).numpy())
    settings, concepts = load_settings(), None
    if known is not None and settings.concepts is not None:
        candidates, concepts = _by_concepts(settings, network, loaded.rgb, known, most)
    else:
        found = automatic_masks(network, network.encode(loaded.rgb), options, known, settings.name_threshold)
        candidates = [f.candidate for f in found]
    write_candidates(out, loaded, candidates, version, concepts)
    overview(loaded.rgb, candidates).save(out / "overview.png")
    print(f"{len(candidates)} masks written to {out}")


def _by_concepts(
    settings: Settings, network: SemanticSAM, rgb: np.ndarray, labels: LabelSet, most: int
) -> tuple[list[Candidate], Version]:
    """What the labels name to the concept model of the settings, and its version. Raises SemsamError."""
    from semsam_model.engines.open_engine import open_concepts
    from semsam_model.inference.concepts import ConceptSearch, concept_regions
    from semsam_model.inference.preannotate import RegionOptions

    assert settings.concepts is not None
    opened = open_concepts(settings.concepts, settings.device)
    kinds = dict(zip(labels.values, labels.kinds, strict=True))
    objects = tuple(Concept(value, (value,)) for value, kind in kinds.items() if kind != "part")
    parts = (Concept(value, (value,), "part", objects) for value, kind in kinds.items() if kind == "part")
    look = lru_cache(1)(partial(opened.model.encode, rgb))
    search = ConceptSearch(opened.model, look, (*objects, *parts))
    options = RegionOptions(settings.preannotate_threshold, most)
    regions = concept_regions(network, network.encode(rgb), search, labels, options)
    return [region.candidate for region in regions], opened.version


def _read_photo(path: Path) -> Photo:
    """A photo within the limits of the settings. Raises ImageError, OSError."""
    from backend.images import load_photo
    from backend.settings import load_settings

    settings = load_settings()
    return load_photo(path, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
