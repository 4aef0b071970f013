"""The formats that can be imported, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from training.interchange.coco import read_coco, read_panoptic
from training.interchange.cvat import read_cvat
from training.interchange.foreign import ForeignDataset, ReadOptions
from training.interchange.label_studio import read_label_studio
from training.interchange.labelme import read_labelme
from training.interchange.mask_folders import read_mask_folders
from training.interchange.source import Source
from training.interchange.supervisely import read_supervisely
from training.interchange.tally import Tally
from training.interchange.voc import read_voc

Reader = Callable[[Source, Tally, ReadOptions], ForeignDataset]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "coco": read_coco,
        "coco-panoptic": read_panoptic,
        "cvat": read_cvat,
        "label-studio": read_label_studio,
        "labelme": read_labelme,
        "masks": read_mask_folders,
        "supervisely": read_supervisely,
        "voc": read_voc,
    }
)
