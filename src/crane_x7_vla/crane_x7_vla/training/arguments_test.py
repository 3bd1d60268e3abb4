from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

from crane_x7_vla.backends import BACKENDS, config_class
from crane_x7_vla.config.schema import Setting, settings, value_at
from crane_x7_vla.config.yaml import dump_config
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.training.arguments import ConfigCommand, EvaluateCommand, TrainCommand, parse_command
from crane_x7_vla.training.flags import flag_table

NO_ENVIRONMENT: Mapping[str, str] = {}

# Settings whose other values are refused together with the defaults, and one that is accepted.
ACCEPTED = {
    "robot": "other_robot",
    "data.train_split": "0.5",
    "data.cameras": "side,wrist",
    "training.device": "cpu",
    "openvla_oft.n_action_steps": "4",
    "minivla.vq.n_embed": "128",
}
# The same in the block of every backend that has them.
ACCEPTED_OF_BACKENDS = {
    "model_id": "some/other",
    "architecture": "tiny",
    "prompt": "do {instruction}",
    "image_aug.hue": "0.1",
}
# Settings with only one accepted value in this version, that another one must match, or (the last) with a test below.
FIXED = {
    "data.format",
    "openvla_oft.multi_image.num_images",
    "training.resume_from_checkpoint",
}


def parse_train(*argv: str, environ: Mapping[str, str] = NO_ENVIRONMENT) -> TrainCommand:
    command = parse_command(["train", *argv], environ=environ)
    assert isinstance(command, TrainCommand)
    return command


def another_value(setting: Setting) -> str:
    accepted = ACCEPTED.get(setting.path) or ACCEPTED_OF_BACKENDS.get(setting.path.partition(".")[2])
    if accepted is not None:
        return accepted
    kind = setting.type
    if setting.optional:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return next(str(choice) for choice in typing.get_args(kind) if choice != setting.default)
    if typing.get_origin(kind) is tuple:
        return "a_layer,b_layer"
    if kind is int:
        return str((setting.default or 0) + 3)
    if kind is float:
        return str((setting.default or 0.25) / 2 + 0.125)
    return "other"


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_every_flag_changes_the_effective_config_and_nothing_else(backend: str) -> None:
    config_type = config_class(backend)
    default = config_type()
    for flag, setting in flag_table(config_type).items():
        if setting.path in FIXED:
            continue
        if setting.type is bool:
            argv = ["--no-" + flag[2:]] if setting.default else [flag]
        else:
            argv = [flag, another_value(setting)]
        if setting.path == "openvla_oft.multi_image.enabled":
            argv += ["--cameras", "primary"]
        command = parse_train(backend, *argv)
        changed = {p for p in settings(config_type) if value_at(command.config, p) != value_at(default, p)}
        assert setting.path in changed, f"{argv} changed nothing"
        assert changed - {setting.path} <= {"data.cameras"}, f"{argv} changed {changed}"
        assert command.origins[setting.path] == flag


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_every_setting_but_the_backend_has_a_flag(backend: str) -> None:
    config_type = config_class(backend)
    flags = {setting.path for setting in flag_table(config_type).values()}
    assert flags == set(settings(config_type)) - {"backend"}


def test_booleans_have_both_forms() -> None:
    assert parse_train("openvla-oft", "--use-lora").config.openvla_oft.use_lora is True  # pyright: ignore
    assert parse_train("openvla-oft", "--no-use-lora").config.openvla_oft.use_lora is False  # pyright: ignore
    assert parse_train("openvla-oft", "--no-proprio-enabled").config.openvla_oft.proprio.enabled is False  # pyright: ignore


