"""The one exception tree; `backend.errors` continues it.

SemsamError
├── ConfigError        a configuration file or value is wrong
├── CheckpointError    a weights file is not what it should be
├── PromptError        a click or box cannot be used
├── ImageError         pixels cannot be read or used
├── DataError          training or evaluation data is wrong
├── TextEncoderError   the encoder of label texts is missing or not what it should be
├── TrainingError      a training run cannot go on
└── Stopped            the caller ended the work early, see `types.ShouldStop`
"""


class SemsamError(Exception):
    """Anything semsam raises on purpose. The message names the thing, what was expected, what came, and the way out."""


class ConfigError(SemsamError):
    """A configuration file or value is wrong."""


class CheckpointError(SemsamError):
    """A weights file is not what it should be."""


class PromptError(SemsamError):
    """A click or box cannot be used on this photo."""


class ImageError(SemsamError):
    """Pixels cannot be read or used."""


class DataError(SemsamError):
    """Training or evaluation data is wrong."""


class TextEncoderError(SemsamError):
    """The encoder of label texts is missing or not what it should be."""


class TrainingError(SemsamError):
    """A training run cannot go on."""


class Stopped(SemsamError):
    """The caller's `should_stop` said so; there is no result."""
