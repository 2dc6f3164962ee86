"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[str, typer.Option("--model", help="mobile, swin_t, swin_l, ...: a name in configs/model.")]
WeightsFile = Annotated[Path | None, typer.Option("--weights", help="Safetensors file; the embedded one for mobile.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")]
PhotoFile = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, BMP or TIFF.")]

DataFolders = Annotated[list[Path], typer.Argument(help="Folders with SOURCE.json and photos, see docs/train/data.md.")]
Limit = Annotated[int | None, typer.Option(help="At most this many photos a source, evenly spaced.")]
MixtureFile = Annotated[Path, typer.Argument(help="configs/data/NAME.yaml")]
MixtureRoot = Annotated[Path | None, typer.Option("--root", help="Where the file's paths start; the current folder.")]

SettingsFile = Annotated[Path | None, typer.Option("--config", help="Settings file; see configs/backend.yaml.")]
Project = Annotated[int, typer.Option("--project", help="Its id in Label Studio.", show_default=False)]
Origin = Annotated[
    str | None,
    typer.Option("--origin", help="Its server, scheme://host:port, where several have a project of this id."),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
