"""Groups of sources that a report keeps apart, from a file such as configs/groups/val.yaml."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic.dataclasses import dataclass

from semsam_model.config import STRICT, parse_config, read_yaml
from semsam_model.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class SourceGroups:
    """Which sources are averaged together; no source is in two groups."""

    groups: dict[str, tuple[str, ...]]
    """Name of a group -> its sources"""

    def sources(self, group: str) -> tuple[str, ...]:
        """Of one group. Raises ConfigError when there is none of this name."""
        if group not in self.groups:
            raise ConfigError(f"groups: expected one of {', '.join(self.groups)}, got {group}")
        return self.groups[group]

    def of(self, sources: Collection[str]) -> dict[str, list[str]]:
        """The sources that were measured, by group. Raises ConfigError for one that is in no group."""
        missing = sorted(set(sources) - {source for listed in self.groups.values() for source in listed})
        if missing:
            raise ConfigError(
                f"groups: source {missing[0]} is in none of {', '.join(self.groups)}; add it to one of them, "
                "or leave out --groups"
            )
        return {name: [source for source in listed if source in sources] for name, listed in self.groups.items()}


def read_groups(path: Path) -> SourceGroups:
    """Raises ConfigError when the file cannot be read, or a source is listed twice."""
    found = parse_config(SourceGroups, read_yaml(path), str(path))
    listed = [source for sources in found.groups.values() for source in sources]
    twice = sorted({source for source in listed if listed.count(source) > 1})
    if twice:
        raise ConfigError(f"{path}: source {twice[0]} is listed twice, expected every source once")
    return found


def means_of_groups(groups: Mapping[str, Collection[str]], seen: Collection[str] | None) -> dict[str, list[str]]:
    """Name of a mean -> its sources: of each group and, where it is known what was trained on, of its two halves."""
    means = {}
    for name, sources in groups.items():
        means[f"mean_over_{name}"] = list(sources)
        if seen is not None:
            means[f"mean_over_{name}_seen"] = [source for source in sources if source in seen]
            means[f"mean_over_{name}_unseen"] = [source for source in sources if source not in seen]
    return means
