"""Recognises the generation of the published code that a checkpoint comes from, by keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from model.errors import ForeignCheckpointError
from model.labels import MAX_CLASSES
from model.networks.generations import GENERATIONS

Shapes = Mapping[str, tuple[int, ...]]

_KERNEL_AXES = 4


@dataclass(frozen=True)
class Signature:
    """The keys of the checkpoints of one generation.

    Attributes:
        present: patterns of keys; a checkpoint has a key for each.
        absent: patterns of keys; a checkpoint has no key for any.
        scores: key of the kernel of the main head's scores, (scores, channels, 1, 1).
        auxiliary: names of the auxiliary heads, which only the loss reads.
        renamed: beginning of keys in the file -> beginning of keys in our networks.
        in_place_abn: normalised in place: no batch counters, and a scale of |gamma| + eps.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()
    scores: str = "conv_out.conv_out.weight"
    auxiliary: tuple[str, ...] = ("conv_out16", "conv_out32")
    renamed: Mapping[str, str] = field(default_factory=dict)
    in_place_abn: bool = False

    def is_auxiliary(self, key: str) -> bool:
        """Return whether a key belongs to an auxiliary head."""
        return key.partition(".")[0] in self.auxiliary


_COUNTERS = "*.num_batches_tracked"
_PATH = "sp.*"
_SQUEEZED = "ffm.conv[12].*"
_BIAS = "conv_out*.conv_out.bias"
_V2_AUXILIARY = ("aux2", "aux3", "aux4", "aux5_4")


def _v2(scores: str) -> Signature:
    head = scores.removesuffix("weight")
    return Signature(
        ("detail.*", f"{head}[bw]*"),
        scores=scores,
        auxiliary=_V2_AUXILIARY,
        renamed={head: "head.conv_out.1."},
    )


SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    {
        "v1-g0": Signature(("cp.*", _PATH, _SQUEEZED), (_COUNTERS, _BIAS), in_place_abn=True),
        "v1-g0d": Signature(("cp.*", _SQUEEZED), (_COUNTERS, _PATH, _BIAS), in_place_abn=True),
        "v1-g1": Signature(("cp.*", _PATH, _SQUEEZED, _COUNTERS), (_BIAS,)),
        "v1-g2": Signature(("cp.*", _PATH, _SQUEEZED, _COUNTERS, _BIAS)),
        "v1-g3": Signature(("cp.*", _PATH, _SQUEEZED, _COUNTERS, _BIAS)),
        "v1-g4": Signature(("cp.*", _PATH, "ffm.bn.*")),
        "v1-face": Signature(("cp.*", _SQUEEZED, _COUNTERS), (_PATH, _BIAS)),
        "v2-g0": _v2("head.conv_out.weight"),
        "v2-g2": _v2("head.conv_out.0.weight"),
        "v2-g4": _v2("head.conv_out.1.weight"),
    }
)
"""Name of a generation -> keys of its checkpoints. ``v1-g2`` and ``v1-g3`` differ in shapes only."""


@dataclass(frozen=True)
class Recognition:
    """A recognised checkpoint.

    Attributes:
        generation: key of ``SIGNATURES`` and ``GENERATIONS``.
        title: name of the generation for people.
        evidence: the keys that tell the generation, for people.
        num_classes: number of classes.
        parameters: arguments of the architecture, from the shapes.
    """

    generation: str
    title: str
    evidence: str
    num_classes: int
    parameters: Mapping[str, int]


def recognise(shapes: Shapes) -> Recognition:
    """Return the generation of a checkpoint; its other keys are not checked here.

    Args:
        shapes: shape of each tensor, by key.

    Raises:
        ForeignCheckpointError: no generation has these keys, or the main head has an impossible shape.
    """
    fitting = [name for name, signature in SIGNATURES.items() if not _misfits(signature, shapes)]
    if len(fitting) > 1:
        kind = "pixel_shuffle" if _is_shuffled(shapes) else "bilinear"
        fitting = [name for name in fitting if GENERATIONS[name].upsample == kind]
    if not fitting:
        raise ForeignCheckpointError(_nearest(shapes))
    return _recognition(fitting[0], shapes)


def _misfits(signature: Signature, shapes: Shapes) -> list[str]:
    """Return the contradictions between keys and a signature, in words."""
    missing = [f"no key is {pattern}" for pattern in signature.present if _first(pattern, shapes) is None]
    extra = [_first(pattern, shapes) for pattern in signature.absent]
    return missing + [f"{key} is too many" for key in extra if key is not None]


def _first(pattern: str, shapes: Shapes) -> str | None:
    """Return the first key that fits a pattern."""
    return next((key for key in shapes if fnmatchcase(key, pattern)), None)


def _is_shuffled(shapes: Shapes) -> bool:
    """Return whether the heads of a BiSeNetV1 score each pixel of a cell, for a pixel shuffle.

    A cell at stride 16 has four times the pixels of one at stride 8, and its head four times the channels.
    Without auxiliary heads, the main head has more channels than there can be classes.
    """
    heads = ("conv_out16", "conv_out32", "conv_out")
    fine, coarse, main = ((shapes.get(f"{head}.conv_out.weight") or (0,))[0] for head in heads)
    return coarse == 4 * fine if fine and coarse else main > MAX_CLASSES


def _nearest(shapes: Shapes) -> str:
    """Return why no generation fits, by the one with the fewest contradictions."""
    if not _first("cp.*", shapes) and not _first("detail.*", shapes):
        first = ", ".join(sorted({key.partition(".")[0] for key in shapes})[:5])
        return f"not a BiSeNet: neither cp.* nor detail.* is among the keys; they begin with {first[:200]}"
    misfits = {name: _misfits(signature, shapes) for name, signature in SIGNATURES.items()}
    name, reasons = min(misfits.items(), key=lambda item: len(item[1]))
    return f"no known generation of BiSeNet; the nearest is {name}, but {'; '.join(reasons)}"


def _recognition(name: str, shapes: Shapes) -> Recognition:
    generation, signature = GENERATIONS[name], SIGNATURES[name]
    shape = shapes.get(signature.scores, ())
    classes, rest = divmod(shape[0] if len(shape) == _KERNEL_AXES else 0, generation.scores_per_class)
    if rest or not 1 <= classes <= MAX_CLASSES:
        raise ForeignCheckpointError(
            f"{name}, but {signature.scores} is {shape or 'missing'}, which makes no number of classes "
            f"(1..{MAX_CLASSES}, times {generation.scores_per_class})"
        )
    telling = [pattern for pattern in signature.present[1:] if not fnmatchcase(signature.scores, pattern)]
    evidence = [str(_first(pattern, shapes)) for pattern in telling]
    evidence += [f"no {pattern}" for pattern in signature.absent]
    evidence.append(f"{signature.scores} of {shape}")
    parameters = {"head_channels": shape[1]} if generation.architecture == "bisenetv2" else {}
    return Recognition(name, generation.title, ", ".join(evidence), classes, parameters)
