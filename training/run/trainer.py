"""The training loop: explicit, resumable, the same on a CPU and on GPUs, alone and among processes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from training.config import TrainingConfig, differences, plain
from training.data.splits import TrainingData
from training.distributed import ALONE, Ranks
from training.errors import NonFiniteLossError, ResumeError
from training.optimisation.bn_calibration import calibrated
from training.optimisation.optim import learning_rate
from training.run.batches import StepBatches
from training.run.checkpoint import CheckpointFolder, CheckpointKind
from training.run.progress import LossMeter, RateMeter, RunLog, duration
from training.run.stop_signals import StopRequest
from training.run.time_budget import TimeBudget
from training.run.train_step import TrainStep
from training.run.validation import Scores, validate

_LOG_EVERY = 20
_NO_SCORE_YET = -1.0
_SHOWN_NAMES = 16
_ROOM = 4
"""Pixels of a batch that nothing is learned from, for each of one that is learned from."""


class _StopRequestedError(Exception):
    """A validation is left."""


@dataclass
class Position:
    """Where a run stands: all that a step depends on beside configuration, data and weights.

    Attributes:
        step: finished steps.
        total_steps: of the whole run; provisional until ``frozen``.
        frozen: whether ``total_steps`` is final.
        best_miou: highest validation score so far, 0..1; negative before the first.
        best_step: after how many steps that was.
        validated_step: after how many steps the last validation was.
        in_vain: validations since the best one.
    """

    step: int
    total_steps: int
    frozen: bool
    best_miou: float = _NO_SCORE_YET
    best_step: int = 0
    validated_step: int = 0
    in_vain: int = 0


class Trainer:
    """One run: what learns, where it stands, and what happens between the steps.

    Args:
        config: of the run.
        data: on the device that trains.
        checkpoints: where the state is kept.
        log: where events go.
        budget: decides the number of steps once the rate is known; None = as configured.
        ranks: the processes of the run.
        on_validation: is shown the number of finished steps and the network that was validated; may be None.

    Attributes:
        learner: network, average, optimiser.
        position: where the run stands.
        started_from: the weights that the run began with; empty = random ones.
    """

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        *,
        checkpoints: CheckpointFolder,
        log: RunLog,
        budget: TimeBudget | None = None,
        ranks: Ranks = ALONE,
        on_validation: Callable[[int, SegmentationNetwork], None] | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.checkpoints = checkpoints
        self.log = log
        self.budget = budget
        self.ranks = ranks
        self.on_validation = on_validation
        self.position = Position(0, config.schedule.steps, frozen=budget is None)
        self.started_from = ""
        self.learner = TrainStep(config, data, ranks)
        self.crops = StepBatches(config, data, ranks)
        self._stop = StopRequest()
        self._losses = LossMeter(data.device)
        self._waited_s = 0.0
        self._lr = 0.0

    def resume(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint.

        Args:
            state: what ``CheckpointFolder.load`` returned.

        Raises:
            ResumeError: it belongs to another configuration or to other data; says what differs.
        """
        changed = differences(state["config"], plain(self.config))
        if state["fingerprint"] != self.data.fingerprint:
            changed.append(f"data fingerprint: {state['fingerprint']} -> {self.data.fingerprint}")
        if changed:
            raise ResumeError("the checkpoint belongs to another run: " + "; ".join(changed))
        self.learner.load_state(state)
        self.position = position = Position(**state["position"])
        self.started_from = state["started_from"]
        if self.log.board is not None:
            self.log.board.forget_after(position.step)
        is_late = self.budget is not None and position.frozen
        self.log.write(
            "resume",
            f"resumed at step {position.step} of {position.total_steps}"
            + ", which were chosen before: the time limit changes nothing" * is_late,
            step=position.step,
        )

    def run(self, stop: StopRequest) -> bool:
        """Train until the last step or until a stop is requested; save either way.

        A lone process also leaves a validation for it, which whoever resumes the run begins anew.

        Returns:
            Whether the last step is done and validated.

        Raises:
            NonFiniteLossError: the loss or a weight is no number; checkpoints stay as they are.
            CheckpointError: a checkpoint cannot be written.
        """
        self._stop = stop
        try:
            finished = self._train()
        except _StopRequestedError:
            finished = False
        finally:
            self._stop = StopRequest()
        self.save("last")
        return finished

    def take_step(self) -> Tensor:
        """Learn from one batch; what it does depends on weights, configuration and position alone.

        Returns:
            The loss, a scalar on the device.

        Raises:
            NonFiniteLossError: the loss is no number; weights are as before. On a GPU the host learns of it
                later: from ``check_losses``, which each report and each checkpoint asks.
        """
        step = self.position.step
        self._waited_s = 0.0
        self.crops.expect(step, self.position.total_steps)
        self._lr = learning_rate(self.config.optimizer, step, self.position.total_steps)
        loss = self.learner.step(step, self._lr, self._cut)
        self._losses.add(step, loss)
        if self.data.device.type == "cpu":
            self.check_losses()
        self.position.step += 1
        return loss

    def check_losses(self) -> None:
        """Wait for the device and look at the losses since the last time.

        Raises:
            NonFiniteLossError: one of them is no number.
        """
        bad_step = self._losses.first_bad_step()
        if bad_step is None:
            return
        names = self.crops.names(bad_step)
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        raise NonFiniteLossError(
            f"the loss is no number at step {bad_step}; its pictures: {', '.join(names[:_SHOWN_NAMES])}{more}"
        )

    def calibrated(self) -> SegmentationNetwork:
        """Return the averaged weights with batch statistics of whole training pictures: what is published."""
        network = self.learner.average.network
        part_size = self.config.schedule.part_size(self.ranks.world)
        if self.ranks.is_first:
            network = calibrated(
                network,
                self.data.train,
                batch_size=part_size,
                max_pixels=_ROOM * part_size * math.prod(self.config.augment.crop),
                pad_color=self.data.pad_color,
                compute=self.config.compute,
                before_each=self._leave_if_stopped,
            )
        if self.ranks.world > 1:
            network = network if self.ranks.is_first else copy.deepcopy(network)
            self.ranks.copy_from_first(network)
        return network

    def scores(self, network: SegmentationNetwork) -> Scores:
        """Score a network on the validation split.

        Args:
            network: what ``calibrated`` returned.
        """
        return validate(
            network,
            self.data.val,
            architecture=ARCHITECTURES[self.config.network.architecture],
            palette=self.data.spec.palette,
            compute=self.config.compute,
            ranks=self.ranks,
            before_each=self._leave_if_stopped,
        )

    def validate(self) -> Scores:
        """Score the present average; save the state as ``best`` if it is the best so far.

        Raises:
            CheckpointError: the file system refused.
        """
        position, palette = self.position, self.data.spec.palette
        network = self.calibrated()
        scores = self.scores(network)
        miou = scores.matrix.miou
        self.log.write(
            "validation",
            f"step {position.step}: {self.config.data.val_split} mIoU {100 * (miou or 0):.2f}",
            step=position.step,
            miou=miou,
            pixel_accuracy=scores.matrix.pixel_accuracy,
            iou=dict(zip(palette.names, scores.matrix.iou, strict=True)),
        )
        self._judge(miou or 0.0)
        if self.on_validation is not None:
            self.on_validation(position.step, network)
        return scores

    def save(self, kind: CheckpointKind) -> None:
        """Write a checkpoint that ``resume`` understands.

        Raises:
            NonFiniteLossError: there is nothing worth saving.
            CheckpointError: the file system refused.
        """
        self.check_losses()
        if not self.learner.is_finite():
            raise NonFiniteLossError(
                f"a weight is no number after step {self.position.step}; a lower optimizer.lr may help"
            )
        if self.ranks.is_first:
            state = {
                "started_from": self.started_from,
                "config": plain(self.config),
                "fingerprint": self.data.fingerprint,
                "normalisation": [*self.data.mean, *self.data.std],
                "position": asdict(self.position),
                **self.learner.state(),
            }
            self.checkpoints.save(kind, self.position.step, state)

    def _train(self) -> bool:
        position = self.position
        pace = RateMeter(self.config.schedule.batch_size)
        if self._is_time_to_validate():  # the run was stopped while it did
            self._validate_and_save()
        while self._goes_on():
            if self._is_time_to_agree() and self.ranks.any(self._stop.requested, self.data.device):
                return False
            started_s = time.monotonic()
            self.take_step()
            if self._is_time_to_report():
                self.check_losses()  # a GPU ends here what it was given since the last time
            pace.count(time.monotonic() - started_s, waited_s=self._waited_s)
            self._between_steps(pace)
        if position.validated_step < position.step:
            self.validate()
        return True

    def _leave_if_stopped(self) -> None:
        """Be asked before each picture of a validation; several processes would have to agree each time."""
        if self._stop.requested and self.ranks.world == 1:
            raise _StopRequestedError

    def _goes_on(self) -> bool:
        position = self.position
        if position.step >= position.total_steps and not position.frozen:
            position.total_steps *= 2  # provisional, and the rate is not yet measured
        return position.step < position.total_steps

    def _cut(self, part: int) -> tuple[Tensor, Tensor]:
        images_NHW3, labels_NHW, waited_s = self.crops.cut(self.position.step, part)
        self._waited_s += waited_s
        return images_NHW3, labels_NHW

    def _between_steps(self, pace: RateMeter) -> None:
        if self._is_time_to_report():
            self._freeze_when_measured(pace)
            self._report(pace)
        else:
            self.log.show(lambda: self._line(pace))
        self._validate_and_save()

    def _validate_and_save(self) -> None:
        step, schedule = self.position.step, self.config.schedule
        if self._is_time_to_validate():
            self.validate()
        if step % schedule.save_every == 0:
            self.save("last")
        if schedule.keep_every and step % schedule.keep_every == 0:
            self.save("kept")

    def _judge(self, miou: float) -> None:
        position, patience = self.position, self.config.schedule.patience
        position.validated_step = position.step
        if miou > position.best_miou:
            position.best_miou, position.best_step, position.in_vain = miou, position.step, 0
            self.save("best")
            return
        position.in_vain += 1
        if patience and position.in_vain >= patience and position.step < position.total_steps:
            position.total_steps, position.frozen = position.step, True
            self.log.write(
                "early_stop",
                f"no better score in {patience} validations: the run ends at step {position.step}",
                step=position.step,
            )

    def _is_time_to_agree(self) -> bool:
        # Asking makes processes wait for each other, and their hosts for the GPUs.
        asks_nobody = self.ranks.world == 1 or self.data.device.type == "cpu"
        return asks_nobody or self.position.step % _LOG_EVERY == 0

    def _is_time_to_validate(self) -> bool:
        position = self.position
        is_due = position.step % self.config.schedule.validate_every == 0
        return is_due and position.validated_step < position.step

    def _is_time_to_report(self) -> bool:
        return self.position.step % _LOG_EVERY == 0 or self.position.step == self.position.total_steps

    def _freeze_when_measured(self, pace: RateMeter) -> None:
        position, budget = self.position, self.budget
        if position.frozen or budget is None or not pace.is_settled:
            return
        began_s = time.monotonic()
        if not self.ranks.from_first([budget.is_measured(began_s)], self.data.device)[0]:
            return
        self.validate()  # a validation of many large pictures may take as long as hundreds of steps
        now_s = time.monotonic()
        remaining = budget.remaining_steps(
            now_s,
            pace.step_s,
            validation_s=now_s - began_s,
            validate_every=self.config.schedule.validate_every,
        )
        (total,) = self.ranks.from_first([position.step + remaining], self.data.device)
        position.total_steps, position.frozen = int(total), True
        self.log.write(
            "budget",
            f"{pace.step_s:.3f} s a step, {now_s - began_s:.1f} s a validation:"
            f" the run will have {position.total_steps} steps",
            total_steps=position.total_steps,
        )
        self.save("last")  # or a run killed before the next one would choose another number

    def _report(self, pace: RateMeter) -> None:
        position = self.position
        loss = self._losses.mean()
        self.log.write(
            "step",
            f"{self._line(pace)}  loss {loss:.4f}",
            step=position.step,
            loss=loss,
            lr=self._lr,
            images_per_s=round(pace.images_per_s, 2),
            data_wait=round(pace.waited_share, 4),
        )
        pace.restart()

    def _line(self, pace: RateMeter) -> str:
        position = self.position
        remaining_s = pace.step_s * (position.total_steps - position.step)
        return (
            f"step {position.step}/{position.total_steps}  lr {self._lr:.2e}  {pace.images_per_s:.1f} img/s"
            f"  data wait {100 * pace.waited_share:.0f} %  {duration(remaining_s)} left"
        )
