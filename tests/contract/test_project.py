"""The files around the code agree with each other: licence, versions, continuous integration, hooks and requirements."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # SHA-256 of the text with its two blanks
FOLDERS = ("src", "tests", "benchmarks", "tools", "docs", "data", "models")
# tools/fuzz_rows.py says why; the others are optional: the program that imports one says what to install.
NOT_REQUIRED = {"atheris", "dvclive", "gguf", "llama_cpp", "vllm"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> dict:
    return YAML(typ="safe", pure=True).load(read(name))


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def hooks() -> dict[str, dict]:
    """Each pre-commit hook by its id, with its repository's revision."""
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    return {hook["id"]: hook | {"rev": entry["rev"]} for entry in repositories for hook in entry["hooks"]}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name: str) -> list[str]:
    return [line for line in read(name).splitlines() if line and not line.startswith("#")]


def direct() -> set[str]:
    return {line.split()[0] for line in requirements("requirements.in")}


def pins() -> dict[str, str]:
    return dict(re.match(r"(\S+)==(\S+)", line).groups() for line in requirements("requirements.txt"))


def files(pattern: str) -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob(pattern))]


def imported() -> Iterator[tuple[str, Path]]:
    """The top-level name of each absolute import of the repository, and the file that imports it."""
    for path in files("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0], path


def test_the_licence_is_apache_2() -> None:
    text = read("LICENSE").replace("2026 the contributors of this repository", "[yyyy] [name of copyright owner]")
    assert hashlib.sha256(text.encode()).hexdigest() == APACHE_2
    assert project()["license"] == read_yaml("CITATION.cff")["license"] == "Apache-2.0"


def test_one_version_everywhere() -> None:
    version, date = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.MULTILINE).groups()
    citation = read_yaml("CITATION.cff")
    assert (project()["version"], citation["version"]) == (version, version)
    assert citation["date-released"].isoformat() == date


def test_ci_runs_the_repository_s_own_command_on_the_oldest_python_and_with_no_right_to_write() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    job = workflow["jobs"]["test"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert project()["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    assert workflow["permissions"] == {"contents": "read"}
    assert [step["uses"] for step in job["steps"] if not re.search(r"@v\d+\.\d+\.\d+$", step.get("uses", "@v0.0.0"))] == []


def test_hooks_run_the_pinned_ruff() -> None:
    assert {hooks()[name]["rev"] for name in ("ruff-check", "ruff-format")} == {f"v{pins()['ruff']}"}


def test_the_limit_of_large_files_admits_each_committed_file() -> None:
    (limit,) = (int(word.removeprefix("--maxkb=")) for word in hooks()["check-added-large-files"]["args"])
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in names if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > limit * 1024} == {}
    assert max(sizes.values()) > limit * 1024 / 2, "the limit admits files that nobody needs"


def test_the_whitespace_hook_keeps_its_hands_off_bytes_that_count() -> None:
    untouched = re.compile(hooks()["trailing-whitespace"]["exclude"])
    names = [path.relative_to(ROOT).as_posix() for path in files("*.yaml") + files("*.jsonl") + files("*.json")]
    trailing = [name for name in names if re.search(rb"[ \t]+\r?$", (ROOT / name).read_bytes(), re.MULTILINE)]
    assert trailing, "nothing left to protect"
    assert [name for name in trailing if not untouched.match(name)] == []


def test_the_development_container_makes_the_environment_of_the_makefile() -> None:
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert container["image"].endswith(project()["requires-python"].removeprefix(">="))
    assert f"READY := {container['postCreateCommand'].removeprefix('make ')}\n" in read("Makefile")


def test_every_direct_requirement_has_a_reason_and_a_pin() -> None:
    assert [line for line in requirements("requirements.in") if not re.fullmatch(r"[a-z0-9-]+ +# \w.+", line)] == []
    assert direct() - pins().keys() == set()


def test_every_import_is_a_direct_requirement() -> None:
    ours = {path.stem for path in files("*.py")} | {path.name for path in files("*") if path.is_dir()}
    distributions = metadata.packages_distributions()
    known = ours | set(sys.stdlib_module_names) | NOT_REQUIRED
    foreign = {name: path for name, path in imported() if name not in known}
    names = {name: {canonical(found) for found in distributions.get(name, [name])} for name in foreign}
    assert {name: str(foreign[name]) for name in names if not names[name] & direct()} == {}


def test_the_security_policy_points_to_pages_that_exist() -> None:
    links = re.findall(r"\]\((?!https://)([^)]+)\)", read("SECURITY.md"))
    assert "docs/security.md" in links
    assert [link for link in links if not (ROOT / link).is_file()] == []
