"""OpenVLA-OFT: observation to tensors, and predicted chunk to joint targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.backends.base import Batch, Sample
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.checkpoints.layouts import Assets
from crane_x7_vla.data.statistics import DatasetStatistics
from crane_x7_vla.errors import CheckpointError, ConfigError, DataError
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.transforms.action import absolute_from, normalize, relative_to, unnormalize, value_range
from crane_x7_vla.transforms.image import Augmentation, model_image
from crane_x7_vla.transforms.prompt import prompt_text
from crane_x7_vla.transforms.state import normalize_state
from crane_x7_vla.types import Observation

BOS_TOKEN_ID = 1
# What the slots hold is zeroed by the model; the reference fills them with id 1 too (modeling_prismatic.py:734-755).
_SLOT_TOKEN_ID = 1
_PAD_TOKEN_ID = 0
_LONGEST_INSTRUCTION = 1000  # characters; attention over what somebody pasted would take memory without end
_KEPT_PROMPTS = 256


class OpenVLAOFTProcessor:
    """Turns observations into batches and predictions into radians; the same object trains and runs.

    Sample keys: pixel_values float32 [channels, h, w]; input_ids int64 [n] (prompt, slots, stop token);
    prompt_length int64 []; proprio float32 [S] in model units (if enabled); with actions also labels float32 [T, A] in
    model units and is_pad bool [T]. A batch has attention_mask bool [b, n] only where something is padded.
    """

    def __init__(
        self, config: OpenVLAOFTConfig, *, robot: RobotSpec, statistics: DatasetStatistics, assets: Assets
    ) -> None:
        settings = config.openvla_oft
        for what, size in (("action", statistics.action.size), ("state", statistics.state.size)):
            if size != robot.size:
                raise CheckpointError(
                    f"the {what} statistics have {size} entries, {robot.name} has {robot.size} joints; "
                    "compute statistics of this robot's episodes"
                )
        vocabulary = assets.tokenizer.get_vocab_size()
        rows = assets.published["text_config"].get("vocab_size", vocabulary)
        for name in ("empty_token_id", "stop_token_id"):
            token: int = getattr(settings, name)
            if not 0 <= token < rows:
                raise ConfigError(f"openvla_oft.{name} is {token}, but the base model's vocabulary has {rows} tokens")
        if vocabulary > rows:
            raise CheckpointError(f"the tokenizer has {vocabulary} tokens, the base model's embedding {rows} rows")
        self.robot = robot
        self._config = config
        self._settings = settings
        self._cameras = tuple(camera.name for camera in config.cameras)
        self._tokenizer = assets.tokenizer
        self._image_size = int(assets.published["image_sizes"][0])
        self._normalizations = assets.normalizations
        aug = settings.image_aug
        self._augmentation = (
            Augmentation(
                crop_scale=aug.crop_scale,
                brightness=aug.brightness,
                contrast=aug.contrast,
                saturation=aug.saturation,
                hue=aug.hue,
            )
            if aug.enabled
            else None
        )
        self.action_range = value_range(statistics.action, settings.normalization, span_floor=settings.span_floor)
        self._state_range = value_range(statistics.state, settings.normalization, span_floor=settings.span_floor)
        self._bounded = settings.normalization != "zscore"
        self._prompts: dict[str, Tensor] = {}

    def encode(
        self,
        observation: Observation,
        actions: np.ndarray | None = None,
        *,
        is_pad: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """See ``Processor.encode``."""
        self._check(observation)
        input_ids, prompt_length = self._text(observation.instruction)
        sample = {
            "pixel_values": torch.from_numpy(self._pixels(observation, rng)),
            "input_ids": input_ids,
            "prompt_length": prompt_length,
        }
        if self._settings.proprio.enabled:
            state = normalize_state(observation.state, self._state_range, clip=self._bounded)
            sample["proprio"] = torch.from_numpy(state)
        if actions is not None:
            sample |= self._labels(observation, actions, is_pad)
        return sample

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See ``Processor.collate``. Text is padded on the right."""
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key != "input_ids"}
        texts = [sample["input_ids"] for sample in samples]
        batch["input_ids"] = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=_PAD_TOKEN_ID)
        lengths = torch.tensor([len(text) for text in texts])
        if int(lengths.min()) != int(lengths.max()):
            batch["attention_mask"] = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
        return batch

    def decode(self, prediction: Tensor, observations: Sequence[Observation]) -> np.ndarray:
        """See ``Processor.decode``.

        A relative chunk is added to the state where the model learnt commanded targets, and to the target in force
        where it learnt next states: an arm that sags would sink with every step otherwise.
        """
        values = prediction.detach().float().cpu().numpy()
        actions = unnormalize(values, self.action_range)
        if self._settings.action_form == "absolute":
            return actions
        anchors = np.stack([self._anchor(observation) for observation in observations])
        return absolute_from(actions, anchors, self.robot.gripper_index)

    def _check(self, observation: Observation) -> None:
        if observation.state.size != self.robot.size:
            raise DataError(
                f"the state has {observation.state.size} joints, {self.robot.name} has {self.robot.size}: "
                f"{', '.join(self.robot.joint_names)}"
            )
        missing = [name for name in self._cameras if name not in observation.images]
        if missing:
            raise DataError(
                f"no image of camera {', '.join(missing)}; the model needs {', '.join(self._cameras)}, "
                f"the observation has {', '.join(observation.images) or 'none'}"
            )
        for camera in self._config.cameras:
            height, width = observation.images[camera.name].shape[:2]
            if camera.width and camera.height and width * camera.height != height * camera.width:
                raise DataError(
                    f"camera {camera.name} shows {width} x {height} pixels, but the model was trained on "
                    f"{camera.width} x {camera.height}; another shape would be squashed. Set the camera to that size"
                )

    def _pixels(self, observation: Observation, rng: np.random.Generator | None) -> np.ndarray:
        images = [
            model_image(
                observation.images[name],
                size=self._image_size,
                normalizations=self._normalizations,
                augmentation=self._augmentation,
                rng=rng,
            )
            for name in self._cameras
        ]
        return np.concatenate(images)

    def _text(self, instruction: str) -> tuple[Tensor, Tensor]:
        """Token ids (prompt, empty token, slots, stop token) and the length of what precedes the slots."""
        if len(instruction) > _LONGEST_INSTRUCTION:
            raise DataError(
                f"the instruction has {len(instruction)} characters; expected a sentence of at most "
                f"{_LONGEST_INSTRUCTION}, such as: pick up the red cube"
            )
        if instruction not in self._prompts:
            if len(self._prompts) == _KEPT_PROMPTS:
                self._prompts.clear()
            text = prompt_text(self._settings.prompt, instruction)
            prompt = [BOS_TOKEN_ID, *self._tokenizer.encode(text, add_special_tokens=False).ids]
            if prompt[-1] != self._settings.empty_token_id:
                prompt.append(self._settings.empty_token_id)
            self._prompts[instruction] = torch.tensor(prompt)
        prompt_ids = self._prompts[instruction]
        slots = torch.full((self._settings.action_horizon * self.robot.size,), _SLOT_TOKEN_ID)
        stop = torch.tensor([self._settings.stop_token_id])
        return torch.cat([prompt_ids, slots, stop]), torch.tensor(len(prompt_ids))

    def _labels(self, observation: Observation, actions: np.ndarray, is_pad: np.ndarray | None) -> Sample:
        expected = (self._settings.action_horizon, self.robot.size)
        if actions.shape != expected:
            raise DataError(
                f"the action chunk has shape {list(actions.shape)}; expected {list(expected)}, action_horizon by joints"
            )
        if self._settings.action_form == "relative":
            actions = relative_to(actions, observation.state, self.robot.gripper_index)
        labels = normalize(actions, self.action_range)
        if self._settings.normalization == "bounds_q99":
            labels = np.clip(labels, -1, 1)
        padded = np.zeros(len(actions), dtype=np.bool_) if is_pad is None else is_pad
        return {"labels": torch.from_numpy(labels), "is_pad": torch.from_numpy(padded)}

    def _anchor(self, observation: Observation) -> np.ndarray:
        source = self._config.data.action_source
        if source == "commanded":
            return observation.state
        if source == "auto":
            raise ConfigError(
                "data.action_source is still auto, so it is not known what the model learnt; "
                "training replaces it by commanded or next_state in the checkpoint's config.yaml"
            )
        if observation.commanded is None:
            raise DataError(
                "the model learnt next states, so its actions are offsets from the target in force, but the "
                "observation has no commanded target; send the arm its measured state as a first target"
            )
        return observation.commanded
