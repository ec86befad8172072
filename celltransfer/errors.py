"""Every exception and warning that celltransfer raises on purpose.

Messages follow one pattern: the slot that is wrong, what was found, what was expected, what to do.
"""

from __future__ import annotations


class CelltransferError(Exception):
    """Base class of all errors raised by celltransfer."""


class InputError(CelltransferError, ValueError):
    """The data passed by the user cannot be used as they are."""


class ModalityError(InputError):
    """A modality is missing, empty, or of the wrong kind."""


class CountsError(InputError):
    """Raw counts are needed, and the matrix holds something else (normalised values, negatives, NaN)."""


class FeatureError(InputError):
    """Features are missing, duplicated, or do not match those the model was fitted on."""


class AnchorError(InputError):
    """Anchor cells are missing, ambiguous, outside the training cells, or too few for the method."""


class ConditionError(InputError):
    """A condition column is missing, incomplete, or differs between the modalities."""


class ConfigError(CelltransferError, ValueError):
    """An argument has an unknown name or a value outside its range."""


class NotFittedError(CelltransferError, AttributeError):
    """A model, recipe or translator is used before it was fitted."""


class DatasetError(CelltransferError, OSError):
    """A dataset cannot be found, downloaded, or verified."""


class ModelFormatError(CelltransferError):
    """A saved model cannot be read: incomplete, corrupt, or written by a newer version."""


class WriteError(CelltransferError, OSError):
    """A file could not be written (disk full, no permission); what stood there before is untouched."""


class CelltransferWarning(UserWarning):
    """Base class of all warnings raised by celltransfer."""


class VerdictWarning(CelltransferWarning):
    """The fit ended, and its evidence says that the translation should not be believed."""
