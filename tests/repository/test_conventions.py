"""What the documents and the configuration promise is what the code has."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgaa.methods import available_methods
from tasks.config.method_options import SECTIONS, method_options
from tasks.config.parameters import Parameters, load_parameters

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def test_the_parameters_in_the_repository_are_valid() -> None:
    assert load_parameters(ROOT / "params.yaml").method == "mgaa"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flow_that_a_document_runs_exists(document: Path) -> None:
    for module in re.findall(r"python -m ([\w.]+)", document.read_text()):
        path = Path(*module.split("."))
        shown = f"\n```python {path}.py\n" in document.read_text()  # to be written by the reader
        exists = (ROOT / path).with_suffix(".py").exists() or (ROOT / path).is_dir()
        assert shown or exists or module in ("pytest", "pip", "build"), module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_override_that_a_document_shows_is_a_key(document: Path) -> None:
    own = {
        f"{section}.{name}"
        for section in SECTIONS
        for method in available_methods(section)
        for name in method_options(section, method)
    }
    keys = own | set(load_parameters(ROOT / "params.yaml").flat())
    sections = "|".join(Parameters.model_fields)
    for key in re.findall(rf"\b((?:{sections})(?:\.\w+)+)=", document.read_text()):
        assert key in keys, f"{document.name} overrides {key}"


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    targets = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE), *(f"install-{extra}" for extra in extras.split())}
    assert set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) <= targets


def test_every_flow_that_make_runs_exists_and_takes_its_overrides() -> None:
    commands = re.findall(r"^\tpython -m (flows\.\w+)(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [module for module, _ in commands] == ["flows.show", "flows.show", "flows.plan", "flows.sweep"]
    for module, words in commands:
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        load_parameters(ROOT / "params.yaml", shlex.split(words.replace("$(ARGS)", "")))


def test_every_link_of_a_document_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_tree_of_the_readme_names_every_step_and_method() -> None:
    steps = {
        path.stem
        for path in (ROOT / "tasks").rglob("*.py")
        if re.search(r"^@(resuming_)?step\(", path.read_text(), re.MULTILINE)
    }
    methods = {name for section in ("factors", "ratios", "ranks") for name in available_methods(section)}
    flows = {path.stem for path in (ROOT / "flows").glob("*.py") if "@flow(" in path.read_text()}
    tree = README.partition("## The tree")[2]
    assert (len(steps), len(methods), len(flows)) > (30, 10, 5)
    assert {name for name in steps | methods | flows if name not in tree} == set()


def test_dvc_watches_the_code_the_backbone_and_every_section_of_the_parameters() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for case, name, backbone in (("language", "compress", "models/demo"), ("vision", "vision", "models/demo-vlm")):
        stage = stages[name]
        assert {"steps.lock", backbone} <= set(stage["deps"])
        assert f"case={case} " in stage["cmd"]
        assert f"cases.{case}" in stage["params"]
    runtime = {
        "case",  # the command says which; where it leaves what it publishes is in the outs
        "cases",
        "output",
        "runner",
        "store",
        "tracking",
        "registry",
        "schedule",
        "sweep",
        "study",
        "sensitivity",
        "profile",
    }  # where steps run and results are kept, and flows that are no stage
    for name in ("compress", "vision"):
        assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) - runtime <= set(stages[name]["params"])


def test_the_constraints_pin_exact_versions_and_no_build_of_torch() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_another_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9)\n$2"\n')
    old.chmod(0o755)
    for python, complaint in ((str(old), "is Python 3.9"), ("no-such-python", "there is no no-such-python")):
        command = ["make", "-C", str(ROOT), f"PYTHON={python}", f"VENV={tmp_path}/never", "install"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode != 0
        assert complaint in made.stderr
        assert "make PYTHON=" in made.stderr


def test_the_readme_names_every_architecture() -> None:
    from mgaa.models.entries import ARCHITECTURES, MULTIMODAL

    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| architectures |"))
    alone = {family for family in ARCHITECTURES if family.removesuffix("_text") not in MULTIMODAL}
    assert {*re.findall(r"\w+", line)} >= {*alone, *MULTIMODAL, "gemma3_text"}
