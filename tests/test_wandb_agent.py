"""What the agent of a W&B sweep types, on this command line. The agent's own code makes the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb.wandb_agent
import yaml

from src.config.before_hydra import as_typed_by_agent
from tests.conftest import QUICK, ROOT, compose_config, wandb_run
from tests.forked import run_forked


@pytest.fixture
def agent_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command and the environment with which an agent starts a run of our sweep with these parameters."""

    def make(**parameters: Any) -> tuple[list[str], dict[str, str]]:
        started = []
        monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", lambda **kwargs: started.append(kwargs) or Process())
        sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
        agent = wandb.wandb_agent.Agent.__new__(wandb.wandb_agent.Agent)
        agent._sweep_command, agent._run_processes = sweep["command"], {}
        agent._in_jupyter, agent._function, agent._forward_signals = False, None, False
        arguments = {name: {"value": value} for name, value in parameters.items()}
        agent._command_run({"run_id": "abc123", "program": sweep["program"], "args": arguments})
        return started[0]["command"], started[0]["env"]

    class Process:
        pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(name, "")
    return make


def test_a_run_of_an_agent(agent_runs: Any, tmp_path: Path) -> None:
    parameters = {
        "model.optimizer_g.lr": 1e-05,
        "model/objective": "hinge",
        "model.spectral_norm": False,
        "model.ema_half_life": None,
        "model.optimizer_d": {"betas": [0.0, 0.99], "lr": 0.0003},
        "trainer": {"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 1},
        "notes": "a first try, {with} brackets",
        "tags": ["a b", "c"],
    }
    command, environment = agent_runs(**parameters)
    assert command[:4] == ["/usr/bin/env", "python", "run.py", "experiment=train_mnist_gan"]
    quick = [*QUICK, "test_after_training=false", "callbacks.quality=null", "optimized_metric=null"]
    done = run_forked(*command[3:], *quick, "callbacks.model_checkpoint.monitor=null", cwd=tmp_path, **environment)

    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("logs/runs/*/*")
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    model = config["model"]
    assert (model["optimizer_g"]["lr"], model["optimizer_d"]["lr"]) == (1e-05, 0.0003)
    assert (model["spectral_norm"], model["ema_half_life"]) == (False, None)
    assert model["optimizer_d"]["betas"] == [0.0, 0.99]
    assert model["loss"]["_target_"] == "src.models.losses.HingeLoss"
    assert config["notes"] == "a first try, {with} brackets"
    assert config["tags"][:2] == ["a b", "c"]
    assert list(run.glob("wandb/offline-run-*-abc123"))
    assert wandb_run(run)["state"] == "finished"


def test_only_an_agents_arguments_are_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["notes=None", "a={'b': 1}", "tags=['x']"]
    assert as_typed_by_agent(arguments) == arguments
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert as_typed_by_agent([*arguments, "notes=[draft", "-m"]) == [
        "notes=null",
        "a.b=1",
        'tags=["x"]',
        "notes=[draft",
        "-m",
    ]


def test_our_sweep_has_keys_that_exist() -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    for key, values in sweep["parameters"].items():
        for value in values.get("values", [values.get("min")]):
            assert compose_config("train", *(each for each in sweep["command"] if "=" in each), f"{key}={value}")
