"""Labelled pictures as steps ask for them: all of them in memory, or decoded ahead from their files.

Axes: M pictures of any sizes, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from model.datasets.dataset import LabeledImages
from model.labels import UInt8Array
from model.quotas import free_memory

Residency = Literal["device", "host", "files"]
Pair = tuple[UInt8Array, UInt8Array]

_BYTES_A_PIXEL = 4  # red, green, blue, label
_MEMORY_SHARE = 0.5
"""Of the memory that is free, pictures take at most this share; the network needs the rest."""
_AHEAD = 16
"""Pictures decoded ahead while a whole split is walked through."""


@dataclass(frozen=True, eq=False)
class PackedPictures:
    """Pictures of any sizes with their labels, end to end in two flat buffers: one gather reaches them all.

    Attributes:
        colors: uint8 RGB, rows of pixels, on any device.
        labels: uint8 class ids or the ignore id, one a pixel, on the same device.
        starts_M: int64 on the CPU: the first pixel of each picture.
        sizes_M2: int64 on the CPU: height and width of each picture.
    """

    colors: Tensor
    labels: Tensor
    starts_M: Tensor
    sizes_M2: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PackedPictures:
        """Pack decoded pairs: image_HW3 and label_HW, uint8 each."""
        pixels = [label_HW.size for _, label_HW in pairs]
        return cls(
            colors=torch.from_numpy(np.concatenate([image_HW3.reshape(-1) for image_HW3, _ in pairs])),
            labels=torch.from_numpy(np.concatenate([label_HW.reshape(-1) for _, label_HW in pairs])),
            starts_M=torch.tensor([0, *accumulate(pixels)][:-1]),
            sizes_M2=torch.tensor([label_HW.shape for _, label_HW in pairs]),
        )

    @classmethod
    def sent(cls, pairs: Sequence[Pair], device: torch.device) -> PackedPictures:
        """Pack decoded pairs on a device; to a GPU each travels while the next one is packed."""
        sizes = [label_HW.shape for _, label_HW in pairs]
        ends = list(accumulate((height * width for height, width in sizes), initial=0))
        colors = _sent([image_HW3 for image_HW3, _ in pairs], device)
        labels = _sent([label_HW for _, label_HW in pairs], device)
        return cls(colors, labels, torch.tensor(ends[:-1]), torch.tensor(sizes))

    def __len__(self) -> int:
        """Return M."""
        return len(self.starts_M)

    def to(self, device: torch.device) -> PackedPictures:
        """Return the same with its buffers on another device; from pinned memory without waiting."""
        colors, labels = (buffer.to(device, non_blocking=True) for buffer in (self.colors, self.labels))
        return PackedPictures(colors, labels, self.starts_M, self.sizes_M2)

    def image(self, index: int) -> Tensor:
        """Return image_HW3, uint8: a view."""
        start, (height, width) = self._place(index)
        return self.colors[3 * start : 3 * (start + height * width)].view(height, width, 3)

    def label(self, index: int) -> Tensor:
        """Return label_HW, uint8: a view."""
        start, (height, width) = self._place(index)
        return self.labels[start : start + height * width].view(height, width)

    def _place(self, index: int) -> tuple[int, tuple[int, int]]:
        height, width = self.sizes_M2[index].tolist()
        return int(self.starts_M[index]), (height, width)


def _sent(arrays: Sequence[UInt8Array], device: torch.device) -> Tensor:
    is_gpu = device.type == "cuda"
    ends = list(accumulate((array.size for array in arrays), initial=0))
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=is_gpu)  # which a GPU fetches from by itself
    there = torch.empty(ends[-1], dtype=torch.uint8, device=device) if is_gpu else packed
    for array, begin, end in zip(arrays, ends, ends[1:], strict=False):
        np.copyto(packed[begin:end].numpy(), array.reshape(-1))
        if is_gpu:
            there[begin:end].copy_(packed[begin:end], non_blocking=True)
    return there


class PictureSource(Protocol):
    """The pictures of some splits, in a fixed order.

    Attributes:
        names: how messages call each picture.
        fingerprint: SHA-256 over the splits' fingerprints, 64 hex digits.
    """

    names: tuple[str, ...]
    fingerprint: str

    def expect(self, indices: Sequence[int]) -> None:
        """Learn that these pictures will be taken soon, in this order."""

    def take(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return pictures on the device, and which of them, in order, the asked-for ones are.

        Raises:
            model.errors.DatasetError: a file is unusable.
        """

    def close(self) -> None:
        """Give back what was opened."""


