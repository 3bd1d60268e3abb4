from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSpecificConfig
from crane_x7_vla.config.base import CameraConfig, DataConfig, TrainingConfig, VLAConfig
from crane_x7_vla.config.schema import settings
from crane_x7_vla.config.yaml import dump_config, load_config
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training.arguments import config_text

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_setting_has_a_one_line_description() -> None:
    for name in BACKENDS:
        for setting in settings(config_class(name)).values():
            assert setting.doc, f"{setting.path} has no description"
            assert "\n" not in setting.doc


@pytest.mark.parametrize("with_notes", [False, True])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_config_survives_the_round_trip(tmp_path: Path, backend: str, with_notes: bool) -> None:
    config = dataclasses.replace(
        config_class(backend)(),
        experiment_name="日本 #1",
        data=DataConfig(
            cameras=(CameraConfig(name="wrist", width=64, height=48), CameraConfig(name="side: b", topic="/x")),
            instruction="line one\nline two # not a comment",
            num_workers=0,
        ),
        training=TrainingConfig(learning_rate=1e-10, warmup_ratio=0.1, mixed_precision="no"),
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config, note=(lambda p: f"about {p}") if with_notes else None), encoding="utf-8")
    assert load_config(path) == config


def test_the_configs_in_the_repository_are_what_the_command_writes() -> None:
    for name in BACKENDS:
        file = CONFIGS / f"{name.replace('-', '_').replace('.', '')}_default.yaml"
        assert file.read_text(encoding="utf-8") == config_text(config_class(name)()), (
            f"write it again: python -m crane_x7_vla.training.cli config --backend {name} --output {file}"
        )


# The example of the framework's documentation, with this backend's name and settings.
DOCUMENTED = """
backend: openvla-oft
output_dir: ./outputs
experiment_name: crane_x7_vla
seed: 42
data:
  data_root: ./data/tfrecord_logs
  format: tfrecord
  train_split: 0.9
  val_split: 0.1
  shuffle: true
  num_workers: 4
  cameras:
    - name: primary
      topic: /camera/color/image_raw
      width: 640
      height: 480
      enabled: true
    - name: wrist_left
      topic: /camera_wrist_left/color/image_raw
      width: 640
      height: 480
      enabled: true
    - name: wrist_right
      topic: /camera_wrist_right/color/image_raw
      width: 640
      height: 480
      enabled: false  # Optional camera
training:
  batch_size: 16
  num_epochs: 100
  learning_rate: 5e-4
  weight_decay: 0.01
  warmup_steps: 1000
  gradient_accumulation_steps: 1
  max_grad_norm: 1.0
  mixed_precision: bf16
  gradient_checkpointing: false
  save_interval: 1000
  eval_interval: 500
  log_interval: 10
backend_config:
  model_id: openvla/openvla-7b
  use_lora: true
  lora_rank: 8
  lora_alpha: 16
"""


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "openvla_config.yaml"
    path.write_text(DOCUMENTED, encoding="utf-8")
    config = load_config(path)
    assert isinstance(config, OpenVLAOFTConfig)
    assert config.openvla_oft.lora_rank == 8
    assert config.training.learning_rate == 5e-4
    assert [camera.name for camera in config.data.enabled_cameras] == ["primary", "wrist_left"]


def test_the_documented_python_api_makes_the_same_config() -> None:
    from crane_x7_vla.config import openvla_oft_config

    config = openvla_oft_config.OpenVLAOFTConfig(
        backend="openvla-oft",
        data=DataConfig(
            data_root="./data/tfrecord_logs",
            cameras=[CameraConfig(name="primary", topic="/camera/color/image_raw"), CameraConfig(name="wrist")],  # pyright: ignore[reportArgumentType]
        ),
        training=TrainingConfig(batch_size=16, num_epochs=100, learning_rate=5e-4),
        experiment_name="my_experiment",
        openvla_oft=openvla_oft_config.OpenVLAOFTSpecificConfig(model_id="openvla/openvla-7b", lora_rank=32),
    )
    assert config.data.cameras == (CameraConfig(name="primary"), CameraConfig(name="wrist"))
    assert load_config({"backend": "openvla-oft", "experiment_name": "my_experiment", "data": {
        "data_root": "./data/tfrecord_logs"}}) == config  # fmt: skip


def test_the_documented_python_api_of_openvla() -> None:
    from crane_x7_vla.config.openvla_config import OpenVLAConfig, OpenVLASpecificConfig

    config = OpenVLAConfig(
        backend="openvla",
        data=DataConfig(data_root="./data/tfrecord_logs", cameras=(CameraConfig(name="primary"),)),
        experiment_name="my_experiment",
        openvla=OpenVLASpecificConfig(model_id="openvla/openvla-7b", use_lora=True, lora_rank=32),
    )
    documented = {"backend": "openvla", "experiment_name": "my_experiment", "backend_config": {"lora_rank": 32}}
    assert load_config({**documented, "data": {"data_root": "./data/tfrecord_logs"}}) == config


