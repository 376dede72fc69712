"""The workflow and the files for contributors: pinned, with few rights, and in step with the Makefile."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.common import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
BOOK = ROOT / ".github" / "workflows" / "book.yml"
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG", "CODE_OF_CONDUCT")]
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}|\./.+|docker://.+@sha256:[0-9a-f]{64}")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def uses(node: Any) -> list[str]:
    """Every action and workflow that a workflow uses, wherever it stands."""
    if isinstance(node, dict):
        here = [str(node["uses"])] if "uses" in node else []
        return here + [found for value in node.values() for found in uses(value)]
    return [found for value in node for found in uses(value)] if isinstance(node, list) else []


def unpinned(workflow: str) -> list[str]:
    """What a workflow uses without naming its commit: whoever moves the tag would choose what runs."""
    return [
        f"{one} is not pinned by a commit of 40 hex digits"
        for one in uses(yaml.safe_load(workflow))
        if not PINNED.fullmatch(one)
    ]


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


@every_workflow
def test_actions_are_pinned_by_commit_and_say_their_version(path: Path) -> None:
    text = path.read_text()
    assert unpinned(text) == []
    assert all(re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in text.splitlines() if "uses:" in line)


@pytest.mark.parametrize(
    "action", ["actions/checkout@v7", "actions/checkout@main", "actions/checkout", "docker://alpine:3", "a/b@3d3c42e"]
)
def test_an_unpinned_action_is_found_and_named(action: str) -> None:
    workflow = WORKFLOWS[0].read_text()
    first = re.findall(r"uses: (\S+)", workflow)[0]
    assert unpinned(workflow.replace(first, action, 1)) == [f"{action} is not pinned by a commit of 40 hex digits"]
    assert unpinned(f"jobs: {{one: {{uses: {action}}}}}"), "a whole workflow that is used, too"


@every_workflow
def test_rights_are_given_job_by_job(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert "pull_request_target" not in path.read_text()
    assert "secrets." not in path.read_text()
    for name, job in jobs(path).items():
        writes = [right for right, degree in job["permissions"].items() if degree == "write"]
        assert not writes or name in ("deploy", "notebooks", "issue"), f"{name} may write: {writes}"
        assert "timeout-minutes" in job


def test_only_a_build_of_main_is_deployed() -> None:
    build = jobs(BOOK)
    assert build["deploy"]["needs"] == "build"
    assert build["notebooks"]["needs"] == "deploy"
    assert build["deploy"]["if"] == "github.event_name != 'pull_request' && github.ref == 'refs/heads/main'"


def test_every_lane_hands_its_report_to_the_issue_also_when_another_is_red() -> None:
    lanes = jobs(ROOT / ".github" / "workflows" / "lanes.yml")
    names = [one["name"] for one in lanes["lane"]["strategy"]["matrix"]["include"]]
    assert {"pins", "newest", "nightly", "newest-python", "macos", "windows", "linux-arm"} == set(names)
    assert lanes["lane"]["strategy"]["fail-fast"] is False
    run, kept = lanes["lane"]["steps"][-2:]
    assert run["run"] == "make lane", "which reads its environment; PowerShell names variables in another way than bash"
    assert set(run["env"]) == {"NAME", "TORCH", "PINS"}
    assert "!cancelled()" in kept["if"]
    assert kept["with"]["path"].split() == [".lanes/*.md", ".lanes/*/checkout/build/results"]
    told = lanes["issue"]["steps"][-1]["run"]
    assert re.findall(r"\.lanes/([\w-]+)\.md", told) == names
    assert lanes["issue"]["permissions"] == {"contents": "read", "issues": "write"}


@every_workflow
def test_steps_only_call_make(path: Path) -> None:
    for name, job in jobs(path).items():
        for step in job["steps"]:
            if "run" in step:
                words = step["run"].split()
                assert words[0] == "make", f"{name}: {step['run']}"
                assert words[1] in TARGETS, f"{name}: the Makefile has no {words[1]}"


def test_the_site_is_kept_after_it_passed() -> None:
    steps = [step.get("run", step.get("uses", "")) for step in jobs(BOOK)["build"]["steps"]]
    order = [
        "make weights",
        "make book",
        "make test",
        "make lint",
        "make publish-check",
        "actions/upload-pages-artifact",
    ]
    places = [next(at for at, step in enumerate(steps) if step.startswith(one)) for one in order]
    assert places == sorted(places)


ZIZMOR = shutil.which("zizmor", path=str(Path(sys.executable).parent)) or shutil.which("zizmor")


@pytest.mark.skipif(ZIZMOR is None, reason="zizmor is not installed")
def test_zizmor_has_nothing_to_say_and_would_find_an_unpinned_action(tmp_path: Path) -> None:
    def audit(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(ZIZMOR), "--quiet", "--offline", str(folder)], capture_output=True, text=True)

    assert audit(ROOT / ".github").returncode == 0
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    copy = tmp_path / ".github" / "workflows" / WORKFLOWS[0].name
    copy.write_text(re.sub(r"(actions/checkout)@\w+", r"\1@v7", copy.read_text()))
    found = audit(tmp_path / ".github")
    assert found.returncode != 0
    assert "unpinned-uses" in found.stdout


def test_the_citation_names_the_package_s_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    title = yaml.safe_load((ROOT / "_config.yml").read_text())["title"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["title"] == title
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_each_licence_is_there() -> None:
    assert "BSD 3-Clause" in (ROOT / "LICENSE").read_text()
    assert "Creative Commons Attribution 4.0 International Public License" in (ROOT / "LICENSE-prose").read_text()


@pytest.mark.parametrize("path", [*PAGES, *FORMS], ids=lambda path: path.name)
def test_commands_and_links_for_contributors_exist(path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE))
    assert named - TARGETS == set()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_for_the_environment(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    asked = {part["id"]: part for part in form["body"] if "id" in part}
    assert form["name"]
    assert form["description"]
    assert asked["environment"]["validations"]["required"] is True


def test_the_environment_lines_come_from_the_command_that_the_form_names(capsys: pytest.CaptureFixture[str]) -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "number-differs.yml").read_text()
    code = re.findall(r'\.venv/bin/python -c "([^"]+)"', form)[0]
    exec(code, {})
    assert re.match(r"Python 3\.\d+\.\d+, torch .+\n.+ quantized engine \w+\n", capsys.readouterr().out)


def test_pre_commit_and_the_dev_container_call_make() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert (repository["repo"], [hook["entry"] for hook in repository["hooks"]]) == ("local", ["make lint"])
    command = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())["postCreateCommand"].split()
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
