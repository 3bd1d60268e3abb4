"""What the backends on the Prismatic trunk do alike: building, adapters, saving and restoring."""

from __future__ import annotations

import dataclasses
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from crane_x7_vla.backends.base import Batch, ModelSpec
from crane_x7_vla.backends.prismatic_config import PrismaticVLAConfig
from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.adapters import ADAPTERS, refuse_checkpoint
from crane_x7_vla.checkpoints.architecture import architecture, trunk_config
from crane_x7_vla.checkpoints.base_model import local_model, resolve_model
from crane_x7_vla.checkpoints.component_files import find_component, other_joints, read_component
from crane_x7_vla.checkpoints.published import base_statistics, read_assets, read_dead, read_trunk
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.checkpoints.torch_files import shapes_in
from crane_x7_vla.config.yaml import CONFIG_NAME
from crane_x7_vla.data.statistics import DatasetStatistics, to_json
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.prismatic import PrismaticModel
from crane_x7_vla.robot import RobotSpec

logger = logging.getLogger(__name__)

_NAMED = 3

Config = TypeVar("Config", bound=PrismaticVLAConfig)
Model = TypeVar("Model", bound=PrismaticModel)


class PrismaticBackend(ABC, Generic[Config, Model]):
    """Base class. directory: a complete model directory that is used in place of the config's base model.

    A family says ``model_class``, how a ``new_model`` is made, and names its ``components``: parts beside the trunk,
    each with a file of its own. language_model: what a base is built on, by its config.json. unused: parts of the trunk
    that play no part, and so are not trained.
    """

    model_class: type[Model]
    language_model = "llama"
    components: Sequence[str] = ()
    unused: Sequence[str] = ()

    def __init__(
        self, config: Config, *, robot: RobotSpec, statistics: DatasetStatistics, directory: Path | None
    ) -> None:
        settings = config.settings
        self.config = config
        self.robot = robot
        self._statistics = statistics
        if directory is None and settings.model_id is not None:
            directory = resolve_model(settings.model_id)
            refuse_checkpoint(directory)
        self.base = directory
        self._base_fingerprint = ""  # known once the base is read
        self.assets = _random_assets(settings.architecture) if directory is None else read_assets(directory)
        source = "config" if directory is None else str(directory / layouts.CONFIG_FILE)
        self.trunk = trunk_config(self.assets.published, source=source)
        found = self.assets.published["text_config"].get("model_type", "llama")
        if found != self.language_model:
            raise ConfigError(
                f"{config.backend} is built on {self.language_model}, but the language model of "
                f"{directory or settings.architecture} is {found}; name another base: --model-id "
                f"{type(settings)().model_id}"
            )
        self.spec = ModelSpec(
            cameras=config.cameras,
            action_horizon=config.action_horizon,
            n_action_steps=config.n_action_steps,
            history=config.history,
            action_form=config.action_form,
        )

    @abstractmethod
    def new_model(self) -> Model:
        """The model with random weights."""

    def new_components(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Weights of the ``components`` before any training, by name and the component's own keys."""
        return {}

    @abstractmethod
    def answer(self, model: nn.Module, batch: Batch) -> Tensor:
        """Chunks [b, T, A] in model units that the model predicts for a batch."""

    def predict(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        running: Sequence[Any] | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """See ``Backend.predict``. running and rng play no part in these families: no blending, no noise."""
        del running, rng
        return self.answer(model, batch)

    def comparable(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``Backend.comparable``; families that choose tokens say it in another way."""
        return self.answer(model, batch)

    def bare(self, model: nn.Module) -> Model:
        """The family's model inside what adapters or the trainer wrapped around it, adapters left in place."""
        return next(module for module in model.modules() if isinstance(module, self.model_class))

    def build(self) -> nn.Module:
        """The base model with fresh components (unless the base brings some that fit), adapters added.

        A peft model where ``use_lora``, else the bare model. Parameters that are to be trained have requires_grad.
        """
        settings = self.config.settings
        if settings.use_lora:  # before minutes of reading weights
            _lora().check_names(
                self._skeleton(),
                targets=settings.lora_target,
                trained=self._trained(),
                without=self._component_modules(),
                section=settings.block,
            )
        model = self._random_model() if self.base is None else self._from_base(self.base)
        if self.config.training.device == "cpu" and settings.use_flash_attention:
            logger.info("%s.use_flash_attention has no effect on a CPU", self.config.block)
        if not settings.use_lora:
            model = model.float()  # every weight is trained, and bfloat16 would swallow small updates
        return self._prepare(model)

    def for_inference(self, model: nn.Module) -> nn.Module:
        """See ``Backend.for_inference``."""
        self.bare(model).language_model.model.fuse()
        return model

    def save(self, model: nn.Module, directory: Path) -> None:
        """Adapters and fully trained modules, or (without LoRA) the whole model in the published layout."""
        if isinstance(model, self.model_class):
            self._write_whole(directory, model.state_dict())
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
            base, directory, trained=self._trained(), base_fingerprint=self._base_fingerprint
        )
        return self._finish(model)

    def check_base(self, directory: Path) -> None:
        """A checkpoint with adapters names its base's fingerprint; one with the whole model needs no base."""
        if (directory / ADAPTERS).is_dir():
            _lora().check_base(directory, base_fingerprint=self._base_fingerprint)

    def _write_whole(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        published = {**self.assets.published, "norm_stats": json.loads(to_json(self._statistics))}
        assets = dataclasses.replace(self.assets, published=published)
        dead = {} if self.base is None else read_dead(self.base, self.trunk)
        layouts.write_model(directory, tensors={**tensors, **dead}, assets=assets, components=self.components)

    def _trained(self) -> tuple[str, ...]:
        """Names of what is trained in full: the components, and what the config adds."""
        return tuple(dict.fromkeys((*self._component_modules(), *self.config.settings.trained_modules)))

    def _component_modules(self) -> tuple[str, ...]:
        return tuple(module for name in self.components for module in layouts.component_modules(name))

    def _prepare(self, model: Model, *, adapters: bool = True) -> nn.Module:
        settings = self.config.settings
        if not (adapters and settings.use_lora):
            return self._finish(model)
        return self._finish(
            _lora().add_adapters(
                model,
                rank=settings.lora_rank,
                alpha=settings.lora_alpha,
                dropout=settings.lora_dropout,
                targets=settings.lora_target,
                trained=self._trained(),
                without=self._component_modules(),
                base_model=self._base_name(),
                seed=self.config.seed,
            )
        )

    def _base_name(self) -> str:
        """What others can type to get the base model: an absolute path, or a Hugging Face id."""
        model_id = str(self.config.settings.model_id)
        return str(local_model(model_id) or model_id)

    def _finish(self, model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            if any(f".{part}." in name for part in self.unused):  # without a gradient it must not count as trained
                parameter.requires_grad_(False)
        bare = self.bare(model)
        bare.use_flash_attention(self.config.settings.use_flash_attention)
        if self.config.training.gradient_checkpointing:
            bare.enable_gradient_checkpointing()
        return model

    def _random_model(self) -> Model:
        settings = self.config.settings
        logger.info("%s.model_id is none: random weights of architecture '%s'", settings.block, settings.architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.new_model()

    def _from_base(self, base: Path, *, quiet: bool = False) -> Model:
        """The base's trunk, strictly, with its components where they fit; else new ones."""
        model = self._skeleton()
        shapes = layouts.shapes_of(model)
        weights = read_trunk(base, self.trunk, self._outside(shapes, (c for c in self.components if c != layouts.FILM)))
        self._base_fingerprint = layouts.fingerprint(weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            fresh = self.new_components()
        if not quiet:
            _say_statistics_are_left_aside(base)
        for name, component in fresh.items():
            keys = layouts.component_keys(name, shapes)
            if not weights.keys() >= set(keys.values()):  # a vision backbone with FiLM brings it along
                part = _component_or_new(base, name, component, self.robot, quiet=quiet)
                weights |= {keys[own]: value for own, value in part.items()}
        return self._assign(model, weights)

    def _read(self, directory: Path) -> Model:
        """A whole model of ours: trunk and components, all strictly."""
        model = self._skeleton()
        shapes = layouts.shapes_of(model)
        weights = layouts.read_tensors(
            layouts.weight_files(directory),
            self._outside(shapes, self.components),
            dead=layouts.dead_keys(self.trunk),
            source=directory,
        )
        for name in self.components:
            path = layouts.component_file(directory, name)
            if not path.is_file():
                raise CheckpointError(
                    f"{directory} lacks {path.name}; copy the model again, or, if it was trained without that part, "
                    f"switch it off in its {CONFIG_NAME}"
                )
            keys = layouts.component_keys(name, shapes)
            expected = {own: shapes[key] for own, key in keys.items()}
            found = layouts.tensor_shapes(path)
            if said := other_joints(name, found, self.robot):
                raise CheckpointError(
                    f"{path} {said}; its {name} must be trained anew, with --model-id {directory} as the base"
                )
            files = dict.fromkeys(found, path)
            part = layouts.read_tensors(files, expected, dead=None, source=path)
            weights |= {keys[own]: value for own, value in part.items()}
        return self._assign(model, weights)

    def _skeleton(self) -> Model:
        with torch.device("meta"):
            return self.new_model()

    def _outside(self, shapes: Mapping[str, tuple[int, ...]], components: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Those of ``shapes`` that belong to none of the components."""
        inside = {key for name in components for key in layouts.component_keys(name, shapes).values()}
        return {key: shape for key, shape in shapes.items() if key not in inside}

    def _assign(self, model: Model, weights: dict[str, Tensor]) -> Model:
        quantized = next((key for key, value in weights.items() if not value.is_floating_point()), None)
        if quantized is not None:
            kind = str(weights[quantized].dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.base}: {quantized} is {kind}; expected bfloat16, float16 or float32 weights")
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


def _say_statistics_are_left_aside(base: Path) -> None:
    found = [f"{name} with {size} numbers" for name, size in base_statistics(base).items()]
    if found:
        logger.info(
            "the base's statistics of actions (%s) are left aside; those of the training data are used",
            ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""),
        )


def _component_or_new(
    base: Path, name: str, fresh: Mapping[str, Tensor], robot: RobotSpec, *, quiet: bool
) -> Mapping[str, Tensor]:
    """Weights of a part from the base where it is there, else or where it is of another size ``fresh``.

    quiet: do not say which. Raises CheckpointError where weights are missing or unknown.
    """
    path = find_component(base, name)
    if path is None:
        if not quiet:
            logger.info("%s: %s has none, so it is trained anew", name, base)
        return fresh
    found = read_component(path)
    shapes, expected = shapes_in(found), shapes_in(fresh)
    layouts.require_fit(dict.fromkeys(shapes, ()), dict.fromkeys(expected, ()), dead=None, source=path)
    if shapes == expected:
        if not quiet:
            logger.info("%s: weights of %s", name, path)
        return found
    if not quiet:
        said = other_joints(name, shapes, robot) or _difference(shapes, expected)
        logger.warning("%s of the base %s (%s); it is left aside and trained anew", name, said, path)
    return fresh


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    key = next(key for key, shape in expected.items() if found[key] != shape)
    return f"does not fit, {key} is {list(found[key])} instead of {list(expected[key])}"
