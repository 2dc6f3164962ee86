"""What a model is made of, filled from configs/model/NAME.yaml; and how every config is read: strictly. No torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from semsam_model.errors import ConfigError
from semsam_model.validation import explain, path_to

#: Of every config: no key that it does not know, no conversion but from lists to tuples and from int to float.
STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Config = TypeVar("Config")


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Sizes and conventions of one Semantic-SAM variant. Section numbers are those of docs/develop/model.md."""

    name: str
    """Short name: mobile, swin_t, ..."""
    backbone: Literal["swin", "mobilenet_v2"]
    width: int = 256
    """Channels of the pixel decoder, the memory and the queries"""
    heads: Count = 8
    """Attention heads, both decoders"""
    points: int = 4
    """Sampling points per head and level of deformable attention"""
    encoder_layers: int = 6
    """Deformable encoder layers in the pixel decoder"""
    decoder_layers: int = 9
    """Prompt decoder layers"""
    ffn: int = 2048
    """Hidden width of the feed-forward blocks"""
    tokens: Literal[3, 6] = 6
    """Level queries a prompt: 6 (many-to-many) or 3 (many-to-one)"""
    text_dim: int = 512
    """Dimension of object and part class embeddings"""

    swin_dim: int = 96
    """Swin: channels of the first stage"""
    swin_depths: tuple[int, ...] = (2, 2, 6, 2)
    """Swin: blocks a stage"""
    swin_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Swin: attention heads a stage"""
    swin_window: int = 7
    """Swin: window side"""
    drop_path: float = 0.0
    """Swin: stochastic depth at the last block, linear ramp; training only"""

    resize_side: Literal["short", "long"] = "short"
    """Which side of the photo is brought to resize_pixels: short or long"""
    resize_pixels: int = 640
    """Target of that side, model-frame pixels"""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB mean, 0..255 scale"""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """RGB standard deviation, 0..255 scale"""

    click_box: float = 0.005
    """Side of the prompt box that stands for a click, share of the unpadded model frame"""
    learned_boxes: bool = False
    """Each level token starts from its own learned box size around a click (published: click_box for all)"""
    click_features: bool = False
    """Image features under the click are added to the query content (published: no)"""
    corrections: bool = False
    """Further clicks of a prompt are tokens that its level queries attend to (published: one click a prompt)"""
    name_features: bool = False
    """Class embeddings also read image features pooled inside the query's mask (published: the query alone)"""
    generic_queries: NonNegativeInt = 0
    """Object queries: masks of the whole photo without a click; 0: none (published)"""
    generic_layers: Count = 2
    """Decoder layers of the object queries"""
    generic_decoder_layers: NonNegativeInt = 0
    """Object queries have a pixel decoder (but its projections) and a prompt decoder of their own, the latter of so
    many layers; 0: they share those of clicks"""
    generic_mirrored: bool = False
    """Object queries look at the photo and at its mirror image; those that find the same thing are one"""
    zoom: float = 0.0
    """Where proposals are small, a crop of 1/zoom of the photo's sides is predicted too; 0: never (published)"""
    zoom_pixels: int = 256
    """Like resize_pixels, for that crop"""
    regions: NonNegativeInt = 0
    """So many nested masks of the photo's hierarchy of regions are proposed beside the network's; 0: no hierarchy
    (published)"""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: expected a multiple of heads {self.heads}")
        if self.width % 32:
            raise ValueError(f"width {self.width}: expected a multiple of 32 (group norm, sine positions)")
        if not (self.zoom == 0 or 1 < self.zoom <= 16):
            raise ValueError(f"zoom {self.zoom}: expected 0, or above 1 and at most 16")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and checkpoint metadata carry them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def parse_config(
    config_type: type[Config],
    values: object,
    where: str,
    *,
    places: Mapping[str, str] | None = None,
    secrets: Collection[str] = (),
) -> Config:
    """A config from plain values, as YAML and JSON hold them; strict, see `STRICT`.

    places: where a key was set, if not in `where` (a file). secrets: keys whose values no error shows.
    Raises ConfigError naming that place, the key, what was expected and what came.
    """
    try:
        text = json.dumps(_with_text_keys(values, where))
    except TypeError as error:  # a date, say
        raise ConfigError(f"{where}: {error}; expected text, numbers, true or false") from None
    try:
        # As JSON, because strict reading of Python values would refuse lists for tuples, and mappings for configs.
        return TypeAdapter(config_type).validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_problem(config_type, each, where, places or {}, secrets) for each in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def _with_text_keys(values: object, where: str) -> object:
    if isinstance(values, Mapping):
        for key in values:
            if not isinstance(key, str):  # JSON would turn it into text
                raise ConfigError(f"{where}: expected text as a key, got {key!r}")
        return {key: _with_text_keys(value, f"{where}: {key}") for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_with_text_keys(value, where) for value in values]
    return values


def _problem(
    config_type: type, problem: ErrorDetails, where: str, places: Mapping[str, str], secrets: Collection[str]
) -> str:
    location = problem["loc"]
    if problem["type"] == "unexpected_keyword_argument":
        known = ", ".join(_keys_at(config_type, location[:-1]))
        return f"{path_to(where, location[:-1], ': ')}: unknown key {location[-1]!r}; known keys: {known}"
    secret = bool(location) and location[0] in secrets
    if secret:
        location = location[:1]  # the next step may be a key of a mapping
    if location and location[0] in places:
        where, location = places[str(location[0])], location[1:]
    return f"{path_to(where, location, ': ')}: {explain(problem, secret=secret)}"


def _keys_at(config_type: Any, location: Sequence[str | int]) -> list[str]:
    for part in location:
        config_type = get_args(config_type)[0] if isinstance(part, int) else get_type_hints(config_type)[part]
    return [field.name for field in dataclasses.fields(config_type)]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: YAML takes the last one, readers find the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise yaml.YAMLError(f"line {line}: key {key.value!r} is there already, in line {lines[key.value]}")
                lines[key.value] = line
        return node


def read_yaml(path: Path) -> Any:
    """Parse one YAML file. Raises ConfigError when it is missing, not YAML, or has a key twice."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc


def config_root() -> Path:
    """Folder `configs/`: of the source tree, or beside the installed package."""
    return Path(str(resources.files("semsam_model"))).parent / "configs"


def model_names() -> list[str]:
    """Names that `read_model_config` knows."""
    return sorted(p.stem for p in (config_root() / "model").glob("*.yaml"))


def read_model_config(name_or_path: str | Path) -> ModelConfig:
    """Read configs/model/NAME.yaml, or any YAML file given by path. Raises ConfigError."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = config_root() / "model" / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"model {str(name_or_path)!r}: expected one of {', '.join(model_names())}, or a YAML file"
            )
    return parse_config(ModelConfig, read_yaml(path), str(path))
