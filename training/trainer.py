"""The training loop: explicit, resumable, the same on a CPU and on a GPU.

Axes: N images in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model.metrics import ConfusionMatrix
from model.network import ARCHITECTURES, SegmentationNetwork, build
from model.preprocess import PreprocessSpec
from training.augment import augment, draw_plan
from training.budget import TimeBudget
from training.calibration import calibrated
from training.config import TrainingConfig, differences, plain
from training.data import (
    AUGMENT_STREAM,
    NETWORK_STREAM,
    WEIGHTS_STREAM,
    TrainingData,
    batch_indices,
    class_frequencies,
    step_generator,
    step_seed,
)
from training.errors import NonFiniteLossError, ResumeError
from training.losses import OhemCrossEntropy, class_weights
from training.optim import MovingAverage, build_optimizer, learning_rate, set_learning_rate
from training.progress import PaceMeter, RunLog, duration
from training.state import CheckpointFolder, CheckpointKind
from training.stop import StopRequest
from training.validation import validate

_LOG_EVERY = 20
_NO_SCORE_YET = -1.0


@dataclass
class Position:
    """Where a run stands: all that a step depends on beside configuration, data and weights.

    Attributes:
        step: finished steps.
        total_steps: of the whole run; provisional until ``frozen``.
        frozen: whether ``total_steps`` is final.
        best_miou: highest validation score so far, 0..1; negative before the first.
    """

    step: int
    total_steps: int
    frozen: bool
    best_miou: float = _NO_SCORE_YET


class Trainer:
    """One run: network, average, optimiser, position, and the step that moves them.

    Args:
        config: of the run.
        data: on the device that trains.
        checkpoints: where the state is kept.
        log: where events go.
        budget: decides the number of steps once the rate is known; None = as configured.
    """

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        *,
        checkpoints: CheckpointFolder,
        log: RunLog,
        budget: TimeBudget | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.checkpoints = checkpoints
        self.log = log
        self.budget = budget
        self.position = Position(0, config.schedule.steps, frozen=budget is None)
        self.network = _initial_network(config, data)
        self.average = MovingAverage(self.network, config.optimizer.ema_decay)
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.loss = _loss(config, data)

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one.

        Raises:
            CheckpointError: it is damaged.
            ResumeError: it belongs to another configuration or to other data; says what differs.
        """
        state = self.checkpoints.load("last")
        if state is None:
            return
        changed = differences(state["config"], plain(self.config))
        if state["fingerprint"] != self.data.fingerprint:
            changed.append("the data have another fingerprint")
        if changed:
            raise ResumeError("the checkpoint belongs to another run: " + "; ".join(changed))
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])
        self.log.write("resume", f"resumed at step {self.position.step}", step=self.position.step)

    def run(self, stop: StopRequest) -> bool:
        """Train until the last step or until a stop is requested; save either way.

        Returns:
            Whether the last step is done.

        Raises:
            NonFiniteLossError: the loss is no number; checkpoints stay as they are.
            CheckpointError: a checkpoint cannot be written.
        """
        position, schedule = self.position, self.config.schedule
        pace = PaceMeter(schedule.batch_size)
        while position.step < position.total_steps and not stop.requested:
            started_s = time.monotonic()
            loss = self.take_step()
            pace.count(time.monotonic() - started_s)
            if position.step % _LOG_EVERY == 0:
                self._freeze_when_measured(pace)
                self._report(loss, pace)
            if position.step % schedule.validate_every == 0 and position.step < position.total_steps:
                self.validate(self.calibrated())
            if position.step % schedule.save_every == 0:
                self.save("last")
        self.save("last")
        return position.step >= position.total_steps

    def take_step(self) -> float:
        """Learn from one batch; what it does depends on weights, configuration and position alone.

        Returns:
            The loss, summed over all heads.

        Raises:
            NonFiniteLossError: the loss is no number; nothing has changed.
        """
        config, step = self.config, self.position.step
        images_NHW3, labels_NHW = self._batch(step)
        set_learning_rate(self.optimizer, learning_rate(config.optimizer, step, self.position.total_steps))
        loss = self._loss_of(images_NHW3, labels_NHW)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss is {value} at step {step}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.average.update(self.network, step)
        self.position.step += 1
        return value

    def calibrated(self) -> SegmentationNetwork:
        """Return the averaged weights with batch statistics of whole training pictures: what is published."""
        return calibrated(
            self.average.network,
            self.data.train.images,
            batch_size=self.config.schedule.batch_size,
            pad_color=PreprocessSpec(self.data.mean).pad_color,
        )

    def validate(self, network: SegmentationNetwork) -> ConfusionMatrix:
        """Score a network on the validation split; save the present state as ``best`` if it is.

        Args:
            network: what ``calibrated`` returned.

        Raises:
            CheckpointError: the file system refused.
        """
        architecture = ARCHITECTURES[self.config.network.architecture]
        palette = self.data.spec.palette
        matrix = validate(network, self.data.val, architecture=architecture, palette=palette)
        miou = matrix.miou or 0.0
        self.log.write(
            "validation",
            f"step {self.position.step}: {self.config.data.val_split} mIoU {100 * miou:.2f}",
            step=self.position.step,
            miou=matrix.miou,
            pixel_accuracy=matrix.pixel_accuracy,
            iou=dict(zip(palette.names, matrix.iou, strict=True)),
        )
        if miou > self.position.best_miou:
            self.position.best_miou = miou
            self.save("best")
        return matrix

    def save(self, kind: CheckpointKind) -> None:
        """Write a checkpoint that ``resume`` understands.

        Raises:
            CheckpointError: the file system refused.
        """
        state = {
            "config": plain(self.config),
            "fingerprint": self.data.fingerprint,
            "position": asdict(self.position),
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.checkpoints.save(kind, self.position.step, state)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Cut the crops of a step: a pure function of (seed, step)."""
        config, train = self.config, self.data.train
        batch_size = config.schedule.batch_size
        indices = batch_indices(config.seed, step, batch_size=batch_size, size=len(train))
        generator = step_generator(config.seed, step, AUGMENT_STREAM)
        return augment(
            [train.images[index] for index in indices],
            [train.labels[index] for index in indices],
            draw_plan(config.augment, batch_size, generator),
            crop=config.augment.crop,
            pad_color=PreprocessSpec(self.data.mean).pad_color,
            ignore_id=self.data.spec.palette.ignore_id,
        )

    def _loss_of(self, images_NHW3: Tensor, labels_NHW: Tensor) -> Tensor:
        # Dropout draws from the global generators; a seed of the step's own makes resuming exact.
        torch.manual_seed(step_seed(self.config.seed, self.position.step, NETWORK_STREAM))
        self.network.train()
        with torch.autocast(self.data.device.type, torch.bfloat16):
            heads = self.network.forward_train(images_NHW3)
        return self.loss.total(heads, labels_NHW)

    def _freeze_when_measured(self, pace: PaceMeter) -> None:
        position = self.position
        if position.frozen or self.budget is None or not self.budget.is_measured(time.monotonic()):
            return
        position.total_steps = position.step + self.budget.remaining_steps(time.monotonic(), pace.step_s)
        position.frozen = True
        self.log.write(
            "budget",
            f"{pace.step_s:.3f} s a step: the run will have {position.total_steps} steps",
            total_steps=position.total_steps,
        )

    def _report(self, loss: float, pace: PaceMeter) -> None:
        position = self.position
        lr = learning_rate(self.config.optimizer, position.step - 1, position.total_steps)
        remaining_s = pace.step_s * (position.total_steps - position.step)
        self.log.write(
            "step",
            f"step {position.step}/{position.total_steps}  loss {loss:.4f}  lr {lr:.2e}"
            f"  {pace.images_per_s:.1f} img/s  {duration(remaining_s)} left",
            step=position.step,
            loss=loss,
            lr=lr,
            images_per_s=round(pace.images_per_s, 2),
        )
        pace.restart()


def _initial_network(config: TrainingConfig, data: TrainingData) -> SegmentationNetwork:
    torch.manual_seed(step_seed(config.seed, 0, WEIGHTS_STREAM))
    network = build(
        config.network.architecture,
        data.spec.palette.num_classes,
        config.network.parameters,
        mean=data.mean,
        std=data.std,
    )
    network.to(data.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return network


def _loss(config: TrainingConfig, data: TrainingData) -> OhemCrossEntropy:
    palette = data.spec.palette
    frequencies_K = class_frequencies(data.train.labels, palette.num_classes)
    weights_K = class_weights(frequencies_K, config.loss).to(data.device)
    return OhemCrossEntropy(config.loss.ohem_threshold, weights_K, palette.ignore_id)