@pytest.mark.parametrize(
    "argv",
    [
        ["--batch-size", "3"],
        ["--batch_size=3"],
        ["--training.batch-size", "3"],
        ["--training.batch_size=3"],
        ["--batch-size", "5", "--batch-size", "3"],
    ],
)
def test_spellings_of_a_flag(argv: list[str]) -> None:
    assert parse_train("openvla-oft", *argv).config.training.batch_size == 3


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-proprio-enabled"],
        ["--proprio_enabled=False"],
        ["--proprio.enabled=false"],
        ["--no-proprio.enabled"],
        ["--openvla_oft.proprio.enabled=0"],
        ["--no-openvla-oft.proprio.enabled"],
        ["--no-proprio"],
        ["--proprio=false"],
        ["--no-openvla_oft.proprio"],
    ],
)
def test_spellings_of_a_switch(argv: list[str]) -> None:
    assert parse_train(*argv, "openvla-oft").config.openvla_oft.proprio.enabled is False  # pyright: ignore


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_block_is_switched_by_its_own_name(backend: str) -> None:
    command = parse_train("--no-image-aug", backend)
    path = f"{command.config.block}.image_aug.enabled"
    assert value_at(command.config, path) is False
    assert command.origins[path] == "--image-aug-enabled"
    assert value_at(parse_train("--no-image-aug-enabled", "--image-aug", backend).config, path) is True


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--save-steps", "500"], "training.save_interval", 500),
        (["--grad-accumulation-steps", "4"], "training.gradient_accumulation_steps", 4),
        (["--learning-rate", "5e-4"], "training.learning_rate", 5e-4),
        (["--max-steps", "none"], "training.max_steps", None),
        (["--warmup-ratio", "0.1"], "training.warmup_ratio", 0.1),
        (["--lora-target", "q_proj, v_proj"], "openvla_oft.lora_target", ("q_proj", "v_proj")),
        (["--lora-target", "[q_proj]"], "openvla_oft.lora_target", ("q_proj",)),
        (["--instruction", "Pick and place the object"], "data.instruction", "Pick and place the object"),
    ],
)
def test_documented_values(argv: list[str], path: str, value: object) -> None:
    assert value_at(parse_train("openvla-oft", *argv).config, path) == value


def test_cameras_are_named_or_written_as_yaml() -> None:
    named = parse_train("openvla-oft", "--cameras", "primary,side").config.data.cameras
    assert [camera.topic for camera in named] == ["/camera/color/image_raw", "/camera_side/color/image_raw"]
    written = parse_train(
        "openvla-oft", "--cameras", "[{name: a, width: 64}, {name: b, topic: /b}]"
    ).config.data.cameras
    assert (written[0].width, written[1].topic) == (64, "/b")


def test_flags_win_over_the_file_which_wins_over_the_environment_and_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("backend: openvla-oft\ndata: {data_root: of_file}\ntraining: {batch_size: 3, max_steps: 5}\n")
    environ = {"VLA_OUTPUT_DIR": "of_env", "VLA_DATA_ROOT": "of_env", "WANDB_MODE": "disabled"}
    command = parse_train("--config", str(file), "--batch-size", "7", environ=environ)
    config, origins = command.config, command.origins
    assert (config.training.batch_size, origins["training.batch_size"]) == (7, "--batch-size")
    assert (config.training.max_steps, origins["training.max_steps"]) == (5, str(file))
    assert (config.data.data_root, origins["data.data_root"]) == ("of_file", str(file))
    assert (config.output_dir, origins["output_dir"]) == ("of_env", "VLA_OUTPUT_DIR")
    assert (config.seed, origins["seed"]) == (42, "default")
    assert not config.training.use_wandb
    assert parse_train("openvla-oft", environ={"WANDB_MODE": "offline"}).config.training.use_wandb


