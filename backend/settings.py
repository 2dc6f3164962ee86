"""The service's settings: defaults, overridden by a YAML file, overridden by the environment.

The file is `configs/backend.yaml`, or the one that `SEMSAM_CONFIG` names. Every field `x` may be set as `SEMSAM_X`; an
empty variable counts as not set. `LABEL_STUDIO_URL`, `LABEL_STUDIO_HOST` and `LABEL_STUDIO_API_KEY`, which other Label
Studio backends use, are read too; their `SEMSAM_` forms win. An unknown key or a wrong type stops the start. Variables
that Kubernetes makes for a service called "semsam" are ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, ConfigDict, Field, SecretStr
from pydantic.dataclasses import dataclass

from backend.errors import SettingsError
from semsam_model.config import config_root, parse_config, read_yaml
from semsam_model.errors import ConfigError

log = logging.getLogger(__name__)

_PREFIX = "SEMSAM_"
_CONFIG_VARIABLE = "SEMSAM_CONFIG"
#: Names that other Label Studio backends use; the later one wins.
_FOREIGN_VARIABLES = {
    "LABEL_STUDIO_HOST": "label_studio_url",
    "LABEL_STUDIO_URL": "label_studio_url",
    "LABEL_STUDIO_API_KEY": "label_studio_api_key",
}
#: What Kubernetes puts into every container beside a service called "semsam": SEMSAM_PORT=tcp://10.0.0.1:9090, ...
_KUBERNETES_VARIABLE = re.compile(
    r"SEMSAM_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://\S+")


def _base_url(value: str) -> str:
    """`value` without its trailing slash, if it is http(s)://host[:port][/path]."""
    parts = urlsplit(value)
    try:
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise ValueError("expected http://host or https://host, with an optional :port")
    if parts.query or parts.fragment or "@" in parts.netloc or "\\" in value:
        raise ValueError("expected an address without user, query or fragment")
    return value.rstrip("/")


def _origin(value: str) -> str:
    """`value` without its trailing slash, if it is scheme://host[:port] and nothing more."""
    if urlsplit(_base_url(value)).path:
        raise ValueError("expected scheme://host[:port] without a path")
    return value.rstrip("/")


def _object_store(value: str) -> str:
    """`value`, if it is the address of a bucket in an object store or of a folder in one."""
    if not re.fullmatch(r"(s3|gs|azure-blob)://[^/@:?#\\\s]+(/[^?#]*)?", value):
        raise ValueError("expected s3://bucket/folder/, gs://bucket/folder/ or azure-blob://container/folder/")
    if {".", ".."} & set(value.split("/")):
        raise ValueError("expected a folder without . and ..")
    return value


def _photo_store(value: str) -> str:
    """`value` without its trailing slash, if it is the address of a folder in an object store or on a disk."""
    if re.fullmatch(r"file:///[^/].*", value) and not {".", ".."} & set(value.split("/")):
        return value.rstrip("/")
    try:
        return _object_store(value).rstrip("/")
    except ValueError as error:
        raise ValueError(f"{error}, or file:///folder") from None


