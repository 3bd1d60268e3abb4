"""How long a policy takes to answer: ``python -m crane_x7_vla.benchmarks.inference``.

Measures ``policy.infer`` from the cameras' images to joint targets in rad, and writes beside it what the device could
do at best. Weights are random, as trained ones take no other time, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from crane_x7_vla.backends.base import Backend
from crane_x7_vla.backends.device import chosen_device, torch_device
from crane_x7_vla.backends.prismatic_config import PrismaticVLAConfig
from crane_x7_vla.benchmarks.floor import Operations, floor_seconds, measure_rates
from crane_x7_vla.benchmarks.subject import (
    add_config_arguments,
    chosen_config,
    observations,
    random_backend,
    random_model,
    without_base,
)
from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.precision import autocast_type
from crane_x7_vla.policies.policy import LocalPolicy
from crane_x7_vla.training.preflight import check_file
from crane_x7_vla.types import Observation

_WARM_UPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, as in the JSON file.

    graph: whether calls ran on static memory, on a GPU as one CUDA graph. images, prompt_tokens: of one observation;
    prompt_tokens with what follows the prompt, such as slots for actions. actions: rows of a chunk.
    peak_memory_bytes: on a GPU what torch had reserved, on a CPU of the process. flops, weight_bytes: of one call,
    weights read again for each token. floor_ms: see ``floor``; bandwidth_ms and compute_ms: of one of the two alone.
    """

    backend: str
    architecture: str
    device: str
    dtype: str
    torch: str
    threads: int
    graph: bool
    batch: int
    images: int
    prompt_tokens: int
    actions: int
    joints: int
    parameters: int
    calls: int
    median_ms: float
    p95_ms: float
    peak_memory_bytes: int
    weight_bytes: int
    flops: int
    bandwidth_bytes_per_s: float
    compute_flop_per_s: float
    bandwidth_ms: float
    compute_ms: float
    floor_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``."""
    return run_command(lambda: _run(_parser().parse_args(argv)), interrupted="interrupted; nothing was written")


def _run(arguments: argparse.Namespace) -> int:
    config = chosen_config(arguments)
    device = torch_device(chosen_device(arguments.device))
    for name in ("calls", "batch", "prompt_multiple", "height", "width"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    output: Path = arguments.output or _default_output(arguments, config, device)
    check_file(output, option="--output")
    report = measure(
        without_base(config),
        device=device,
        graph=not arguments.eager,
        calls=arguments.calls,
        batch=arguments.batch,
        prompt_multiple=arguments.prompt_multiple,
        height=arguments.height,
        width=arguments.width,
        instruction=arguments.instruction,
    )
    Console().print(table(report))
    output.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    print(f"done: {output}")
    return 0


def _default_output(arguments: argparse.Namespace, config: PrismaticVLAConfig, device: torch.device) -> Path:
    name = config.backend if arguments.config is None else arguments.config.stem
    variant = "_tiny" * arguments.tiny + "_eager" * arguments.eager
    return Path(f"inference_{name}{variant}_{device.type}.json")


def measure(
    config: PrismaticVLAConfig,
    *,
    device: torch.device,
    graph: bool,
    calls: int,
    batch: int,
    prompt_multiple: int,
    height: int,
    width: int,
    instruction: str,
) -> Report:
    """Build, warm up, measure. config: of random weights. height, width: of the cameras' images."""
    precision = config.training.mixed_precision if device.type == "cuda" else "no"  # as LocalPolicy runs it
    dtype = autocast_type(precision) or torch.float32
    backend = random_backend(config)
    # Joining weights takes memory that no call needs.
    model = backend.for_inference(random_model(backend, device=device, dtype=dtype))
    _forget_peak(device)
    policy = LocalPolicy(backend, model, device=str(device), graph=graph, prompt_multiple=prompt_multiple)
    asked = observations(
        backend.spec, policy.spec.robot, count=batch, height=height, width=width, instruction=instruction
    )
    times = _latencies(policy, asked, calls)
    peak = _peak_bytes(device)

    # What a call does is counted on the plain path: a graph's replay shows nothing of it.
    with Operations(model) as operations:
        LocalPolicy(backend, model, device=str(device)).infer(asked)
    rates = measure_rates(device, dtype)
    flops = sum(operation.flops for operation in operations.list)
    weight_bytes = sum(operation.weight_bytes for operation in operations.list)
    return Report(
        backend=config.backend,
        architecture=config.settings.architecture,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        graph=graph,
        batch=batch,
        images=len(backend.spec.cameras) * (backend.spec.history + 1),
        prompt_tokens=_prompt_tokens(backend, asked, prompt_multiple if graph else 1),
        actions=backend.spec.action_horizon,
        joints=policy.spec.robot.size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        calls=calls,
        median_ms=float(np.median(times)) * 1e3,
        p95_ms=float(np.percentile(times, 95)) * 1e3,
        peak_memory_bytes=peak,
        weight_bytes=weight_bytes,
        flops=flops,
        bandwidth_bytes_per_s=rates.bandwidth,
        compute_flop_per_s=rates.compute,
        bandwidth_ms=weight_bytes / rates.bandwidth * 1e3,
        compute_ms=flops / rates.compute * 1e3,
        floor_ms=floor_seconds(operations.list, rates) * 1e3,
    )


