"""The errors of ``model``, as one tree.

ModelError                        anything this package refuses
├── ImageError                    bytes that will not become pixels
│   ├── EmptyImageError           no bytes at all
│   ├── UnsupportedImageError     not JPEG, PNG or WebP by its first bytes
│   ├── TooManyPixelsError        the header declares more pixels, or a longer side, than allowed
│   └── UndecodableImageError     the right magic, but not a picture the decoder can finish
├── LabelRangeError               a pixel carries an id that is no class and not the ignore id
├── PaletteError                  class names, colours and ids do not fit together
├── DatasetError                  a data-set file, its list, or a file of a pair is unusable
│   ├── MissingRootError          a preset was used without the folder of its data set
│   └── PairError                 a picture or its labels cannot be read
│       └── LabelError            the labels of a picture are no class ids of its size
├── ProtocolError                 an evaluation protocol that does not exist or cannot have such chips
├── EvaluationError               results that do not add up to one evaluation
├── ModelOutputError              a head's raw output is not finite, or not of the shape implied
├── NetworkError                  an architecture name, parameter or state dict that does not fit
├── DownloadError                 weights that cannot be fetched, or are not the ones expected
├── ForeignCheckpointError        a checkpoint of another program that cannot be imported
├── ManifestError                 a manifest.json that is not a manifest
├── ArtifactError                 an artifact folder that must not be used
│   ├── DigestMismatchError       a file is not the one the manifest names
│   ├── WeightsError              a key, shape, dtype or value of the weights is wrong
│   └── GoldenMismatchError       the golden sample is not reproduced
├── ExportError                   a file of another format cannot be written
├── QuantizationError             an int8 version cannot be made, or loses more than was allowed
└── RegistryError                 the registry cannot do what was asked
    ├── RegistryUrlError          a registry URL that names no store
    ├── InvalidReferenceError     a model reference that does not parse
    ├── ModelNotFoundError        no model of this name
    ├── VersionNotFoundError      the model has no such version or alias
    ├── VersionConflictError      the version number is taken, or the version is in use
    └── StorageError              the store itself failed (full, read-only, unreachable)
"""

from __future__ import annotations


class ModelError(Exception):
    """Anything this package refuses to do."""


class ImageError(ModelError):
    """Bytes that will not become pixels."""


class EmptyImageError(ImageError):
    """There are no bytes at all."""


class UnsupportedImageError(ImageError):
    """The first bytes are not those of a JPEG, PNG or WebP file."""


class TooManyPixelsError(ImageError):
    """The header declares more pixels, or a longer side, than the limits allow."""


class UndecodableImageError(ImageError):
    """The magic bytes fit, but the decoder cannot finish the picture."""


class LabelRangeError(ModelError):
    """A pixel carries an id that is neither a class nor the ignore id."""


class PaletteError(ModelError):
    """Class names, colours and ids do not fit together."""


class DatasetError(ModelError):
    """A data-set file, its list, or a file of a pair is unusable."""


class MissingRootError(DatasetError):
    """A preset was used without the folder of its data set."""


class PairError(DatasetError):
    """A picture or its labels cannot be read.

    Attributes:
        place: where the pair is named, and the path of the file.
        reason: the fault of the file, without its name.
    """

    def __init__(self, origin: str, path: str, reason: str) -> None:
        self.place = f"{origin}: {path}" if origin else path
        self.reason = reason
        super().__init__(f"{self.place}: {reason}")


class LabelError(PairError):
    """The labels of a picture are no class ids of its size.

    Attributes:
        values: the values in the label file, where some are no classes; else empty.
    """

    def __init__(self, origin: str, path: str, reason: str, values: frozenset[int] = frozenset()) -> None:
        super().__init__(origin, path, reason)
        self.values = values


class ProtocolError(ModelError):
    """An evaluation protocol does not exist, or cannot have chips of that size."""


class EvaluationError(ModelError):
    """Results do not add up to one evaluation: a picture is missing or counted twice, or classes differ."""


class ModelOutputError(ModelError):
    """A head's raw output is not finite, or not of the shape that picture and manifest imply."""


class NetworkError(ModelError):
    """An architecture name, parameter or state dict does not fit."""


class DownloadError(ModelError):
    """Weights cannot be fetched, or are not the ones expected."""


class ForeignCheckpointError(ModelError):
    """A checkpoint of another program is unreadable, of no known generation, or not of the classes named."""


class ManifestError(ModelError):
    """A manifest is malformed, incomplete or of an unknown schema."""


class ArtifactError(ModelError):
    """An artifact folder must not be used."""


class DigestMismatchError(ArtifactError):
    """A file's SHA-256 is not the one that the manifest states."""


class WeightsError(ArtifactError):
    """A key, shape, dtype or value of the weights is wrong."""


class GoldenMismatchError(ArtifactError):
    """An engine does not reproduce the golden sample."""


class ExportError(ModelError):
    """A file of another format cannot be written."""


class QuantizationError(ModelError):
    """An int8 version cannot be made, or loses more accuracy than was allowed."""


class RegistryError(ModelError):
    """The registry cannot do what was asked."""


class RegistryUrlError(RegistryError):
    """A registry URL names no folder and no bucket."""


class InvalidReferenceError(RegistryError):
    """A model reference does not parse."""


class ModelNotFoundError(RegistryError):
    """There is no model of this name."""


class VersionNotFoundError(RegistryError):
    """The model has no such version or alias."""


class VersionConflictError(RegistryError):
    """The version number is taken, or the version is in use by an alias or by another change."""


class StorageError(RegistryError):
    """The store itself failed: full, read-only or unreachable."""
