"""What a reader leaves out, counted and named: one line for each reason, with how many and which the first ones are."""

from __future__ import annotations

from dataclasses import dataclass, field

from semsam_model.errors import DataError

#: Things that a line names before it only counts.
_NAMED = 5


@dataclass
class _Loss:
    things: list[str] = field(default_factory=list)  #: the first ones
    count: int = 0
    masks: int = 0


class Losses:
    """Collects what cannot be used of one file."""

    def __init__(self, where: object) -> None:
        """where: the file."""
        self.where = where
        self._found: dict[tuple[str, str], _Loss] = {}

    @property
    def masks(self) -> int:
        """Masks in all that was left out."""
        return sum(loss.masks for loss in self._found.values())

    def add(self, kind: str, thing: object, reason: str | Exception, masks: int = 1) -> None:
        """Leave out one thing, such as ("annotation", 7); with so many masks."""
        if isinstance(reason, KeyError):
            reason = f"no {reason.args[0]}"
        elif isinstance(reason, Exception):
            reason = str(reason) if isinstance(reason, DataError | ValueError) else repr(reason)
        loss = self._found.setdefault((kind, reason), _Loss())
        if len(loss.things) < _NAMED:
            loss.things.append(str(thing)[:120])
        loss.count, loss.masks = loss.count + 1, loss.masks + masks

    @property
    def lines(self) -> tuple[str, ...]:
        """For `Dataset.skipped`."""
        return tuple(self._line(kind, reason, loss) for (kind, reason), loss in self._found.items())

    def _line(self, kind: str, reason: str, loss: _Loss) -> str:
        what = f"{kind} {loss.things[0]}"
        if loss.count > 1:
            plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
            more = ", ..." if loss.count > len(loss.things) else ""
            what = f"{loss.count} {plural} ({', '.join(loss.things)}{more})"
        masks = f", {loss.masks} masks" if loss.masks > loss.count else ""
        return f"{self.where}: {what}{masks}: {reason}"
