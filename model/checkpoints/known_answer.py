"""An imported network against a known answer: the only proof that its forward pass is that of its weights.

Axes: N views in a batch, K channels, H height, W width, 3 = red green blue; h w = H/stride W/stride.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model.artifacts.manifest import ModelManifest
from model.datasets.masks import MaskError, MaskReader
from model.decoding.score_grid import Float32Array
from model.errors import DatasetError, ForeignCheckpointError, ImageError
from model.evaluation.metrics import confusion_matrix
from model.evaluation.network_passes import segment
from model.evaluation.protocols import find_protocol
from model.evaluation.resampling import PixelArray
from model.labels import UInt8Array
from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.image import decode_image

_SERVED = find_protocol("ss-old")  # pictures are padded as the service pads them


@dataclass(frozen=True)
class KnownAnswer:
    """A picture and its labels.

    Attributes:
        image_HW3: uint8 RGB.
        label_HW: uint8; class ids, or the ignore id where nothing is known.
    """

    image_HW3: UInt8Array
    label_HW: UInt8Array

    @classmethod
    def read(cls, picture: Path, labels: Path, manifest: ModelManifest) -> KnownAnswer:
        """Read both files.

        Args:
            picture: a JPEG, PNG or WebP file.
            labels: a PNG of class ids, or of the colours of the classes.
            manifest: of the model, for its classes.

        Raises:
            DatasetError: a file is missing or unusable, or the two have other sizes.
        """
        try:
            image_HW3 = decode_image(picture.read_bytes())
            label_HW = MaskReader(manifest.palette).read_mask(labels.read_bytes()).ids_HW
        except OSError as error:
            raise DatasetError(f"{error.filename}: {error.strerror}") from error
        except ImageError as error:
            raise DatasetError(f"{picture}: {error}") from error
        except MaskError as error:
            raise DatasetError(f"{labels}: {error}") from error
        if image_HW3.shape[:2] != label_HW.shape:
            sizes = ["x".join(map(str, array.shape[:2])) for array in (image_HW3, label_HW)]
            raise DatasetError(f"{picture} is {sizes[0]}, {labels} is {sizes[1]}: they must have one size")
        return cls(image_HW3, label_HW)

    def check(self, network: SegmentationNetwork, manifest: ModelManifest, minimum: float) -> float:
        """Return the share of the labelled pixels to which a network gives their class.

        Args:
            network: in evaluation mode, on the CPU.
            manifest: of the network.
            minimum: smallest share, 0..1.

        Raises:
            ForeignCheckpointError: the share is smaller, or no pixel is labelled.
        """
        guess_HW = segment(self.image_HW3, _SERVED, _infer_with(network), manifest)
        palette = manifest.palette
        matrix = confusion_matrix(
            self.label_HW, guess_HW, num_classes=palette.num_classes, ignore_id=palette.ignore_id
        )
        agreement = matrix.pixel_accuracy
        if agreement is None:
            raise ForeignCheckpointError("--check: no pixel of the labels has a class")
        if agreement < minimum:
            raise ForeignCheckpointError(
                f"the network gives {100 * agreement:.1f} % of {matrix.pixels} labelled pixels their class,"
                f" and --check-min is {100 * minimum:g} %: it computes something else than the program of the"
                " weights. Perhaps that is a variant (an activation or a bias more or less), or --mean,"
                " --std or the order of the classes differ"
            )
        return agreement


def _infer_with(network: SegmentationNetwork) -> Callable[[PixelArray], Float32Array]:
    def infer(images_NHW3: PixelArray) -> Float32Array:
        with torch.inference_mode():
            raw_NKhw: Float32Array = network(torch.from_numpy(images_NHW3)).numpy()
        return raw_NKhw

    return infer