def test_a_flag_replaces_the_files_other_way_to_say_the_warmup(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("backend: openvla-oft\ntraining: {warmup_steps: 100}\n")
    training = parse_train("--config", str(file), "--warmup-ratio", "0.1").config.training
    assert (training.warmup_steps, training.warmup_ratio) == (None, 0.1)
    with pytest.raises(ConfigError, match="are both given"):
        parse_train("openvla-oft", "--warmup-steps", "5", "--warmup-ratio", "0.1")


@pytest.mark.parametrize(
    "argv",
    [
        ["openvla-oft"],
        ["--backend", "openvla-oft"],
        ["--backend=openvla_oft"],
        ["oft", "--backend", "openvla-oft"],
        ["--batch-size", "3", "openvla-oft"],
        ["--gradient-checkpointing", "openvla-oft"],
        ["--no-use-lora", "openvla-oft"],
        ["--print-config", "openvla-oft"],
    ],
)
def test_the_backend_may_be_named_in_several_ways(argv: list[str]) -> None:
    assert parse_train(*argv).config.backend == "openvla-oft"


def test_backends_that_disagree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import crane_x7_vla.backends as table

    monkeypatch.setattr(table, "BACKENDS", {**BACKENDS, "other": BACKENDS["openvla-oft"]})
    with pytest.raises(
        ConfigError, match="the backends differ: the first argument says openvla-oft, --backend says oth"
    ):
        parse_train("openvla-oft", "--backend", "other")
    file = tmp_path / "run.yaml"
    file.write_text("backend: other\n")
    with pytest.raises(ConfigError, match=r"the backends differ: .*run\.yaml says other"):
        parse_train("openvla-oft", "--config", str(file))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command; expected one of train, train-vq, config, evaluate, backends"),
        (
            ["trian"],
            "unknown command 'trian'; expected one of train, train-vq, config, evaluate, backends; did you mean",
        ),
        (["train"], f"no backend given; expected one of {', '.join(BACKENDS)}; type for instance: python -m"),
        (["config"], "no backend given"),
        (["train", "gpt"], f"unknown backend 'gpt'; expected one of {', '.join(BACKENDS)}"),
        (["train", "openvla-oft", "--lora-rnak", "3"], "unknown argument '--lora-rnak'; did you mean '--lora-rank'?"),
        (["train", "openvla-oft", "extra"], "unknown argument 'extra'"),
        (["train", "openvla-oft", "--batch-size"], "expected one argument"),
        (["train", "openvla-oft", "--batch-size", "x"], "--batch-size is 'x'; expected an integer"),
        (["train", "openvla-oft", "--batch-size", "0"], "training.batch_size is 0; expected 1 or more"),
        (["train", "openvla-oft", "--lr-schedule", "step"], "expected one of constant, cosine"),
        (["train", "openvla-oft", "--use-lora=maybe"], "--use-lora is 'maybe'; expected true or false"),
        (["train", "openvla-oft", "--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["train", "openvla-oft", "--cameras", "[{"], "expected YAML"),
        (["evaluate"], "the following arguments are required: --checkpoint"),
        (["evaluate", "--checkpoint", "nowhere"], "no config.yaml in nowhere; expected a checkpoint-N directory"),
        (["backends", "--all"], "unknown argument '--all'"),
    ],
)
def test_errors_are_one_line_that_says_what_to_type(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_command(argv, environ=NO_ENVIRONMENT)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Command lines of the documents about commands and backends that exist; {config} is a file of openvla-oft.
DOCUMENTED = [
    "train openvla-oft --data-root /workspace/data/tfrecord_logs --experiment-name crane_x7_openvla_oft",
    "train openvla-oft --data-root /workspace/data/tfrecord_logs --experiment-name my_experiment",
    "train openvla-oft --config {config}",
    "train openvla-oft --config {config} --batch-size 32 --learning-rate 1e-4",
    "train openvla-oft --data-root /workspace/data/tfrecord_logs --experiment-name multi_gpu_experiment",
    "train openvla-oft --data-root /workspace/data/tfrecord_logs --batch-size 8",
    "train openvla-oft --batch-size 8",
    "config --backend openvla-oft --output openvla_oft_config.yaml",
    "config --backend openvla-oft --output openvla_config.yaml --data-root /workspace/data/tfrecord_logs "
    "--experiment-name my_experiment",
    "config --backend openvla-oft --output openvla_config.yaml --data-root ./data/tfrecord_logs",
    "train --config {config}",
    "train --backend openvla-oft --data-root /workspace/data/tfrecord_logs --experiment-name crane_x7_openvla "
    "--batch-size 16 --learning-rate 5e-4 --num-epochs 100",
    "train --backend openvla-oft --data-root ./data/tfrecord_logs --experiment-name my_experiment --batch-size 16 "
    "--learning-rate 5e-4 --num-epochs 100",
    "train --backend openvla-oft --data-root /workspace/data/tfrecord_logs",
    "train --backend openvla-oft --data-root /workspace/data/tfrecord_logs --batch-size 8 --learning-rate 5e-4",
    "train --backend openvla-oft --data-root /workspace/data/tfrecord_logs --use-wandb --wandb-project "
    "crane-x7-openvla --wandb-entity YOUR_USERNAME",
    "train --backend openvla-oft --batch-size 4",
    "train --backend openvla-oft --batch-size 4 --grad-accumulation-steps 4",
    "train --backend openvla-oft --gradient-checkpointing",
    "train --backend openvla-oft --lora-rank 16",
    "train --backend openvla-oft --resume-from-checkpoint {checkpoint}",
    "train --backend openvla-oft --instruction pick --num-epochs 3 --warmup-ratio 0.1 --use-lora --lora-rank 32 "
    "--lora-alpha 64 --lora-dropout 0.1 --output-dir /workspace/outputs --save-steps 500 --max-steps 7",
    "evaluate --config {config} --checkpoint {checkpoint} --test-data ./data/test",
    "backends",
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_command_lines_parse(line: str, tmp_path: Path) -> None:
    text = dump_config(config_class("openvla-oft")())
    config, checkpoint = tmp_path / "openvla_config.yaml", tmp_path / "checkpoint-1000"
    config.write_text(text, encoding="utf-8")
    checkpoint.mkdir()
    (checkpoint / "config.yaml").write_text(text, encoding="utf-8")
    parse_command(line.format(config=config, checkpoint=checkpoint).split(), environ=NO_ENVIRONMENT)


def test_config_takes_settings_and_an_output(tmp_path: Path) -> None:
    command = parse_command(["config", "--backend", "oft", "--output", "x.yaml", "--lora-rank", "8"], environ={})
    assert isinstance(command, ConfigCommand)
    assert command.output == Path("x.yaml")
    assert value_at(command.config, "openvla_oft.lora_rank") == 8


def test_help_shows_every_setting_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_command(["train", "openvla-oft", "--help"], environ=NO_ENVIRONMENT)
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for flag, setting in flag_table(config_class("openvla-oft")).items():
        assert flag in shown
        assert " ".join(setting.doc.split()) in shown
    assert "--save-steps" in shown


def test_help_without_a_backend_lists_the_backends(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["train", "--help"], ["config", "-h"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            parse_command(argv, environ=NO_ENVIRONMENT)
        assert stopped.value.code == 0
    assert "openvla-oft" in capsys.readouterr().out


def test_evaluation_takes_the_model_from_the_checkpoint_and_the_rest_from_file_and_flags(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    trained = parse_train("openvla-oft", "--lora-rank", "8", "--batch-size", "3").config
    (checkpoint / "config.yaml").write_text(dump_config(trained), encoding="utf-8")
    file = tmp_path / "other.yaml"
    file.write_text("backend: openvla-oft\nopenvla_oft: {lora_rank: 4}\ntraining: {batch_size: 5, device: cpu}\n")
    command = parse_command(
        ["evaluate", "--config", str(file), "--checkpoint", str(checkpoint), "--batch-size", "6"], environ={}
    )
    assert isinstance(command, EvaluateCommand)
    config = command.config
    assert value_at(config, "openvla_oft.lora_rank") == 8
    assert (config.training.batch_size, config.training.device) == (6, "cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """checkpoint-1000 of an experiment with settings of its own."""
    folder = tmp_path / "outputs" / "mine" / "checkpoint-1000"
    folder.mkdir(parents=True)
    trained = parse_train(
        "openvla-oft", "--lora-rank", "8", "--batch-size", "3", "--experiment-name", "old_name"
    ).config
    (folder / "config.yaml").write_text(dump_config(trained), encoding="utf-8")
    return folder


def test_a_run_goes_on_with_the_settings_and_in_the_folder_of_its_checkpoint(checkpoint: Path) -> None:
    for argv in (["openvla-oft"], []):
        command = parse_train(*argv, "--resume-from-checkpoint", str(checkpoint), "--batch-size", "5")
        config, origins = command.config, command.origins
        assert value_at(config, "openvla_oft.lora_rank") == 8
        assert origins["openvla_oft.lora_rank"] == str(checkpoint / "config.yaml")
        assert (config.training.batch_size, origins["training.batch_size"]) == (5, "--batch-size")
        assert config.training.resume_from_checkpoint == str(checkpoint)
        assert Path(config.output_dir) / config.experiment_name == checkpoint.parent


def test_latest_is_the_newest_checkpoint_of_the_experiment(checkpoint: Path) -> None:
    outputs = str(checkpoint.parents[1])
    argv = ["openvla-oft", "--output-dir", outputs, "--resume-from-checkpoint", "latest"]
    assert value_at(parse_train(*argv, "--experiment-name", "mine").config, "openvla_oft.lora_rank") == 8
    with pytest.raises(CheckpointError, match=r"no checkpoint under .*crane_x7_vla to resume from"):
        parse_train(*argv)


def test_a_base_model_on_this_machine_is_kept_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    kept = parse_train("openvla-oft", "--model-id", "models/tiny").config
    assert value_at(kept, "openvla_oft.model_id") == str(tmp_path / "models" / "tiny")
    assert value_at(parse_train("openvla-oft").config, "openvla_oft.model_id") == "openvla/openvla-7b"
    written = parse_command(["config", "openvla-oft", "--model-id", "models/tiny"], environ={})
    assert isinstance(written, ConfigCommand)
    assert value_at(written.config, "openvla_oft.model_id") == "models/tiny"
    with pytest.raises(CheckpointError, match=r"base model \./models/tinny is not a directory"):
        parse_train("openvla-oft", "--model-id", "./models/tinny")


def test_a_checkpoint_whose_config_somebody_shortened_is_resumed_from(checkpoint: Path) -> None:
    (checkpoint / "config.yaml").write_text("backend: openvla-oft\ntraining: {batch_size: 3}\n")
    assert parse_train("--resume-from-checkpoint", str(checkpoint)).config.training.batch_size == 3


def test_an_experiment_in_place_of_a_checkpoint_names_the_newest(checkpoint: Path) -> None:
    (checkpoint.parent / "config.yaml").write_text((checkpoint / "config.yaml").read_text())
    for argv in (
        ["evaluate", "--checkpoint", str(checkpoint.parent)],
        ["train", "openvla-oft", "--resume-from-checkpoint", str(checkpoint.parent)],
    ):
        with pytest.raises(CheckpointError, match=r"experiment; name one of its checkpoints: .*checkpoint-1000$"):
            parse_command(argv, environ={})


def test_a_checkpoint_that_cannot_be_resumed_from_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no config.yaml in .*checkpoint-1000"):
        parse_train("openvla-oft", "--resume-from-checkpoint", str(checkpoint))
    with pytest.raises(CheckpointError, match=r"no checkpoint nowhere"):
        parse_train("openvla-oft", "--resume-from-checkpoint", "nowhere")
