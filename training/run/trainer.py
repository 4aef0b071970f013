"""The training loop: explicit, resumable, the same on a CPU and on GPUs, alone and among processes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from model.progress import Task, duration
from training.config import TrainingConfig, differences, plain
from training.data.splits import TrainingData
from training.distributed import ALONE, Ranks
from training.errors import NonFiniteLossError, ResumeError
from training.optimisation.bn_calibration import calibrated, calibration_sample
from training.optimisation.distillation import Teacher
from training.optimisation.optim import learning_rate
from training.run.batches import StepBatches
from training.run.checkpoint import CheckpointFolder, CheckpointKind
from training.run.progress import LossMeter, RateMeter, RunLog
from training.run.stop_signals import StopRequest
from training.run.time_budget import Costs, Pace, TimeBudget
from training.run.train_step import TrainStep
from training.run.validation import Scores, validate

_LOG_EVERY = 20
_NO_SCORE_YET = -1.0
_SHOWN_NAMES = 16
_CALIBRATION_PIXELS = 4
"""Pixels of a calibration batch for each pixel of a training batch: it needs no gradients."""


class _StopRequestedError(Exception):
    """Leaves a validation."""


@dataclass(frozen=True, eq=False)
class Validated:
    """A network that was validated.

    Attributes:
        step: finished steps at that time.
        network: the calibrated average.
        scores: scores of the network.
    """

    step: int
    network: SegmentationNetwork
    scores: Scores


@dataclass
class Position:
    """The position of a run: everything that a step depends on beside configuration, data and weights.

    Attributes:
        step: finished steps.
        total_steps: steps of the whole run; provisional until ``frozen``.
        frozen: whether the number of steps was chosen.
        best_miou: highest validation mIoU so far, 0..1; negative before the first validation.
        best_step: finished steps at the best validation.
        validated_step: finished steps at the last validation.
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
    """One training run: steps, validations and checkpoints.

    Args:
        config: configuration of the run.
        data: pictures on the device that trains.
        checkpoints: folder of the checkpoints.
        log: log of the run.
        budget: chooses the number of steps once the rate is measured; None = as configured.
        ranks: the processes of the run.
        teacher: what the network also learns from; None = the labels alone.
        on_validation: is given the number of finished steps and the network that was validated; may be None.
        clock: returns seconds, as ``budget`` counts them.

    Attributes:
        learner: network, average, optimiser.
        position: where the run stands.
        started_from: the weights that the run began with, as they were named; empty = random ones.
        finetuned_from: the same as ``name@version`` or path.
        costs: time of the run beside its steps; a validation replaces its own estimate.
        last_validated: the network that this process validated last; None before the first validation.
        best_validated: the best one since the run began; None where that was before it was resumed.
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
        teacher: Teacher | None = None,
        on_validation: Callable[[int, SegmentationNetwork], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
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
        self.finetuned_from = ""
        self.costs = Costs()
        self.last_validated: Validated | None = None
        self.best_validated: Validated | None = None
        self.learner = TrainStep(config, data, ranks, teacher)
        self.crops = StepBatches(config, data, ranks)
        self._clock = clock
        self._stop = StopRequest()
        self._losses = LossMeter(data.device)
        self._meter = RateMeter(config.schedule.batch_size)
        self._waited_s = 0.0
        self._lr = 0.0

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Args:
            state: result of ``CheckpointFolder.load``.

        Raises:
            ResumeError: it belongs to another configuration or to other data; the message names the
                differences.
        """
        changed = differences(state["config"], plain(self.config))
        if state["fingerprint"] != self.data.fingerprint:
            changed.append(f"data fingerprint: {state['fingerprint']} -> {self.data.fingerprint}")
        if (before := state.get("teacher")) != self._teacher_digest:
            changed.append(f"weights of distill.teacher: {before} -> {self._teacher_digest}")
        if changed:
            raise ResumeError("the checkpoint belongs to another run: " + "; ".join(changed))
        self.learner.load_state(state)
        self.position = position = Position(**state["position"])
        self.started_from = state["started_from"]
        self.finetuned_from = state.get("finetuned_from") or self.started_from  # older ones lack it
        if self.log.board is not None:
            self.log.board.forget_after(position.step)
        is_late = self.budget is not None and position.frozen
        self.budget = None if is_late else self.budget
        self.log.write(
            "resume",
            f"resumed at step {position.step} of {position.total_steps}"
            + ", which were chosen before: the time limit changes nothing" * is_late,
            step=position.step,
        )

    def run(self, stop: StopRequest) -> bool:
        """Train until the last step or until a stop is requested; save in either case.

        A run of one process also stops within a validation, which is repeated when the run is resumed.

        Returns:
            Whether the last step is done and validated.

        Raises:
            NonFiniteLossError: the loss or a weight is NaN or infinite; checkpoints stay as they are.
            CheckpointError: a checkpoint cannot be written.
            TimeLimitError: the run does not fit into its time limit.
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
        """Learn from one batch; the result depends on weights, configuration and position alone.

        Returns:
            The loss, a scalar on the device.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; weights are as before. On a GPU ``check_losses``
                raises it later.
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
        """Wait for the device and check the losses of all steps so far.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
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
        """Return the averaged network with batch statistics of whole training pictures."""
        network = self.learner.average.network
        if self.ranks.is_first:
            network = self.calibrated_on(calibration_sample(len(self.data.train.names)))
        if self.ranks.world > 1:
            network = network if self.ranks.is_first else copy.deepcopy(network)
            self.ranks.copy_from_first(network)
        return network

    def calibrated_on(self, sample: Sequence[int]) -> SegmentationNetwork:
        """Return the averaged network with batch statistics of some training pictures, in this process.

        Args:
            sample: indices of the pictures.
        """
        part_size = self.config.schedule.part_size(self.ranks.world)
        with self.log.display.task("calibration", len(sample)) as task:
            return calibrated(
                self.learner.average.network,
                self.data.train,
                batch_size=part_size,
                max_pixels=_CALIBRATION_PIXELS * part_size * math.prod(self.config.augment.crop),
                pad_color=self.data.pad_color,
                compute=self.config.compute,
                before_each=self._before_each(task),
                sample=sample,
            )

    def scores(self, network: SegmentationNetwork) -> Scores:
        """Score a network on the validation split.

        Args:
            network: in evaluation mode, on the device of the pictures.
        """
        with self.log.display.task("validation", len(self.ranks.share(len(self.data.val.names)))) as task:
            return validate(
                network,
                self.data.val,
                architecture=ARCHITECTURES[self.config.network.architecture],
                palette=self.data.spec.palette,
                compute=self.config.compute,
                ranks=self.ranks,
                before_each=self._before_each(task),
            )

    def validate(self) -> Scores:
        """Score the present average; save the state as ``best`` if it is the best so far.

        Raises:
            CheckpointError: the file system refused.
        """
        position, palette = self.position, self.data.spec.palette
        began_s = self._clock()
        network = self.calibrated()
        scores = self.scores(network)
        self.last_validated = Validated(position.step, network, scores)
        miou = scores.matrix.miou
        self.log.write(
            "validation",
            f"step {position.step}: {self.config.data.val_split} mIoU {100 * (miou or 0):.2f}",
            step=position.step,
            miou=miou,
            pixel_accuracy=scores.matrix.pixel_accuracy,
            loss=scores.loss,
            iou=dict(zip(palette.names, scores.matrix.iou, strict=True)),
        )
        self._judge(miou or 0.0)
        if self.on_validation is not None:
            self.on_validation(position.step, network)
        self.costs = replace(self.costs, validation_s=self._clock() - began_s)
        return scores

    def save(self, kind: CheckpointKind) -> None:
        """Write a checkpoint for ``resume``.

        Raises:
            NonFiniteLossError: a loss or a weight is NaN or infinite.
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
                "finetuned_from": self.finetuned_from,
                "config": plain(self.config),
                "fingerprint": self.data.fingerprint,
                "teacher": self._teacher_digest,
                "normalisation": [*self.data.mean, *self.data.std],
                "position": asdict(self.position),
                **self.learner.state(),
            }
            self.checkpoints.save(kind, self.position.step, state)

    @property
    def _teacher_digest(self) -> str | None:
        teacher = self.learner.teacher
        return teacher.digest if teacher else None

    def _train(self) -> bool:
        position = self.position
        if self.budget is not None and self.ranks.is_first:
            self.budget.check(self._clock(), position.step, self._pace(step_s=0.0))
        with self.log.display.task("training", position.total_steps, self._note) as task:
            task.move_to(position.step)
            if self._is_time_to_validate():  # the run was stopped while it did
                self._validate_and_save()
            while self._goes_on():
                if self._is_time_to_agree() and self.ranks.any(self._stop.requested, self.data.device):
                    return False
                self._take_measured_step()
                self._between_steps()
                task.move_to(position.step, position.total_steps)
            if position.validated_step < position.step:
                self.validate()
        return True

    def _take_measured_step(self) -> None:
        started_s = self._clock()
        if self._meter.is_settled or not self.learner.is_compiled:
            self.take_step()
        else:
            with self.log.display.task("compiling the network"):
                self.take_step()
        if self._is_time_to_report():
            self.check_losses()  # a GPU finishes here all steps since the last call
        self._meter.count(self._clock() - started_s, waited_s=self._waited_s)

    def _before_each(self, task: Task) -> Callable[[], None]:
        """Return a function to call before each picture of a validation."""

        def advance() -> None:
            task.advance()
            if self._stop.requested and self.ranks.world == 1:  # several would have to agree each time
                raise _StopRequestedError

        return advance

    def _goes_on(self) -> bool:
        position = self.position
        if position.step >= position.total_steps and not position.frozen:
            position.total_steps *= 2  # provisional, and the rate is not yet measured
        return position.step < position.total_steps

    def _cut(self, part: int) -> tuple[Tensor, Tensor]:
        images_NHW3, labels_NHW, waited_s = self.crops.cut(self.position.step, part)
        self._waited_s += waited_s
        return images_NHW3, labels_NHW

    def _between_steps(self) -> None:
        if self._is_time_to_report():
            self._report()
        self._validate_and_save()
        self._choose_steps()

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
            self.best_validated = self.last_validated
            self.save("best")
            return
        position.in_vain += 1
        if patience and position.in_vain >= patience and position.step < position.total_steps:
            position.total_steps, position.frozen = position.step, True
            self.budget = None
            self.log.write(
                "early_stop",
                f"no better score in {patience} validations: the run ends at step {position.step}",
                step=position.step,
            )

    def _is_time_to_agree(self) -> bool:
        # To agree, processes wait for each other, and their hosts for the GPUs.
        is_cheap = self.ranks.world == 1 or self.data.device.type == "cpu"
        return is_cheap or self.position.step % _LOG_EVERY == 0

    def _is_time_to_validate(self) -> bool:
        position = self.position
        is_due = position.step % self.config.schedule.validate_every == 0
        return is_due and position.validated_step < position.step

    def _is_time_to_report(self) -> bool:
        return self.position.step % _LOG_EVERY == 0 or self.position.step == self.position.total_steps

    def _choose_steps(self) -> None:
        """Choose the number of steps that fit into the time limit, and again where the run misses its end."""
        position = self.position
        if self.budget is None or (self.data.device.type != "cpu" and not self._is_time_to_report()):
            return  # only a report waits for a GPU: steps before it have no duration
        found = self._fitting_steps(self.budget)
        (total,) = map(int, self.ranks.from_first([found], self.data.device))
        if not total or (position.frozen and total == position.total_steps):
            return
        position.total_steps, position.frozen = total, True
        pace, limit = self._meter.step_s, duration(self.budget.limit_s)
        self.log.write(
            "budget",
            f"{pace:.3f} s a step, {self.costs.ending_s:.0f} s from the last step to the end:"
            f" {total} steps fit into {limit}",
            total_steps=total,
            step_s=round(pace, 4),
            ending_s=round(self.costs.ending_s, 1),
        )
        self.save("last")  # a run that is killed before the next one would choose another number

    def _fitting_steps(self, budget: TimeBudget) -> int:
        """Return the number of steps; 0 while it is too early to choose."""
        position, now_s = self.position, self._clock()
        pace = self._pace(self._meter.step_s)
        if position.frozen:
            return budget.chosen_again(now_s, position.step, position.total_steps, pace)
        is_settled = self._meter.is_settled
        if self.ranks.is_first:  # where it refuses, torchrun ends the other processes
            budget.check(now_s, position.step, pace if is_settled else replace(pace, step_s=0.0))
        if not (is_settled and budget.is_measured(now_s)):
            return 0
        return budget.total_steps(now_s, position.step, pace)

    def _pace(self, step_s: float) -> Pace:
        return Pace(step_s, self.config.schedule.validate_every, self.costs)

    def _report(self) -> None:
        position, meter = self.position, self._meter
        loss = self._losses.mean()
        self.log.write(
            "step",
            f"step {position.step}/{position.total_steps}  {self._note()}  loss {loss:.4f}",
            step=position.step,
            loss=loss,
            lr=self._lr,
            images_per_s=round(meter.images_per_s, 2),
            data_wait=round(meter.waited_share, 4),
        )
        meter.restart()

    def _note(self) -> str:
        position, meter = self.position, self._meter
        remaining_s = self._pace(meter.step_s).remaining_s(position.step, position.total_steps)
        limit = f" of {duration(self.budget.limit_s)}" if self.budget is not None else ""
        return (
            f"lr {self._lr:.2e}  {meter.images_per_s:.1f} crops/s  data wait {100 * meter.waited_share:.0f} %"
            f"  {duration(remaining_s)} left{limit}"
        )
