"""OpenVLA-OFT: building the model, its loss and prediction, saving and restoring."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, Loss, ModelSpec
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.backends.openvla_oft.processor import OpenVLAOFTProcessor
from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.adapters import ADAPTERS
from crane_x7_vla.checkpoints.architecture import architecture, trunk_config
from crane_x7_vla.checkpoints.base_model import local_model, resolve_model
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.data.statistics import DatasetStatistics, to_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.openvla_oft import ACTION_HEAD, PROPRIO, OFTHeadConfig, OpenVLAOFT, new_components
from crane_x7_vla.robot import RobotSpec

logger = logging.getLogger(__name__)

_INPUTS = ("pixel_values", "input_ids", "prompt_length", "proprio", "attention_mask")


class OpenVLAOFTBackend:
    """See ``Backend``. directory: a complete model directory that is used in place of the config's base model."""

    def __init__(
        self,
        config: OpenVLAOFTConfig,
        *,
        robot: RobotSpec,
        statistics: DatasetStatistics,
        directory: Path | None = None,
    ) -> None:
        settings = config.openvla_oft
        self.config = config
        self._statistics = statistics
        if directory is None and settings.model_id is not None:
            directory = resolve_model(settings.model_id)
        self.base = directory
        self._base_fingerprint = ""  # known once the base is read
        self.assets = _random_assets(settings.architecture) if directory is None else layouts.read_assets(directory)
        source = "config" if directory is None else str(directory / layouts.CONFIG_FILE)
        self._trunk = trunk_config(self.assets.published, source=source)
        self._head = OFTHeadConfig(
            action_dim=robot.size,
            action_horizon=settings.action_horizon,
            hidden_dim=settings.action_head.hidden_dim,
            num_blocks=settings.action_head.num_blocks,
            state_dim=robot.size if settings.proprio.enabled else None,
        )
        self._components = (ACTION_HEAD, PROPRIO) if settings.proprio.enabled else (ACTION_HEAD,)
        names = (name for name in settings.trained_modules if name != PROPRIO or settings.proprio.enabled)
        self._trained = tuple(dict.fromkeys((*self._components, *names)))
        self.processor = OpenVLAOFTProcessor(config, robot=robot, statistics=statistics, assets=self.assets)
        self.spec = ModelSpec(
            cameras=config.cameras,
            action_horizon=settings.action_horizon,
            n_action_steps=settings.n_action_steps or settings.action_horizon,
            history=0,
            action_form=settings.action_form,
        )

    def build(self) -> nn.Module:
        """The base model with a fresh action head (unless the base brings one that fits), adapters added.

        A peft model where ``use_lora``, else the bare model. Parameters that are to be trained have requires_grad.
        """
        model = self._random_model() if self.base is None else self._from_base(self.base)
        if not self.config.openvla_oft.use_lora:
            model = model.float()  # every weight is trained, and bfloat16 would swallow small updates
        return self._prepare(model)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Mean absolute error over the rows of the normalised chunks that are not padding (OFT's L1 objective).

        Metrics: action_l1_rad; with bounds_q99 also clipped, the share of label entries beyond the range.
        """
        labels, keep = batch["labels"], (~batch["is_pad"]).float()[..., None]
        error = (self._forward(model, batch).float() - labels).abs() * keep
        entries = keep.sum() * labels.shape[-1]
        scale = torch.from_numpy(self.processor.action_range.half_span).to(labels.device)
        with torch.no_grad():
            metrics = {"action_l1_rad": (error * scale).sum() / entries}
            if self.config.openvla_oft.normalization == "bounds_q99":  # the processor clips no other labels
                metrics["clipped"] = ((labels.abs() >= 1).float() * keep).sum() / entries
        return Loss(error.sum() / entries, metrics)

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Normalised chunks [b, T, A]. running and rng play no part: one pass, no noise, no blending."""
        del running, rng
        return self._forward(model, batch)

    def save(self, model: nn.Module, directory: Path) -> None:
        """Adapters and fully trained modules, or (without LoRA) the whole model in the published layout."""
        if isinstance(model, OpenVLAOFT):
            published = {**self.assets.published, "norm_stats": json.loads(to_json(self._statistics))}
            assets = dataclasses.replace(self.assets, published=published)
            layouts.write_model(directory, tensors=model.state_dict(), assets=assets, components=self._components)
        else:
            _lora().save_adapters(model, directory, base_fingerprint=self._base_fingerprint)

    def restore(self, directory: Path) -> nn.Module:
        """What ``save`` or merge_lora wrote: adapters on the base model, or a whole model."""
        if not (directory / ADAPTERS).is_dir():
            return self._prepare(self._read(directory), adapters=False)
        if self.base is None:
            raise CheckpointError(
                f"{directory} holds adapters, but its config names no base model; restore it with the config.yaml "
                "it was saved with"
            )
        base = self._from_base(self.base, quiet=True)
        model = _lora().restore_adapters(
            base, directory, trained=self._trained, base_fingerprint=self._base_fingerprint
        )
        return self._finish(model)

    def check_base(self, directory: Path) -> None:
        """A checkpoint with adapters names its base's fingerprint; one with the whole model needs no base."""
        if (directory / ADAPTERS).is_dir():
            _lora().check_base(directory, base_fingerprint=self._base_fingerprint)

    def _forward(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{name: batch[name] for name in _INPUTS if name in batch})

    def _prepare(self, model: OpenVLAOFT, *, adapters: bool = True) -> nn.Module:
        settings = self.config.openvla_oft
        if not (adapters and settings.use_lora):
            return self._finish(model)
        return self._finish(
            _lora().add_adapters(
                model,
                rank=settings.lora_rank,
                alpha=settings.lora_alpha,
                dropout=settings.lora_dropout,
                targets=settings.lora_target,
                trained=self._trained,
                without=self._components,
                base_model=self._base_name(),
                seed=self.config.seed,
            )
        )

    def _base_name(self) -> str:
        """What others can type to get the base model: an absolute path, or a Hugging Face id."""
        model_id = str(self.config.openvla_oft.model_id)
        return str(local_model(model_id) or model_id)

    def _finish(self, model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            if ".lm_head." in name:  # plays no part in OFT; without a gradient it must not count as trained
                parameter.requires_grad_(False)
        if self.config.training.gradient_checkpointing:
            for module in model.modules():
                if isinstance(module, OpenVLAOFT):
                    module.enable_gradient_checkpointing()
        return model

    def _random_model(self) -> OpenVLAOFT:
        logger.info(
            "openvla_oft.model_id is none: random weights of architecture '%s'", self.config.openvla_oft.architecture
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return OpenVLAOFT(self._trunk, self._head)

    def _from_base(self, base: Path, *, quiet: bool = False) -> OpenVLAOFT:
        """The base's trunk, strictly, with its head and proprioception projector where they fit; else new ones."""
        model = self._skeleton()
        weights = self._trunk_weights(base, model)
        self._base_fingerprint = layouts.fingerprint(weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            fresh = new_components(self._trunk, self._head)
        for name, component in fresh.items():
            part = _component_or_new(base, name, component, quiet=quiet)
            weights |= {f"{name}.{key}": value for key, value in part.items()}
        return self._assign(model, weights)

    def _read(self, directory: Path) -> OpenVLAOFT:
        """A whole model of ours: trunk, head and projector, all strictly."""
        model = self._skeleton()
        weights = self._trunk_weights(directory, model)
        shapes = layouts.shapes_of(model)
        for name in self._components:
            path = layouts.component_file(directory, name)
            expected = {
                key.removeprefix(f"{name}."): shape for key, shape in shapes.items() if key.startswith(f"{name}.")
            }
            files = dict.fromkeys(layouts.tensor_shapes(path), path)
            part = layouts.read_tensors(files, expected, dead=None, source=path)
            weights |= {f"{name}.{key}": value for key, value in part.items()}
        return self._assign(model, weights)

    def _skeleton(self) -> OpenVLAOFT:
        with torch.device("meta"):
            return OpenVLAOFT(self._trunk, self._head)

    def _trunk_weights(self, directory: Path, model: OpenVLAOFT) -> dict[str, Tensor]:
        expected = {
            key: shape
            for key, shape in layouts.shapes_of(model).items()
            if not key.startswith((f"{ACTION_HEAD}.", f"{PROPRIO}."))
        }
        return layouts.read_tensors(
            layouts.weight_files(directory), expected, dead=layouts.dead_keys(self._trunk), source=directory
        )

    def _assign(self, model: OpenVLAOFT, weights: dict[str, Tensor]) -> OpenVLAOFT:
        model.load_state_dict(weights, strict=True, assign=True)
        return model.float() if self.config.training.mixed_precision == "no" else model


def _lora() -> ModuleType:
    """Imported where there are adapters only: merged models need neither peft nor the seconds it takes to import."""
    from crane_x7_vla.checkpoints import lora

    return lora


def _random_assets(name: str) -> layouts.Assets:
    published = architecture(name)
    towers = len(published["timm_model_ids"])
    return layouts.Assets(published, small_tokenizer(), layouts.default_normalizations(towers))


def _component_or_new(base: Path, name: str, fresh: nn.Module, *, quiet: bool) -> dict[str, Tensor]:
    """Weights of a part from the base where it is there and fits, else those of ``fresh``. quiet: do not say which."""
    path = layouts.component_file(base, name)
    shapes, expected = layouts.tensor_shapes(path) if path.is_file() else {}, layouts.shapes_of(fresh)
    if shapes == expected:
        if not quiet:
            logger.info("%s: weights of %s", name, path)
        return layouts.read_tensors(dict.fromkeys(shapes, path), expected, dead=None, source=path)
    if shapes and not quiet:
        logger.warning(
            "%s of the base does not fit (%s: %s) and is left aside: it is trained anew, from random weights",
            name, path, _difference(shapes, expected),
        )  # fmt: skip
    elif not quiet:
        logger.info("%s: %s has none, so it is trained from random weights", name, base)
    return fresh.state_dict()


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    for key, shape in expected.items():
        if found.get(key) != shape:
            return f"{key} is {list(found[key])} instead of {list(shape)}" if key in found else f"it has no {key}"
    return f"it has {len(found)} weights instead of {len(expected)}"
