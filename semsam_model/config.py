"""What a model is made of: one frozen dataclass, filled from configs/model/NAME.yaml, strictly. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from semsam_model.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and conventions of one Semantic-SAM variant. Section numbers are those of docs/model.md."""

    name: str
    """Short name: mobile, swin_t, ..."""
    backbone: str
    """swin or mobilenet_v2"""
    width: int = 256
    """Channels of the pixel decoder, the memory and the queries"""
    heads: int = 8
    """Attention heads, both decoders"""
    points: int = 4
    """Sampling points per head and level of deformable attention"""
    encoder_layers: int = 6
    """Deformable encoder layers in the pixel decoder"""
    decoder_layers: int = 9
    """Prompt decoder layers"""
    ffn: int = 2048
    """Hidden width of the feed-forward blocks"""
    tokens: int = 6
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

    resize_side: str = "short"
    """Which side of the photo is brought to resize_pixels: short or long"""
    resize_pixels: int = 640
    """Target of that side, model-frame pixels"""
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """RGB mean, 0..255 scale"""
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
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
    generic_queries: int = 0
    """Object queries: masks of the whole photo without a click; 0: none (published)"""
    generic_layers: int = 2
    """Decoder layers of the object queries"""
    generic_decoder_layers: int = 0
    """Object queries have a pixel decoder (but its projections) and a prompt decoder of their own, the latter of so
    many layers; 0: they share those of clicks"""
    zoom: float = 0.0
    """A closer look shows 1/zoom of the photo's sides, where the first answers are small; 0: one look (published)"""
    zoom_pixels: int = 256
    """Like resize_pixels, for the window that a closer look shows"""

    def __post_init__(self) -> None:
        checks = (
            (self.backbone in ("swin", "mobilenet_v2"), f"backbone {self.backbone!r}: expected swin or mobilenet_v2"),
            (self.resize_side in ("short", "long"), f"resize_side {self.resize_side!r}: expected short or long"),
            (self.width % self.heads == 0, f"width {self.width}: expected a multiple of heads {self.heads}"),
            (self.width % 32 == 0, f"width {self.width}: expected a multiple of 32 (group norm, sine positions)"),
            (
                self.generic_queries >= 0 and self.generic_layers >= 1 and self.generic_decoder_layers >= 0,
                "generic_queries, generic_layers, generic_decoder_layers: expected at least 0, 1 and 0",
            ),
            (self.tokens in (3, 6), f"tokens {self.tokens}: expected 3 or 6"),
            (self.zoom == 0 or 1 < self.zoom <= 16, f"zoom {self.zoom}: expected 0, or above 1 and at most 16"),
            (len(self.pixel_mean) == len(self.pixel_std) == 3, "pixel_mean, pixel_std: expected three values each"),
        )
        for good, message in checks:
            if not good:
                raise ConfigError(f"model config {self.name!r}: {message}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and checkpoint metadata carry them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str = "model config") -> ModelConfig:
        """Checked construction. Raises ConfigError naming the key, its value and the expected type."""
        return cls(**check_fields(cls, values, where))


def check_fields(cls: type, values: object, where: str) -> dict[str, Any]:
    """Check a mapping against a dataclass: no unknown or missing keys, right types; lists become tuples.

    Raises ConfigError.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    unknown = sorted(set(map(str, values)) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: key {missing[0]!r} is missing")
    return {name: _coerce(value, hints[name], f"{where}: {name}") for name, value in values.items()}


def _coerce(value: Any, hint: Any, where: str) -> Any:
    options = get_args(hint)
    if type(None) in options:  # X | None
        return None if value is None else _coerce(value, next(o for o in options if o is not type(None)), where)
    if getattr(hint, "__origin__", None) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_coerce(item, options[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def read_yaml(path: Path) -> Any:
    """Parse one YAML file. Raises ConfigError when it is missing, not YAML, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twins(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc


def _refuse_twins(root: yaml.Node | None, path: Path) -> None:
    # YAML would let the last one win, which is not the one a reader finds first
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # anchors: met again under each alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                nodes.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise ConfigError(f"{path}: line {line}: key {key.value!r} is there already, in line {first}")
                lines[key.value] = line


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
    return ModelConfig.from_dict(read_yaml(path), where=str(path))
