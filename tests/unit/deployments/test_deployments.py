"""Deployments name the presets and nothing else; what a flow can be told is typed."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from flows.runner.parameters import Overrides, SettingValues
from pipeline.recipe.presets import PRESETS
from pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]


def test_there_is_a_deployment_of_every_preset_and_a_nightly_one() -> None:
    deployed = [name for name in PRESETS if name != "photos"]  # which has local weights
    assert [each["name"] for each in deployments()] == [*deployed, "nightly"]
    for each in deployments():
        assert set(each["parameters"]) == {"preset"}
        assert each["parameters"]["preset"] in PRESETS


def test_entry_points_are_dotted_and_there() -> None:
    from prefect import Flow

    for each in deployments():
        module, _, name = each["entrypoint"].rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), Flow)


def refused(**parameters: object) -> list[str]:
    """Return what a server says about the parameters of a run."""
    from prefect.utilities.schema_tools import is_valid_schema, validate

    from flows.full_pipeline import full_pipeline

    schema = full_pipeline.parameters.model_dump_for_openapi()
    is_valid_schema(schema)
    return [error.message for error in validate(parameters, schema)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_a_preset_can_be_overridden_with_its_own_value(preset: str) -> None:
    leaves = json.loads(json.dumps(dict(PRESETS[preset].leaves())))
    assert not refused(overrides=leaves)
    patterns = TypeAdapter(Overrides).json_schema()["patternProperties"]
    assert all(any(re.match(each, path) for each in patterns) for path in leaves)


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({"pretrain.learning_rate": -1}, False),
        ({"images.source.kind": "x"}, False),
        ({"seed": "one"}, False),
        ({"examples.filters.too long": "tokens > 99", "seed": 1}, True),
        ({"examples.filters": {"too long": "tokens > 99"}}, True),
        ({"examples.filters.too long": 99}, False),
    ],
)
def test_a_server_checks_the_values_of_fields(changes: dict[str, object], fine: bool) -> None:
    assert (not refused(overrides=changes)) is fine


def test_settings_are_those_of_the_settings() -> None:
    schema = TypeAdapter(SettingValues).json_schema()
    assert set(schema["patternProperties"]) == {f"^{name}$" for name in Settings.model_fields}
    assert not refused(settings={"device": "cpu", "judge": False})
    assert refused(settings={"judge": "perhaps"})


def test_a_misspelt_setting_is_told_with_the_nearest_one() -> None:
    from flows.full_pipeline import run_settings
    from pipeline.errors import PipelineError

    with pytest.raises(PipelineError, match=r"no setting 'stroe'[\s\S]*did you mean store\?"):
        run_settings({"stroe": "/srv"})


def test_a_form_sends_only_what_was_typed() -> None:
    from flows.full_pipeline import full_pipeline
    from flows.retrain import retrain

    for flow in (full_pipeline, retrain):
        properties = flow.parameters.model_dump_for_openapi()["properties"]
        for name in ("overrides", "settings"):
            # A form sends false for each switch among properties, and null is a type of its own.
            assert not {"properties", "anyOf", "$ref"} & set(properties[name])
            assert properties[name]["default"] == {}


def test_a_server_for_other_machines_needs_a_password() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.server", "--host", "0.0.0.0"],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "PREFECT_SERVER_API_AUTH_STRING" in done.stderr


def test_a_relative_store_is_refused_under_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.full_pipeline import run_settings
    from pipeline.errors import PipelineError

    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "x")
    with pytest.raises(PipelineError, match="PHIVISION_STORE"):
        run_settings({"store": ".phivision"})
    assert run_settings({"store": "/srv/store"}).store == "/srv/store"


def test_a_runs_name_says_what_was_changed() -> None:
    from flows.runner.ui_artifacts import run_title

    changes = {"seed": 1, "pretrain.epochs": 2, "finetune.epochs": 3}
    assert run_title({"preset": "demo", "overrides": None}) == "demo"
    title = run_title({"preset": "demo", "overrides": changes, "rerun": ["publish"]})
    assert title == "demo · seed=1 · pretrain.epochs=2 · +1 more · rerun publish"
    secret = {"conversations.source.path": "https://host/a.json?key=s3cret"}
    assert "s3cret" not in run_title({"preset": "demo", "overrides": secret})
