"""compose.yaml and the Dockerfile: what they run exists here, no secret stands in them, and every service says when it is healthy."""

from __future__ import annotations

import re
import tomllib

import typer.main
import yaml

from demeanor import cli
from tests.conftest import REPOSITORY, each

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def test_the_command_of_serve_has_options_that_exist() -> None:
    words = COMPOSE["services"]["serve"]["command"]
    serve = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert words[0] == "serve"
    assert {word for word in words if word.startswith("--")} <= known


def test_passwords_come_from_the_environment_and_are_required() -> None:
    text = (REPOSITORY / "compose.yaml").read_text()
    assert "postgresql://demeanor:$${POSTGRES_PASSWORD}@postgres/demeanor" in text, (
        "filled in by serve, not by compose"
    )
    given = [line for line in text.splitlines() if line.strip().startswith("POSTGRES_PASSWORD:")]
    assert all("${POSTGRES_PASSWORD:?" in line for line in each(given))


def test_every_service_is_healthy_before_the_server_starts_and_only_this_machine_reaches_it() -> None:
    services = COMPOSE["services"]
    assert set(services["serve"]["depends_on"]) == {"postgres", "redis"}
    assert all("healthcheck" in services[name] for name in ("postgres", "redis"))
    assert "HEALTHCHECK" in DOCKERFILE
    assert [port.startswith("127.0.0.1:") for port in services["serve"]["ports"]] == [True]
    assert "pgvector" in services["postgres"]["image"]


def test_the_image_runs_without_rights_with_the_torch_of_pyproject_and_extras_that_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (torch,) = [name for name in project["dependencies"] if name.startswith("torch==")]
    assert torch in DOCKERFILE
    extras = re.search(r"'\.\[([a-z,]+)\]'", DOCKERFILE)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^USER 1000$", DOCKERFILE, re.M)
    assert "--uid 1000 " in DOCKERFILE
    copied = [
        line.split()[1:-1]
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    assert all((REPOSITORY / name).exists() for names in each(copied) for name in names)


def test_every_file_of_the_package_is_in_the_image_also_where_it_is_a_link() -> None:
    copied = [
        (REPOSITORY / name).resolve()
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    let_in = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")]
    assert {str(path.relative_to(REPOSITORY)) for path in copied} == set(let_in)
    links = [path for path in (REPOSITORY / "demeanor").rglob("*") if path.is_symlink()]
    for link in each(links):
        target = link.resolve()
        assert any(target.is_relative_to(folder) for folder in copied), f"{link} leads out of the image"
