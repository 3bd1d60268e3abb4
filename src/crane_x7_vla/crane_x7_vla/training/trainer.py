"""The one trainer of all backends."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from crane_x7_vla.backends import backend_class
from crane_x7_vla.backends.base import Backend, Batch
from crane_x7_vla.config.base import TrainingConfig, VLAConfig
from crane_x7_vla.config.yaml import CONFIG_NAME
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.precision import autocast_type, keep_as_computed
from crane_x7_vla.training.distributed import World, average_gradients, barrier, broadcast, join_world, sums
from crane_x7_vla.training.ema import Ema
from crane_x7_vla.training.evaluation import evaluate, to_device
from crane_x7_vla.training.folder import RunFolder, checkpoint_to_resume, folder_of
from crane_x7_vla.training.loading import evaluation_batches, prepare_data, training_batches
from crane_x7_vla.training.logs import MetricWindow, ProgressDisplay, check_wandb
from crane_x7_vla.training.preflight import (
    autocast,
    check_device,
    check_disk,
    check_folder,
    check_resumable,
    device_of,
)
from crane_x7_vla.training.schedule import Schedule, warmup_steps
from crane_x7_vla.training.state import Best, TrainerState, load_state, restore_random, restore_weights

logger = logging.getLogger(__name__)

RESUME_HINT = "python -m crane_x7_vla.training.cli train --config {config} --resume-from-checkpoint latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResults:
    """step: updates made. checkpoint: the last one. interrupted: whether a signal ended the run; resume: how to go on.

    metrics: the last ones, under their train/ and eval/ names.
    """

    step: int
    checkpoint: Path
    metrics: Mapping[str, float]
    interrupted: bool
    resume: str


class VLATrainer:
    """``VLATrainer(config).train()`` trains, evaluates and saves; under torchrun each process does its share."""

    def __init__(self, config: VLAConfig) -> None:
        self.config = config

    def train(self) -> TrainingResults:
        """Train to the end, the time budget, or a signal. Raises ConfigError, DataError or CheckpointError."""
        training = self.config.training
        check_wandb(self.config)
        check_device(training)
        check_folder(folder_of(self.config), option="--output-dir")
        try:
            with (
                join_world(os.environ, torch.device(training.device).type) as world,
                _Run(self.config, world) as run,
                _stop_on_signals() as stop,  # before there is anything to save, Ctrl-C simply ends the program
            ):
                return run.train(stop)
        except torch.OutOfMemoryError as error:
            half, twice = max(1, training.batch_size // 2), 2 * training.gradient_accumulation_steps
            raise ConfigError(
                f"out of GPU memory at batch_size {training.batch_size}. Try --batch-size {half} "
                f"--grad-accumulation-steps {twice}, --gradient-checkpointing, or a smaller --lora-rank"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckpointError(
                f"no space left under {self.config.output_dir} ({error.filename or 'the logs'}); free some, then go on "
                "with --resume-from-checkpoint latest"
            ) from error


class _Run:
    """One call of ``train``: what it needs, made in the order of the constructor, then the loop."""

    def __init__(self, config: VLAConfig, world: World) -> None:
        self.world = world
        resume = checkpoint_to_resume(config)
        self.data = prepare_data(config)
        self.config = self.data.config
        self.training = self.config.training
        if resume is not None:
            check_resumable(resume, self.config, self.data.split)

        self.device = device_of(self.training, world)
        torch.manual_seed(self.config.seed)
        self.backend: Backend = backend_class(self.config.backend)(
            self.config, robot=self.data.robot, statistics=self.data.statistics
        )
        self.model: nn.Module = self.backend.build()
        half = autocast_type(self.training.mixed_precision)
        if half is not None:
            keep_as_computed(self.model, half, trained=False)
        self.model.to(self.device)
        if resume is not None:
            self.backend.check_base(resume)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ConfigError("nothing to train: every weight is frozen; use --use-lora, or unfreeze a part")
        broadcast((p.data for p in self.trained.values()), world)
        torch.manual_seed(self.config.seed + world.rank)  # each process has its own dropout
        check_disk(folder_of(self.config), self.trained, self.training)

        state = TrainerState() if resume is None else load_state(resume)
        restore_weights(self.model, state)
        self.ema = Ema(self.trained, self.training.ema_decay)
        self.step = state.step
        self.together = self.training.batch_size * world.size
        self.batches_drawn = state.samples // self.together
        self.seconds_before = state.seconds
        self.total_steps = self._total_steps()
        self.schedule = self._make_schedule()
        self.time_share = self._time_share(0.0)
        self.optimizer = _make_optimizer(self.trained, self.training, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.training.mixed_precision == "fp16")
        if resume is not None:
            state.restore_optimizer(self.optimizer, self.scaler, self.ema)
            restore_random(state, world, self.device)
        self.lr = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: self.schedule.factor(step, self.time_share),
            last_epoch=self.step - 1,
        )
        self.folder = RunFolder(self.data, base=self.backend.base, first_step=self.step, is_main=world.is_main)
        # What was best may be left behind: in another experiment, or removed to go on from an earlier one.
        best = state.best
        self.best = best if best is not None and self.folder.checkpoint(best.step) is not None else None
        self._announce()
        self.progress = ProgressDisplay(self.total_steps, first_step=self.step, visible=world.is_main)
        self.evaluated_at = -1
        self.last_checkpoint = resume
        self.started = time.monotonic()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.folder.close()

    def train(self, stop: threading.Event) -> TrainingResults:
        """Update, log, evaluate and save until the last step, the end of the time, or ``stop``."""
        batches = training_batches(
            self.data,
            self.backend.processor,
            first_batch=self.batches_drawn,
            rank=self.world.rank,
            world=self.world.size,
        )
        held_out = None
        if len(self.data.val):
            held_out = evaluation_batches(
                self.data.val,
                self.backend.processor,
                config=self.config,
                samples=self.training.eval_samples,
                num_workers=min(1, self.data.num_workers),
                rank=self.world.rank,
                world=self.world.size,
            )
        if self.total_steps == 0 and self.last_checkpoint is None:  # what training would start from, for comparison
            if held_out is not None:
                self._evaluate(held_out)
            self._save()
        elif self.finished:
            logger.info("nothing left to train: step %d of %d", self.step, self.total_steps)
        self.model.train()
        window = MetricWindow()
        interrupted = False
        while not self.finished and not interrupted:
            values, interrupted = self._update(batches, stop)
            window.add(values)
            self.progress.step(self.step)
            interrupted = interrupted and not self.finished  # a signal during the last update came too late
            last = self.finished or interrupted
            if last or self.step % self.training.log_interval == 0:
                self._write_training(window)
                window = MetricWindow()
            saves = last or self.step % self.training.save_interval == 0
            if held_out is not None and not interrupted and (saves or self.step % self.training.eval_interval == 0):
                self._evaluate(held_out)
            if saves:
                self._save()
        if self.finished:
            self.folder.finish(self.step)
        barrier(self.world)
        return TrainingResults(
            step=self.step,
            checkpoint=self.last_checkpoint or self.folder.path,
            metrics=dict(self.folder.metrics),
            interrupted=interrupted,
            resume=RESUME_HINT.format(config=self.folder.path / CONFIG_NAME),
        )

    @property
    def finished(self) -> bool:
        """Whether the last step is made, or the time is over."""
        return self.step >= self.total_steps or self.time_share >= 1

    def _update(self, batches: Iterator[Batch], stop: threading.Event) -> tuple[dict[str, float], bool]:
        """One update of the weights. Returns its metrics, averaged over processes, and whether a signal came."""
        accumulation = self.training.gradient_accumulation_steps
        seen: list[dict[str, torch.Tensor]] = []
        for _ in range(accumulation):
            batch = to_device(next(batches), self.device)
            self.batches_drawn += 1
            with autocast(self.training, self.device):
                loss = self.backend.loss(self.model, batch)
            self.scaler.scale(loss.value / accumulation).backward()
            seen.append({"loss": loss.value.detach(), **loss.metrics})
        values = {name: float(torch.stack([s[name].float() for s in seen]).mean()) for name in seen[0]}
        average_gradients(self.trained.values(), self.world)
        self.scaler.unscale_(self.optimizer)
        limit = self.training.max_grad_norm or math.inf
        values["grad_norm"] = float(nn.utils.clip_grad_norm_(list(self.trained.values()), limit))
        values, interrupted = self._agree(values, stop)
        self._check_finite(values)
        values["learning_rate"] = float(self.lr.get_last_lr()[0])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step += 1
        self.lr.step()
        return values, interrupted

    def _agree(self, values: dict[str, float], stop: threading.Event) -> tuple[dict[str, float], bool]:
        """Averages over the processes; all of them see the same signal and the same clock, that of process 0."""
        share = self._time_share(time.monotonic() - self.started) if self.world.is_main else 0.0
        *totals, signals, self.time_share = sums(
            [*values.values(), float(stop.is_set()), share], self.world, self.device
        )
        return dict(zip(values, (total / self.world.size for total in totals), strict=True)), signals > 0

    def _check_finite(self, values: Mapping[str, float]) -> None:
        bad = "loss" if not math.isfinite(values["loss"]) else ""
        if not bad and not math.isfinite(values["grad_norm"]) and not self.scaler.is_enabled():
            bad = "grad_norm"  # with loss scaling an overflow is normal: the update is skipped, the scale lowered
        if bad:
            kept = f"the last checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "none was saved"
            raise ConfigError(
                f"{bad} is {values[bad]} at step {self.step + 1}; {kept}. Try a smaller --learning-rate than "
                f"{self.training.learning_rate:g}, a longer warm-up, or --mixed-precision no"
            )

    def _write_training(self, window: MetricWindow) -> None:
        seconds = window.seconds
        drawn = window.steps * self.together * self.training.gradient_accumulation_steps
        metrics = {f"train/{name}": value for name, value in window.means().items()}
        metrics["train/epoch"] = self.batches_drawn * self.together / len(self.data.train)
        metrics["train/samples_per_second"] = drawn / seconds
        self.folder.write(self.step, metrics)
        left = (self.total_steps - self.step) * seconds / window.steps
        if self.training.max_minutes is not None:
            left = min(left, (1 - self.time_share) * self.training.max_minutes * 60)
        shown = {name: metrics[name] for name in ("train/loss", "train/action_l1_rad") if name in metrics}
        self.progress.show(self.step, shown, seconds_left=max(0.0, left))

    def _evaluate(self, held_out: Any) -> None:
        with self.ema.applied():
            result = evaluate(
                self.backend,
                self.model,
                held_out,
                shape=(self.config.action_horizon, self.data.robot.size),
                device=self.device,
                autocast=lambda: autocast(self.training, self.device),
                world=self.world,
            )
        self.evaluated_at = self.step
        metrics = {
            "eval/loss": result.loss,
            "eval/action_l1_rad": result.action_l1_rad,
            "eval/action_l1_rad_start": result.start_l1_rad,
        }
        self.folder.write(self.step, metrics)
        if self.world.is_main:
            logger.info(
                "step %d: held-out loss %.4g, error %.4f rad, %.4f rad at the start of episodes",
                self.step, result.loss, result.action_l1_rad, result.start_l1_rad,
            )  # fmt: skip

    def _save(self) -> None:
        state = TrainerState.of(
            self.model,
            self.optimizer,
            self.scaler,
            self.ema,
            step=self.step,
            samples=self.batches_drawn * self.together,
            seconds=self.seconds_before + time.monotonic() - self.started,
            best=self._best(),
            world=self.world,
            device=self.device,
        )
        self.folder.save(state, self._save_model)
        barrier(self.world)
        self.best = state.best
        self.last_checkpoint = self.folder.checkpoint(self.step)

    def _save_model(self, directory: Path) -> None:
        with self.ema.applied():
            self.backend.save(self.model, directory)

    def _best(self) -> Best | None:
        """The best checkpoint so far, this one included, by the loss on held-out episodes."""
        loss = self.folder.metrics.get("eval/loss", math.inf)
        if self.evaluated_at == self.step and loss < (math.inf if self.best is None else self.best.loss):
            return Best(step=self.step, loss=loss)
        return self.best

    def _announce(self) -> None:
        if not self.world.is_main:
            return
        trained, total = sum(p.numel() for p in self.trained.values()), sum(p.numel() for p in self.model.parameters())
        logger.info(
            "training %s of %s weights on %s for %d steps of %d samples, from step %d; results go to %s",
            f"{trained:,}", f"{total:,}", self.device, self.total_steps,
            self.together * self.training.gradient_accumulation_steps, self.step, self.folder.path,
        )  # fmt: skip

    def _total_steps(self) -> int:
        per_update = self.together * self.training.gradient_accumulation_steps
        steps = math.ceil(self.training.num_epochs * len(self.data.train) / per_update)
        return steps if self.training.max_steps is None else min(steps, self.training.max_steps)

    def _make_schedule(self) -> Schedule:
        warmup, why = warmup_steps(self.training, self.total_steps)
        if self.world.is_main:
            logger.info("learning rate: warm-up of %d steps (%s), then %s", warmup, why, self.training.lr_schedule)
        return Schedule(
            kind=self.training.lr_schedule,
            warmup=warmup,
            total_steps=self.total_steps,
            final_ratio=self.training.lr_final_ratio,
        )

    def _time_share(self, elapsed: float) -> float:
        """How much of the time budget is spent, 0 without one."""
        budget = self.training.max_minutes
        return 0.0 if budget is None else (self.seconds_before + elapsed) / (60 * budget)


def _make_optimizer(
    trained: Mapping[str, nn.Parameter], training: TrainingConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors are not decayed."""
    matrices = [p for p in trained.values() if p.ndim >= 2]
    vectors = [p for p in trained.values() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=device.type == "cuda",
    )


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once. Main thread only."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        logger.warning("%s: saving a checkpoint after this step; again to stop at once", signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