_BaseUrl = Annotated[str, AfterValidator(_base_url)]
_Origin = Annotated[str, AfterValidator(_origin)]
_ObjectStore = Annotated[str, AfterValidator(_object_store)]
_PhotoStore = Annotated[str, AfterValidator(_photo_store)]
_Folder = Annotated[Path, AfterValidator(Path.expanduser)]
_Count = Annotated[int, Field(ge=1)]
_Dtype = Literal["float32", "bfloat16", "float16"]
_Seconds = Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class Settings:
    """Everything that can be configured. Units are in the names or beside them; secrets are masked when printed."""

    host: str = "127.0.0.1"  #: address to listen on
    port: Annotated[int, Field(ge=0, le=65535)] = 9090  #: 0 = any free one
    threads: Annotated[int, Field(ge=1, le=256)] = 8  #: requests answered at the same time
    queued: Annotated[int, Field(ge=0, le=1024)] = 64  #: further ones that wait; each holds a thread and its body
    queue_seconds: _Seconds = 95.0  #: for at most so long: Label Studio gives up after 100 s
    data_dir: _Folder = Path(".semsam")  #: where the service keeps its files
    database_url: SecretStr | None = None  #: postgresql://..., sqlite:///...; None = semsam.db in the data folder
    #: s3://bucket/folder, file:///folder, ... with the photos of corrections; None = photos in the data folder
    photo_store: _PhotoStore | None = None
    #: seconds between two synchronisations of all projects with Label Studio; 0 = at the start and on demand only
    sync_seconds: Annotated[float, Field(ge=0, le=86400)] = 600.0
    #: days after which a suggestion that became no region is deleted; 0 = never, nor anything of the others
    suggestion_days: Annotated[float, Field(ge=0, le=36500)] = 30.0

    label_studio_url: _BaseUrl = "http://localhost:8080"  #: as the backend reaches it
    label_studio_api_key: SecretStr | None = None  #: personal access token or legacy token
    #: further Label Studio servers on this backend: address -> token
    label_studio_keys: dict[_BaseUrl, SecretStr] = dataclasses.field(default_factory=dict)
    allowed_origins: tuple[_Origin, ...] = ()  #: other origins that photos may be fetched from
    object_stores: tuple[_ObjectStore, ...] = ()  #: s3://bucket/folder/: photos below it are read without Label Studio
    local_files_root: _Folder | None = None  #: folder that photos named by a local path must lie in

    basic_auth_user: str | None = None  #: both or neither
    basic_auth_pass: SecretStr | None = None
    webhook_secret: SecretStr | None = None  #: what Label Studio's webhooks carry as X-Semsam-Secret

    max_body_bytes: _Count = 128 * 2**20  #: of one request
    max_image_bytes: _Count = 64 * 2**20  #: of one photo's file
    # Pillow refuses twice its own limit, 178 956 970, whatever we say
    max_image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 80_000_000  #: width x height
    image_connect_timeout: _Seconds = 5.0  #: seconds to open a connection
    image_read_timeout: _Seconds = 20.0  #: seconds without a byte
    image_total_timeout: _Seconds = 60.0  #: seconds for the whole photo, redirects included
    image_recheck_seconds: _Seconds = 60.0  #: a photo fetched this recently is not fetched again to compare its digest

    model: str = "mobile"  #: name in configs/model, or a YAML file
    weights: _Folder | None = None  #: safetensors file; None = the weights that come with semsam
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"  #: auto, cpu, cuda, cuda:N
    dtype: _Dtype = "float32"  #: of the image encoder
    engine: str | None = None  #: FAMILY:ARGUMENT proposes masks instead of the model, which describes them then
    concepts: str | None = None  #: FAMILY:ARGUMENT finds what labels and text prompts name
    engine_fallback: bool = False  #: the model answers alone where engine or concept model cannot be loaded
    torch_threads: _Count | None = None  #: CPU threads of the network; None = torch's choice
    version_poll_seconds: _Seconds = 1.0  #: how often to ask the store which version is live
    text_encoder: str | None = None  #: sentence-transformers folder or hub name; None = the installed package
    name_threshold: Annotated[float, Field(ge=0, le=1)] = 0.4  #: least score of a name that becomes the region's label
    #: pre-annotation of a photo without a click: least score of a region; None = the one that the weights bring
    preannotate_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    preannotate_regions: _Count = 50  #: at most so many
    preannotate_seconds: _Seconds = 80.0  #: after which a request begins no further photo; Label Studio waits 100 s
    learning: bool = True  #: accepted regions change a project's next click; false = in no project
    #: tasks whose photos are embedded ahead while an annotator works on the one before; 0 = none
    prewarm_tasks: Annotated[int, Field(ge=0, le=20)] = 3
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 512 * 2**20  #: memory for the image embeddings kept

    finetune_config: _Folder | None = None  #: fine-tuning's configuration; None = configs/finetune.yaml
    finetune_after_corrections: Annotated[int, Field(ge=0)] = 100  #: new corrections that start a job; 0 = never
    finetune_every_hours: Annotated[float, Field(ge=0)] = (
        0.0  #: a job this often if there are new corrections; 0 = never
    )
    worker_threads: _Count | None = None  #: CPU threads of a job; None = half of the cores
    worker_nice: Annotated[int, Field(ge=0, le=19)] = 10  #: how much the priority of a job's process is lowered
    worker_lease_seconds: _Seconds = 60.0  #: a job without a heartbeat for this long is taken over by another worker

    def __post_init__(self) -> None:
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise ValueError("basic_auth_user and basic_auth_pass: expected both or neither")

    def label_studio_tokens(self) -> dict[str, str | None]:
        """Address -> token of every Label Studio server, as plain text."""
        secrets = {self.label_studio_url: self.label_studio_api_key, **self.label_studio_keys}
        return {address: plain(secret) for address, secret in secrets.items()}


