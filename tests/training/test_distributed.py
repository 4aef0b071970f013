"""Several processes of one run, talking over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import PATIENCE_S

from training.config import TrainingConfig, load_config
from training.distributed import ALONE, Ranks
from training.run.checkpoint import CheckpointFolder
from training.run.progress import LOG_FILE
from training.run.run import RunOptions, train

ROOT = Path(__file__).parents[2]
PART = Path(__file__).with_name("distributed_part.py")
OVERRIDES = [
    "schedule.batch_size=4",
    "schedule.steps=6",
    "schedule.validate_every=6",
    "schedule.save_every=2",
]
SEVERAL_STARTS_S = 10 * PATIENCE_S


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def together(config_file: Path, out: Path, *overrides: str, processes: int = 2) -> None:
    """Run all processes of a run to its end."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(PART), str(config_file), str(out), *overrides],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=SEVERAL_STARTS_S)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)


def last(out: Path) -> dict[str, Any]:
    state = CheckpointFolder(out / "checkpoints").load("last")
    assert state is not None
    return state


def same_weights(one: dict[str, Any], other: dict[str, Any], *, part: str = "network") -> bool:
    # Statistics of batches differ: the first process saw its own parts only. To publish, they are measured.
    keys = [key for key in one[part] if "running_" not in key and "num_batches" not in key]
    return all(torch.equal(one[part][key], other[part][key]) for key in keys)


def test_two_processes_learn_bit_for_bit_what_one_does_in_two_parts(
    config_file: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    together(config_file, tmp_path / "two", *OVERRIDES)
    alone = load_config(str(config_file), [*OVERRIDES, "schedule.accumulate=2"])
    assert train(alone, RunOptions(tmp_path / "one"))
    assert same_weights(last(tmp_path / "two"), last(tmp_path / "one"))
    scores = [
        [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == "validation"]
        for path in (tmp_path / name / LOG_FILE for name in ("two", "one"))
    ]
    assert [one["iou"] for one in scores[0]] == [one["iou"] for one in scores[1]]
    report = json.loads((tmp_path / "two/report/report.json").read_text())
    assert report["evaluation"]["images"] == 2
    assert config.schedule.accumulate == 1


@pytest.mark.soak
def test_a_killed_process_takes_all_back_to_the_last_checkpoint_and_nothing_is_lost(
    config_file: Path, tmp_path: Path
) -> None:
    overrides = [*OVERRIDES, "schedule.steps=60"]
    together(config_file, tmp_path / "straight", *overrides)
    options = ["--standalone", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=2", "-m", "training"]
    sets = [word for override in overrides for word in ("--set", override)]
    command = ["train", str(config_file), "--out", str(tmp_path / "killed"), "--resume", *sets]
    program = [sys.executable, "-m", "torch.distributed.run", *options, *command]
    with subprocess.Popen(program, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as agent:
        _kill_a_worker_after_a_checkpoint(agent.pid, tmp_path / "killed/checkpoints")
        assert agent.wait(SEVERAL_STARTS_S) == 0
    straight, killed = last(tmp_path / "straight"), last(tmp_path / "killed")
    assert same_weights(straight, killed)
    assert same_weights(straight, killed, part="average")
    events = [json.loads(line)["event"] for line in (tmp_path / "killed" / LOG_FILE).read_text().splitlines()]
    assert events.count("start") >= 2
    assert "resume" in events


def _kill_a_worker_after_a_checkpoint(agent: int, checkpoints: Path) -> None:
    given_up_s = time.monotonic() + SEVERAL_STARTS_S
    while not list(checkpoints.glob("last-*.pt")):
        assert time.monotonic() < given_up_s
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (7, 4), (2, 3), (0, 2)])
def test_work_is_shared_without_padding(count: int, world: int) -> None:
    shares = [list(Ranks(rank, world).share(count)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(count))


def test_alone_nothing_is_asked() -> None:
    cpu = torch.device("cpu")
    assert ALONE.any(flag=True, device=cpu)
    assert ALONE.from_first([1.5], cpu) == [1.5]
    assert ALONE.texts("mine", cpu) == ["mine"]
    ALONE.wait_for_all()