class ResidentPictures:
    """All pictures in memory: on the device if it holds them, else in the host's.

    Args:
        packed: all of them, on the device or on the host.
        names: of each.
        fingerprint: of all.
        device: where crops are cut.
    """

    def __init__(
        self, packed: PackedPictures, names: tuple[str, ...], fingerprint: str, device: torch.device
    ) -> None:
        self.packed = packed
        self.names = names
        self.fingerprint = fingerprint
        self.device = device

    def expect(self, indices: Sequence[int]) -> None:
        """Do nothing: they are here."""

    def take(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return what ``PictureSource.take`` promises."""
        if self.packed.colors.device == self.device:
            return self.packed, indices
        pairs = [(self.packed.image(i).numpy(), self.packed.label(i).numpy()) for i in indices]
        return PackedPictures.sent(pairs, self.device), range(len(indices))

    def close(self) -> None:
        """Do nothing: memory goes by itself."""


class FilePictures:
    """Pictures decoded when they are asked for, by threads that run ahead.

    How many threads there are and how far they ran has no influence on what ``take`` returns.

    Args:
        splits: what is read.
        workers: threads that decode, at least 1.
        device: where crops are cut.
    """

    def __init__(self, splits: Sequence[LabeledImages], *, workers: int, device: torch.device) -> None:
        self.names = names_of(splits)
        self.fingerprint = fingerprint_of(splits)
        self.device = device
        self._places = [(split, index) for split in splits for index in range(len(split))]
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._ahead: dict[int, Future[Pair]] = {}

    def expect(self, indices: Sequence[int]) -> None:
        """Let the threads begin with these pictures."""
        for index in indices:
            if index not in self._ahead:
                self._ahead[index] = self._pool.submit(self._pair, index)

    def take(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return what ``PictureSource.take`` promises."""
        self.expect(indices)
        pairs = {index: self._ahead.pop(index).result() for index in dict.fromkeys(indices)}
        return PackedPictures.sent([pairs[index] for index in indices], self.device), range(len(indices))

    def close(self) -> None:
        """Drop what was decoded ahead and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._ahead.clear()

    def _pair(self, index: int) -> Pair:
        split, position = self._places[index]
        return split[position]


def load_pictures(
    splits: Sequence[LabeledImages], *, pixels: int, residency: Residency, workers: int, device: torch.device
) -> PictureSource:
    """Open splits as a source.

    Args:
        splits: what is read.
        pixels: of all of them together.
        residency: ``device`` and ``host`` decode everything now.
        workers: threads that decode.
        device: where crops are cut.

    Raises:
        model.errors.DatasetError: a file is unusable.
    """
    if residency == "files":
        return FilePictures(splits, workers=workers, device=device)
    with ThreadPoolExecutor(workers, "decode") as pool:
        packed = _packed(splits, pixels, pool)
    if residency == "device":
        packed = packed.to(device)
    return ResidentPictures(packed, names_of(splits), fingerprint_of(splits), device)


def _packed(splits: Sequence[LabeledImages], pixels: int, pool: ThreadPoolExecutor) -> PackedPictures:
    """Decode everything into buffers of its final size: no second copy of a large set exists at any time."""
    colors, labels = np.empty(3 * pixels, np.uint8), np.empty(pixels, np.uint8)
    starts, sizes, start = [], [], 0
    for split in splits:
        for first in range(0, len(split), _AHEAD):
            for image_HW3, label_HW in pool.map(
                split.__getitem__, range(first, min(first + _AHEAD, len(split)))
            ):
                starts.append(start)
                sizes.append(label_HW.shape)
                end = start + label_HW.size
                colors[3 * start : 3 * end] = image_HW3.reshape(-1)
                labels[start:end] = label_HW.reshape(-1)
                start = end
    return PackedPictures(
        torch.from_numpy(colors), torch.from_numpy(labels), torch.tensor(starts), torch.tensor(sizes)
    )


def walk(
    source: PictureSource, indices: Sequence[int], before_each: Callable[[], None] = lambda: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield image_HW3 and label_HW, uint8 on the device, of these pictures in this order.

    Args:
        source: of the pictures.
        indices: of those that are wanted.
        before_each: called before each; what it raises ends the walk.
    """
    source.expect(indices[:_AHEAD])
    for position, index in enumerate(indices):
        before_each()
        source.expect(indices[position + _AHEAD : position + _AHEAD + 1])
        packed, (place,) = source.take([index])
        yield packed.image(place), packed.label(place)


def choose_residency(pixels: int, *, on_device: int | None, on_host: int) -> Residency:
    """Keep the pictures as near to the device as they fit.

    Args:
        pixels: of all pictures together.
        on_device: free bytes of a device with memory of its own; None = it computes in the host's.
        on_host: free bytes of the host, this process's share.
    """
    wanted = pixels * _BYTES_A_PIXEL
    if wanted <= _MEMORY_SHARE * (on_host if on_device is None else on_device):
        return "device"
    return "host" if on_device is not None and wanted <= _MEMORY_SHARE * on_host else "files"


def free_bytes(device: torch.device, processes: int) -> tuple[int | None, int]:
    """Return the free bytes of a device (None: the CPU) and this process's share of the host's.

    Args:
        device: of this process.
        processes: that share the host.
    """
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return on_device, free_memory() // processes


def names_of(splits: Sequence[LabeledImages]) -> tuple[str, ...]:
    """Return the path of each picture below its data set's root."""
    return tuple(split.name(index) for split in splits for index in range(len(split)))


def fingerprint_of(splits: Sequence[LabeledImages]) -> str:
    """Return the fingerprint of a split, of several the SHA-256 over all theirs: 64 hex digits."""
    if len(splits) == 1:
        return splits[0].fingerprint
    return hashlib.sha256("".join(split.fingerprint for split in splits).encode()).hexdigest()
