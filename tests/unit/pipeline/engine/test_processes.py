"""Training in several processes: the same result as in one, however they are started and ended."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.objective_configs import ScheduledSamplingConfig
from model.projectors import SparseMixtureConfig
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.training.worker import world_of
from tests.support.forks import FORKS
from tests.support.training_inputs import (
    Choices,
    context_of,
    figures,
    last_checkpoint,
    pretrained,
    run_stage,
    spoil,
    write_inputs,
    write_tied_llama,
)

pytestmark = pytest.mark.timeout(600)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# Every coin says truth, so that two processes, which throw their own, still agree with one.
BOTH_PASSES = ScheduledSamplingConfig(
    decay="linear", start_rate=1 - 1e-7, end_rate=1 - 1e-7, sharpness=1.0, passes=1
)
SPARSE = SparseMixtureConfig(
    reducer="none", tokens=4, experts=3, layers=1, active=2, balance_weight=0.0
)
# Of the job whose one task on each node is the stage itself, as sbatch leaves them.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "phivision",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "localhost",
}
TWO_MACHINES = """
import subprocess, sys
command = [*{torchrun!r}, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
command += ["--rdzv-endpoint", "127.0.0.1:{port}", "--local-addr", "127.0.0.1", *sys.argv[1:]]
agents = [subprocess.Popen(command) for _ in range(2)]
sys.exit(max(agent.wait() for agent in agents))
"""


def torchrun(count: int) -> str:
    return shlex.join([*TORCHRUN, "--standalone", "--nproc-per-node", str(count)])


def two_machines(folder: Path) -> str:
    """A launcher of two agents, each of which takes itself for a machine with one device."""
    from pipeline.engine.processes import _free_port

    script = folder / "launch.py"
    script.write_text(TWO_MACHINES.format(torchrun=TORCHRUN, port=_free_port()))
    return shlex.join([sys.executable, str(script)])


def test_two_processes_on_two_machines_learn_what_one_process_learns(
    inputs: Path, tmp_path: Path
) -> None:
    choices = Choices("finetune", BOTH_PASSES, "lora", epochs=2.0, dropout=0.0)
    one = context_of(inputs, tmp_path / "one")
    two = context_of(inputs, tmp_path / "two", launcher=two_machines(tmp_path))
    assert choices.run(one)["steps"] == choices.run(two)["steps"]
    assert_same_training(one, two)


def assert_same_training(one: StageContext, two: StageContext) -> None:
    alone, together = figures(one), figures(two)
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=2e-4), name
    assert_same_weights(one.scratch.parent, two.scratch.parent)


def assert_same_weights(one: Path, two: Path) -> None:
    ours, theirs = (last_checkpoint(work)["state_dict"] for work in (one, two))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        # A key's bias cancels in the softmax: its gradient is rounding, which Adam enlarges.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(theirs[name], weights, rtol=1e-3, atol=1e-4, msg=name)


def test_a_training_of_one_process_goes_on_in_two_that_share_the_weights(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    choices = Choices(stage="finetune")
    run_stage(inputs, tmp_path / "straight", choices)
    run_stage(inputs, tmp_path / "broken", choices, stop=13)
    choices.run(context_of(inputs, tmp_path / "broken", devices=2, strategy="fsdp"))
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    moments = [
        last_checkpoint(tmp_path / name)["optimizer_states"][0]["state"]
        for name in ("straight", "broken")
    ]
    assert moments[0].keys() == moments[1].keys()
    for name, state in moments[0].items():
        # A moment that had gone to another weight would be wrong by far more.
        torch.testing.assert_close(
            moments[1][name]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-4, msg=name
        )


@pytest.mark.slow
def test_two_processes_share_the_weights_of_a_llama_with_tied_embeddings(tmp_path: Path) -> None:
    root = tmp_path / "inputs"
    write_inputs(root)
    write_tied_llama(root)
    pretrained(root, tmp_path / "before")
    choices = Choices("finetune", method="lora", epochs=1.0, dropout=0.0, targets="all-linear")
    one = context_of(root, tmp_path / "one")
    two = context_of(root, tmp_path / "two", devices=2, strategy="fsdp")
    assert choices.run(one)["steps"] == choices.run(two)["steps"]
    assert_same_training(one, two)
    full = context_of(root, tmp_path / "full", devices=2, strategy="fsdp")
    with pytest.raises(PipelineError, match="embeddings are tied and trained"):
        Choices("finetune", epochs=1.0).run(full)


@pytest.mark.slow
def test_two_processes_end_with_a_killed_stage_and_go_on_bit_for_bit(
    inputs: Path, tmp_path: Path
) -> None:
    choices = Choices(epochs=8.0, projector=SPARSE)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    one, two = context_of(inputs, tmp_path / "one"), context_of(inputs, straight, devices=2)
    assert choices.run(one)["steps"] == choices.run(two)["steps"]
    assert_same_training(one, two)
    stage = FORKS.Process(
        target=run_launched, args=(str(inputs), str(broken), choices, torchrun(2))
    )
    stage.start()
    wait_until(lambda: (broken / "scratch/checkpoints/last.ckpt").is_file())
    assert stage.pid is not None
    assert len(workers_of(broken)) >= 2
    os.kill(stage.pid, signal.SIGKILL)
    stage.join()
    wait_until(lambda: not workers_of(broken))
    assert not (broken / "out/training.parquet").exists()
    choices.run(context_of(inputs, broken, devices=2))
    for name in ("training.parquet", "vision_prefix.safetensors"):
        assert (straight / "out" / name).read_bytes() == (broken / "out" / name).read_bytes()


def run_launched(root: str, work: str, choices: Choices, launcher: str) -> None:
    """The body of a stage that will be killed."""
    choices.run(context_of(Path(root), Path(work), launcher=launcher))


def workers_of(work: Path) -> list[int]:
    """The processes that were given a folder below `work`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"pipeline.training.worker" in command and str(work).encode() in command:
            found.append(int(path.parent.name))
    return found


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_the_one_whose_loss_is_no_number_tells_its_examples(
    tmp_path: Path,
) -> None:
    root = tmp_path / "inputs"
    write_inputs(root, spoilt=5)
    pretrained(root, tmp_path / "pretraining")
    spoil(root)
    context = context_of(root, tmp_path / "work", launcher=torchrun(2))
    with pytest.raises(PipelineError, match="not finite") as caught:
        Choices(stage="finetune").run(context)
    (told,) = [
        path for path in context.scratch.glob("not-finite-*.json") if str(path) in str(caught.value)
    ]
    assert "nan" in told.read_text()
    assert "17" in str(caught.value)  # the conversation about image 5


def test_a_launcher_that_is_none_is_refused_with_its_name(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"launcher no-such-command cannot be started"):
        Choices().run(context_of(inputs, tmp_path, launcher="no-such-command --nnodes 2"))
    with pytest.raises(PipelineError, match="does not set RANK"):
        world_of({})
    uneven = {"RANK": "0", "WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(PipelineError, match="same --nproc-per-node"):
        world_of(uneven)
