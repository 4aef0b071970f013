"""The crops of each step: ``sampling`` chooses pictures, ``augment`` cuts crops from them.

Axes: N crops in a part of a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from training.config import TrainingConfig
from training.data.augment import augment, draw_plan
from training.data.sampling import AUGMENT_STREAM, batch_indices, step_generator
from training.data.splits import TrainingData
from training.distributed import Ranks

_STEPS_AHEAD = 3


@dataclass(frozen=True, eq=False)
class StepBatches:
    """Cuts the parts of each batch that belong to one process; all depends on seed and step alone.

    Args:
        config: configuration of the run.
        data: pictures on the device that trains.
        ranks: the processes that share a batch.
    """

    config: TrainingConfig
    data: TrainingData
    ranks: Ranks

    def parts(self) -> Sequence[int]:
        """Return the numbers of the parts that belong to this process, the same for each batch."""
        accumulate = self.config.schedule.accumulate
        return range(self.ranks.rank * accumulate, (self.ranks.rank + 1) * accumulate)

    def cut(self, step: int, part: int) -> tuple[Tensor, Tensor, float]:
        """Cut one part of a step's batch.

        Returns:
            images_NHW3: uint8 RGB.
            labels_NHW: uint8 class ids or the ignore id.
            waited_s: seconds that this process waited for pictures.
        """
        config = self.config
        where = self._places(part)
        plan = draw_plan(
            config.augment,
            config.schedule.batch_size,
            step_generator(config.seed, step, AUGMENT_STREAM),
        )
        started_s = time.monotonic()
        pictures, indices = self.data.train.fetch(self.indices(step)[where])
        waited_s = time.monotonic() - started_s
        images_NHW3, labels_NHW = augment(
            pictures,
            indices,
            plan.part(where),
            crop=config.augment.crop,
            pad_color=self.data.pad_color,
            ignore_id=self.data.spec.palette.ignore_id,
            rare_ids=config.augment.rare.ids(self.data.spec.palette.names),
        )
        return images_NHW3, labels_NHW, waited_s

    def expect(self, step: int, total_steps: int) -> None:
        """Begin to decode the pictures of the next steps."""
        for ahead in range(step + 1, min(step + 1 + _STEPS_AHEAD, total_steps)):
            for part in self.parts():
                self.data.train.prefetch(self.indices(ahead)[self._places(part)])

    def names(self, step: int) -> list[str]:
        """Return the names of the pictures in the whole batch of a step."""
        return [self.data.train.names[index] for index in self.indices(step)]

    def indices(self, step: int) -> list[int]:
        """Return the indices of the pictures in the whole batch of a step."""
        return batch_indices(
            self.config.seed,
            step,
            batch_size=self.config.schedule.batch_size,
            size=len(self.data.train.names),
        )

    def _places(self, part: int) -> slice:
        size = self.config.schedule.part_size(self.ranks.world)
        return slice(part * size, (part + 1) * size)