def plain(secret: SecretStr | None) -> str | None:
    """The text of a secret, for where it is used."""
    return None if secret is None else secret.get_secret_value()


def without_secrets(settings: Settings) -> Settings:
    """The same settings without tokens and passwords, to be sent to another machine."""
    empty: dict[str, Any] = {name: {} if name == "label_studio_keys" else None for name in _SECRETS}
    return dataclasses.replace(settings, **empty, basic_auth_user=None)


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Defaults < YAML file < environment.

    `path` is the YAML file; None takes `SEMSAM_CONFIG`, else `configs/backend.yaml` where there is one. `environ` is
    `os.environ` unless given. Raises SettingsError naming the key, where it was set and what was
    expected; never a secret.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    source = path or (Path(environ[_CONFIG_VARIABLE]) if environ.get(_CONFIG_VARIABLE) else None)
    if source is None and (config_root() / "backend.yaml").is_file():
        source = config_root() / "backend.yaml"
    if source is not None:
        for name, value in _read_file(source).items():
            values[name], places[name] = value, f"{source}: {name}"
    for variable, name, text in _from_environment(environ):
        values[name], places[name] = _parse_variable(variable, name, text), variable
    try:
        return parse_config(Settings, values, "settings", places=places, secrets=_SECRETS)
    except ConfigError as error:
        raise SettingsError(str(error)) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise SettingsError(str(error)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected `key: value` lines, got {type(content).__name__}")
    for name in content:
        if name not in _HINTS:
            raise SettingsError(f"{path}: unknown key {name!r}{_nearest(name)}; expected one of {', '.join(_HINTS)}")
    return content


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(variable, field, text) of every variable that sets a field, the winning one last."""
    foreign = {variable: environ[variable] for variable in _FOREIGN_VARIABLES if environ.get(variable)}
    found = [(variable, _FOREIGN_VARIABLES[variable], text) for variable, text in foreign.items()]
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE or not text:
            continue
        if _KUBERNETES_VARIABLE.fullmatch(variable) or (
            variable == f"{_PREFIX}PORT" and _KUBERNETES_PORT.fullmatch(text)
        ):
            log.warning("environment %s: not a setting, looks like one that Kubernetes makes; ignored", variable)
            continue
        name = variable.removeprefix(_PREFIX).lower()
        # a typing error would otherwise be noticed only when the setting has no effect
        if name not in _HINTS:
            raise SettingsError(
                f"environment {variable}: no such setting{_nearest(name).upper()};"
                f" expected {_PREFIX} and one of {', '.join(_HINTS).upper()}"
            )
        found.append((variable, name, text))
    return found


def _nearest(name: Any) -> str:
    found = difflib.get_close_matches(str(name), _HINTS, 1)
    return f" ({found[0]}?)" if found else ""


def _parse_variable(variable: str, name: str, text: str) -> Any:
    """The text as the value that a YAML file would hold: text stays text, lists may be separated by commas."""
    hint = _HINTS[name]
    if get_origin(hint) not in (dict, tuple) and {hint, *get_args(hint)} & {str, Path, SecretStr, *get_args(_Dtype)}:
        return text
    if name in ("allowed_origins", "object_stores") and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"environment {variable}: cannot be read as a value for {name}") from None


_HINTS: dict[str, Any] = get_type_hints(Settings)
_SECRETS = [name for name, hint in _HINTS.items() if SecretStr in get_args(hint)]
