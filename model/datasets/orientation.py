"""Labels of pictures that EXIF turns: drawn on the stored pixels of the picture or on the upright ones."""

from __future__ import annotations

from typing import Literal

from model.datasets.dataset_lines import TOP, Addition, with_additions
from model.datasets.masks import MaskError
from model.pictures.image import stored_size
from model.pictures.preprocess import ImageSize

ExifPolicy = Literal["upright", "stored"]

UPRIGHT = 1
_STORED = ('exif = "stored"',)
_TURNS = {
    1: "not turned",
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored, top to bottom",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees",
    7: "mirrored and turned by 270 degrees",
    8: "turned by 270 degrees",
}


class OrientationError(Exception):
    """The size of the labels does not tell on which pixels they were drawn."""


def is_drawn_on_stored(
    labels: ImageSize, picture: ImageSize, orientation: int, policy: ExifPolicy | None
) -> bool:
    """Return whether labels were drawn on the stored pixels of their picture, and have to be turned with it.

    Args:
        labels: size of the label file.
        picture: upright size of the picture.
        orientation: of the picture's file, 1..8 as EXIF counts.
        policy: of the data set; None = the size of the labels decides.

    Raises:
        OrientationError: both are possible.
        MaskError: the labels have another size than their picture.
    """
    stored = stored_size(picture, orientation)
    if orientation == UPRIGHT or policy == "upright":
        fits, is_stored = labels == picture, False
    elif policy == "stored":
        fits, is_stored = labels == stored, True
    elif picture == stored and labels == picture:
        raise OrientationError(
            with_additions(
                f"the picture has {describe_orientation(orientation)},"
                " and its labels fit it as stored and as shown",
                Addition(
                    f'{TOP} (or exif = "upright" if labels match pictures as viewers show them)', _STORED
                ),
            )
        )
    else:
        fits, is_stored = labels in {picture, stored}, labels != picture
    if not fits:
        raise MaskError(_other_size(labels, picture, stored, orientation))
    return is_stored


def describe_orientation(orientation: int) -> str:
    """Return the EXIF orientation of a picture in words."""
    return f"EXIF orientation {orientation} ({_TURNS[orientation]})"


def _other_size(labels: ImageSize, picture: ImageSize, stored: ImageSize, orientation: int) -> str:
    sentence = f"labels are {labels}, their picture is {picture}"
    if orientation != UPRIGHT:
        sentence += f", stored as {stored} with {describe_orientation(orientation)}"
    if labels in {picture, stored}:
        right = "stored" if labels == stored else "upright"
        return with_additions(sentence, Addition(TOP, (f'exif = "{right}"',)))
    return f"{sentence}; save them at the size of the picture"
