"""What is published: versions, dependencies, the wheel's contents, and the files that the documents name."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import knapsack_rl as kr
from knapsack_rl.experiments.recipe import yaml_text

ROOT = Path(__file__).parents[2]


def requirements() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires("knapsack-rl") or []]


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_version_is_the_same_everywhere() -> None:
    assert kr.__version__ == metadata.version("knapsack-rl")
    assert f"## {kr.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation()["version"] == kr.__version__


def citation() -> dict[str, Any]:
    content: dict[str, Any] = yaml_text.parse((ROOT / "CITATION.cff").read_text(encoding="utf-8"), "CITATION.cff")
    return content


def test_the_citation_has_what_the_format_requires_and_the_paper() -> None:
    found = citation()
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    (paper,) = found["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [identifier["value"] for identifier in paper["identifiers"]] == ["arXiv:2509.25849"]


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_a_form_for_issues_has_what_the_format_requires(form: Path) -> None:
    content = yaml_text.parse(form.read_text(encoding="utf-8"), form.name)
    assert {"name", "description", "body"} <= content.keys()
    assert all({"type", "id", "attributes"} <= part.keys() for part in content["body"])
    names = [part["id"] for part in content["body"]]
    assert len(set(names)) == len(names)


def test_a_commit_is_checked_by_the_commands_of_ci() -> None:
    hooks = yaml_text.parse((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"), "hooks")["repos"][0][
        "hooks"
    ]
    lint = (ROOT / ".ci" / "run").read_text(encoding="utf-8").partition('step "Lint')[2].partition("\n\n")[0]
    assert [hook["entry"].replace(" --force-exclude", "") for hook in hooks] == lint.splitlines()[1:]


def test_numpy_is_the_only_hard_dependency() -> None:
    assert [r.name for r in requirements() if r.marker is None] == ["numpy"]


def test_the_core_imports_numpy_and_the_standard_library_only() -> None:
    loaded = modules_after("import knapsack_rl") - modules_after("import numpy")
    assert loaded <= sys.stdlib_module_names | {"knapsack_rl"}


def test_the_command_is_installed() -> None:
    (script,) = metadata.distribution("knapsack-rl").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("knapsack-rl", "knapsack_rl.cli:main")


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert packed == {name for name in files if not re.search(r"(^|/)(\.|__pycache__/)", name)}
    assert "knapsack_rl/py.typed" in packed


@pytest.mark.parametrize(("constraints", "of_verl"), [("constraints.txt", False), ("constraints-verl.txt", True)])
def test_every_dependency_is_pinned_in_the_constraints(constraints: str, of_verl: bool) -> None:
    pins = re.findall(r"^([a-z0-9-]+)==", (ROOT / constraints).read_text(encoding="utf-8"), re.MULTILINE)
    chosen = [r for r in requirements() if ('extra == "verl"' in str(r.marker)) == of_verl]
    wanted = {re.sub(r"[-_.]+", "-", r.name).lower() for r in chosen} - {"knapsack-rl"}
    assert wanted
    assert wanted <= set(pins)


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-verl.txt"])
def test_the_constraints_name_no_registry(constraints: str) -> None:
    assert not re.search(r"://|^\s*-", (ROOT / constraints).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_document_links_to_exists(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", (ROOT / document).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
