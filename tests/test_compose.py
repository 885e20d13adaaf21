"""What docker-compose.yaml promises, as far as it shows without Docker; test_mlflow.py runs its commands."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(TEXT)["services"]


def test_the_services_are_a_server_a_database_and_a_store(services: dict[str, Any]) -> None:
    assert services.keys() == {"database", "s3", "mlflow"}
    assert "postgres" in services["database"]["image"] and "seaweedfs" in services["s3"]["image"]


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), name


def test_every_service_has_a_health_check_and_waits_for_those_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
    needed = services["mlflow"]["depends_on"]
    assert {name: how["condition"] for name, how in needed.items()} == dict.fromkeys(
        ["database", "s3"], "service_healthy"
    )


def test_only_this_machine_can_reach_it(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 1
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_bucket_that_is_used_is_the_one_that_is_made(services: dict[str, Any]) -> None:
    (made,) = (word.partition("=")[2] for word in services["s3"]["command"] if word.startswith("-bucket="))
    assert f"--artifacts-destination=s3://{made}" in services["mlflow"]["command"]


def test_data_outlive_the_containers(services: dict[str, Any]) -> None:
    volumes = yaml.safe_load(TEXT)["volumes"]
    mounted = {
        name: [volume.partition(":")[::2] for volume in services[name]["volumes"]] for name in ("database", "s3")
    }
    assert mounted == {"database": [("database", "/var/lib/postgresql")], "s3": [("s3", "/data")]}
    assert volumes.keys() == {"database", "s3"}


def test_no_secret_is_in_git(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for key, value in service["environment"].items():
            if re.search(r"PASSWORD|SECRET|KEY", key):
                # From .env alone, and without a default: compose refuses to start without it.
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}.{key}"
            hidden = VARIABLE.sub("", value)
            assert not re.search(r"://[^/@]*:[^/@]+@", hidden), f"{name}.{key}"
    secrets = {name for name, rest in VARIABLE.findall(TEXT) if rest.startswith(":?")}
    assert len(secrets) == 3
    for name in secrets:
        assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE), f"{name} has a value in .env.example"
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: not a git checkout


def test_every_variable_is_explained_in_the_example() -> None:
    for name in {name for name, _ in VARIABLE.findall(TEXT)}:
        assert re.search(rf"^{name}=", EXAMPLE, re.MULTILINE), name
