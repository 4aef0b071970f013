"""Notes of ``bisenet predict`` and ``bisenet stream`` about damaged or unusual inputs."""

from __future__ import annotations

from model.pictures.local_image import LocalImage
from model.pictures.preprocess import ImageSize, size_of
from service.core.pictures.local_files import FULL_BITS

LEAST_BITS = 8

_DARK_BITS = 14
"""A 16-bit picture that uses at most so many bits gets at most a quarter of the full brightness."""


def picture_notes(picture: LocalImage, bits: int, inference_size: ImageSize) -> list[str]:
    """Return one sentence for each thing that a user should know of a labelled picture.

    Args:
        picture: as it was decoded.
        bits: how many bits of a 16-bit picture were kept as in use, 8..16.
        inference_size: size of the network's input.
    """
    notes, used_bits = [], picture.used_bits or 0
    if picture.pictures > 1:
        notes.append(f"the file holds {picture.pictures} pictures; the mask is that of the first one")
    if bits == FULL_BITS and 0 < used_bits <= _DARK_BITS:
        notes.append(
            f"{used_bits} of 16 bits are in use, so the picture is dark for the network: "
            f"--bits {max(used_bits, LEAST_BITS)} stretches it"
        )
    if used_bits > bits:
        notes.append(f"{used_bits} bits are in use: values of more than {bits} bits are cut off")
    if inference_size != size_of(picture.image_HW3):
        notes.append("the picture was reduced for the network: --tile 1024 keeps its full detail")
    return notes


def damage_note(damaged_packets: int) -> str:
    """Return a sentence about the damaged packets of a film or camera, 1 or more."""
    if damaged_packets == 1:
        return "1 damaged packet was skipped; its pictures are missing"
    return f"{damaged_packets} damaged packets were skipped; their pictures are missing"