@pytest.mark.parametrize(
    ("mapping", "path", "value"),
    [
        ({"backend_config": {"lora_rank": 4}}, "openvla_oft.lora_rank", 4),
        ({"openvla_oft": {"lora_rank": 4}}, "openvla_oft.lora_rank", 4),
        ({"openvla_oft.lora_rank": 4}, "openvla_oft.lora_rank", 4),
        ({"backend_config": {"proprio.enabled": False}}, "openvla_oft.proprio.enabled", False),
        ({"backend_config": {"image_aug": False}}, "openvla_oft.image_aug.enabled", False),
        ({"openvla_oft": {"image_aug": False}}, "openvla_oft.image_aug.enabled", False),
        ({"openvla_oft.image_aug": False}, "openvla_oft.image_aug.enabled", False),
        ({"openvla_oft": {"proprio": {"enabled": False}}}, "openvla_oft.proprio.enabled", False),
        ({"training": {"save_steps": 500}}, "training.save_interval", 500),
        ({"training": {"grad_accumulation_steps": 3}}, "training.gradient_accumulation_steps", 3),
        ({"training": {"grad_accumulation": 3}}, "training.gradient_accumulation_steps", 3),
        ({"training": {"mixed_precision": False}}, "training.mixed_precision", "no"),
        ({"training": {"save_steps": 7, "save_interval": 7}}, "training.save_interval", 7),
        ({"training": {"max_steps": None}}, "training.max_steps", None),
        ({"data": None}, "data.format", "tfrecord"),
    ],
)
def test_other_spellings_are_read(mapping: dict[str, Any], path: str, value: object) -> None:
    config: Any = load_config({"backend": "openvla_oft", **mapping})
    for part in path.split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"traning": {"batch_size": 3}}, "unknown key 'traning.batch_size'; did you mean 'training.batch_size'?"),
        ({"training": {"lora_rank": 3}}, "unknown key 'training.lora_rank'; did you mean 'openvla_oft.lora_rank'?"),
        ({"lora_rank": 3}, "did you mean 'openvla_oft.lora_rank'?"),
        ({"foo": {}}, "unknown key 'foo'"),
        ({"foo": None}, "unknown key 'foo'"),
        ({"training": 3}, "training is 3; expected a table of settings"),
        ({"training": {"batch_size": "many"}}, "training.batch_size is 'many'; expected an integer"),
        ({"training": {"batch_size": True}}, "training.batch_size is True; expected an integer"),
        ({"training": {"batch_size": 0}}, "training.batch_size is 0; expected 1 or more"),
        ({"training": {"mixed_precision": "int8"}}, "expected one of bf16, fp16, no"),
        ({"training": {"save_steps": 5, "save_interval": 6}}, "training.save_interval is given twice"),
        ({"training": {"warmup_steps": 5, "warmup_ratio": 0.1}}, "are both given"),
        ({"data": {"cameras": "primary"}}, "data.cameras is 'primary'; expected a list of tables"),
        ({"data": {"cameras": [{"nam": "x"}]}}, "unknown key 'data.cameras[0].nam'; expected one of name, topic"),
        ({"data": {"cameras": [{"name": "a", "width": "w"}]}}, "data.cameras[0].width is 'w'; expected an integer"),
        ({"data": {"train_split": 0.95, "val_split": 0.1}}, "at most 0.9"),
        ({"backend": "gpt"}, "unknown backend 'gpt'; expected one of openvla, openvla-oft, minivla"),
        ({"backend": 3}, "backend is 3"),
        ({"backend": None}, "names no backend"),
        ({3: 4}, "key 3 is not text"),
    ],
)
def test_wrong_files_are_refused_in_one_line(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"backend": "openvla-oft", **mapping})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("seed: [", "is not valid YAML"),
        ("- 3\n", "holds list; expected a table of settings"),
        ("experiment_name: !!python/tuple [a]\n", "is not valid YAML"),
    ],
)
def test_damaged_files_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml") as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*cli config --backend"):
        load_config(tmp_path / "none.yaml")


def test_a_cameras_topic_follows_from_its_name() -> None:
    assert CameraConfig().topic == "/camera/color/image_raw"
    assert CameraConfig(name="wrist").topic == "/camera_wrist/color/image_raw"
    assert CameraConfig(name="wrist", topic="/x").topic == "/x"


def test_a_camera_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="each camera name once"):
        DataConfig(cameras=(CameraConfig(), CameraConfig()))


def test_the_base_config_does_not_guess_a_horizon() -> None:
    with pytest.raises(NotImplementedError, match="VLAConfig does not say its action_horizon"):
        _ = VLAConfig().action_horizon
    assert OpenVLAOFTConfig(openvla_oft=OpenVLAOFTSpecificConfig(action_horizon=5)).action_horizon == 5
