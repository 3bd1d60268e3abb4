from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
from crane_x7_vla.data.tfrecord import RecordFile
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.training.logs import MetricLog, ProgressDisplay, check_wandb

FAKE_WANDB = """
import json
class Run:
    def __init__(self, **settings):
        self.file = open(settings["dir"] + "/wandb.jsonl", "a")
        self.say(settings)
    def say(self, value):
        self.file.write(json.dumps(value) + "\\n")
        self.file.flush()
    def log(self, metrics, step):
        self.say({"step": step, **metrics})
    def finish(self):
        self.say("finished")
def init(**settings):
    return Run(**settings)
"""


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    found: list[tuple[int, dict[str, float]]] = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for payload in RecordFile(file):
            event = Event.FromString(payload)
            found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
    return found


def test_metrics_go_to_the_json_lines_and_to_tensorboard(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, OpenVLAOFTConfig.tiny(), first_step=0)
    log.write(1, {"train/loss": 0.5})
    log.write(2, {"train/loss": 0.25, "eval/loss": 1.0})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": 0.25, "eval/loss": 1.0},
    ]
    log.close()
    assert events(tmp_path / "tensorboard") == [
        (0, {}),
        (1, {"train/loss": 0.5}),
        (2, {"train/loss": 0.25, "eval/loss": 1.0}),
    ]


def test_a_resumed_run_drops_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, OpenVLAOFTConfig.tiny(), first_step=0)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    log = MetricLog(tmp_path, OpenVLAOFTConfig.tiny(), first_step=2)
    log.write(3, {"train/loss": 33.0})
    log.close()
    assert [line["train/loss"] for line in lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 33.0]  # pyright: ignore
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime)
    start = [Event.FromString(payload) for payload in RecordFile(files[-1])][1]
    assert (start.step, start.HasField("session_log")) == (3, True)  # TensorBoard drops steps from 3 on


def test_tensorboards_own_reader_accepts_the_file(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, OpenVLAOFTConfig.tiny(), first_step=0)
    log.write(7, {"eval/loss": 0.125})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    reader = PyRecordReader_New(str(file))  # checks lengths and checksums; needs no TensorFlow
    loaded: list[Event] = []
    for _ in range(2):
        reader.GetNext()
        loaded.append(Event.FromString(reader.record()))
    assert loaded[0].file_version == "brain.Event:2"
    assert (loaded[1].step, loaded[1].summary.value[0].tag) == (7, "eval/loss")


def test_wandb_that_the_environment_switches_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny = OpenVLAOFTConfig.tiny()
    config = replace(tiny, training=replace(tiny.training, use_wandb=True))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(ConfigError, match="WANDB_MODE=disabled"):
        check_wandb(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb(config)


def test_wandb_gets_the_config_and_the_same_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tiny = OpenVLAOFTConfig.tiny()
    config = replace(tiny, training=replace(tiny.training, use_wandb=True, wandb_project="p", wandb_entity="e"))
    log = MetricLog(tmp_path, config, first_step=0)
    log.write(3, {"eval/loss": 0.5})
    log.close()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    settings, metrics, end = lines(tmp_path / "wandb.jsonl")
    assert isinstance(settings, dict)
    assert (settings["project"], settings["entity"], settings["name"]) == ("p", "e", config.experiment_name)
    assert settings["config"]["openvla_oft.lora_rank"] == config.openvla_oft.lora_rank
    assert metrics == {"step": 3, "eval/loss": 0.5}
    assert end == "finished"


def test_without_a_terminal_progress_is_a_line_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    display = ProgressDisplay(100, first_step=0, visible=True)
    display.step(10)
    display.show(10, {"train/loss": 0.123456}, seconds_left=125.4)
    display.close()
    assert "step 10/100  loss 0.1235  2:05 left" in caplog.text
    caplog.clear()
    ProgressDisplay(100, first_step=0, visible=False).show(10, {"train/loss": 1.0}, seconds_left=1)
    assert not caplog.text