def table(report: Report) -> Table:
    """The report for a terminal."""
    on = f"{report.device}, {report.dtype}" + ("" if report.graph else ", eager")
    shown = Table(title=f"{report.backend} ({report.architecture}) on {on}", show_header=False)
    shown.add_column("")
    shown.add_column("", justify="right")
    rows = {
        "latency, median": f"{report.median_ms:.2f} ms",
        "latency, 95th percentile": f"{report.p95_ms:.2f} ms",
        "actions of a call": f"{report.actions} x {report.joints} joints, batch {report.batch}",
        "images, tokens of text": f"{report.images}, {report.prompt_tokens}",
        "peak memory": f"{report.peak_memory_bytes / 2**30:.2f} GiB",
        "parameters": f"{report.parameters / 1e6:.1f} M",
        "floor": f"{report.floor_ms:.2f} ms",
        "  weights read": (
            f"{report.weight_bytes / 1e9:.3f} GB / {report.bandwidth_bytes_per_s / 1e9:.0f} GB/s "
            f"= {report.bandwidth_ms:.2f} ms"
        ),
        "  arithmetic": (
            f"{report.flops / 1e9:.1f} GFLOP / {report.compute_flop_per_s / 1e12:.2f} TFLOP/s "
            f"= {report.compute_ms:.2f} ms"
        ),
        "latency / floor": f"{report.median_ms / report.floor_ms:.2f}",
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _latencies(policy: LocalPolicy, asked: list[Observation], calls: int) -> np.ndarray:
    """float64 [calls] s. A call ends when its joint targets are on the host, so nothing of the GPU's work is missed."""
    times = np.empty(calls)
    for call in range(-_WARM_UPS, calls):
        start = time.perf_counter()
        policy.infer(asked)
        if call >= 0:
            times[call] = time.perf_counter() - start
    return times


def _prompt_tokens(backend: Backend, asked: list[Observation], multiple: int) -> int:
    samples = [backend.processor.encode_raw(observation) for observation in asked]
    return backend.processor.collate(samples, multiple=multiple)["input_ids"].shape[1]


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla.benchmarks.inference", description="How long a policy takes to answer."
    )
    add_config_arguments(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=50, metavar="N", help="calls measured (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="observations of a call (default: 1)")
    parser.add_argument(
        "--eager", action="store_true", help="without static memory, CUDA graphs and image preprocessing on the device"
    )
    parser.add_argument(
        "--prompt-multiple",
        type=int,
        default=1,
        metavar="N",
        help="pad prompts to a multiple of that many tokens; fewer graphs for many instructions (default: 1)",
    )
    parser.add_argument("--height", type=int, default=480, help="of the cameras' images, pixels (default: 480)")
    parser.add_argument("--width", type=int, default=640, help="of the cameras' images, pixels (default: 640)")
    parser.add_argument("--instruction", default="pick up the red cube", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file (default: named by what is measured)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
