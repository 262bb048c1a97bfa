"""What the documents and the configuration promise is what the code has."""

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from mgaa.methods import available_methods
from tasks.config.method_options import SECTIONS, method_options
from tasks.config.parameters import Parameters, load_parameters
from tests.repository.test_layering import ORDER

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "models").glob("demo*/README.md"),
    ]
)
README = (ROOT / "README.md").read_text()
PACKAGES = ("flows", "tasks", "mgaa")


def commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Module and words of every `python -m flows...` that a document shows in a block or in a line."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:time )?python -m flows\..*$", text, re.MULTILINE):
        _, _, module, *words = shlex.split(
            re.split(r" 2>&1| \|\| | > | \| ", line)[0].removeprefix("time "), comments=True
        )
        yield module, words
    for line in re.findall(r"(?<!`)`(?:time )?python -m (flows\.[^`]*)`(?!`)", text):
        module, *words = shlex.split(line.replace("\n", " "))
        yield module, words


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_documents_run_flows_set_parameters_and_link_to_each_other() -> None:
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    keys = rf"\b(?:{'|'.join(Parameters.model_fields)})(?:\.\w+)+="
    for pattern in (r"python -m flows\.", keys, r"\]\((?!http)[^)#]+\)"):
        assert sum(len(re.findall(pattern, text)) for text in texts) > 30, pattern


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_takes_its_parameters(document: Path) -> None:
    own = [Path(name).stem for name in re.findall(r"^```python (\S+)$", document.read_text(), re.MULTILINE)]
    for module, words in commands(document):
        if not any(name in " ".join([module, *words]) for name in own):  # of what the reader is to write
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
            load_parameters(ROOT / "params.yaml", [word for word in words if re.match(r"[a-z][\w.]*=", word)])


def test_the_commands_of_documents_are_found() -> None:
    assert len(list(commands(ROOT / "README.md"))) > 3
    assert len({(module, *words) for document in DOCUMENTS for module, words in commands(document)}) > 80


def test_every_make_target_of_a_document_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    targets = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE), *(f"install-{extra}" for extra in extras.split())}
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([\w-]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, document.name
    assert {"demo", "test"} <= set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))


def test_every_flow_that_make_runs_exists_and_takes_its_overrides() -> None:
    commands = re.findall(r"^\tpython -m (flows\.\w+)(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [module for module, _ in commands] == [*["flows.show"] * 3, "flows.plan", "flows.sweep"]
    for module, words in commands:
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        load_parameters(ROOT / "params.yaml", shlex.split(words.replace("$(ARGS)", "")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_link_of_a_document_leads_to_a_file_and_to_a_heading_in_it(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{document.name} links to {target}"


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", document.read_text(encoding="utf-8"))
        waiting += {(document.parent / link).resolve() for link in links} - reached
    assert set(DOCUMENTS) <= reached


def test_the_tree_of_the_readme_names_every_folder_and_no_other() -> None:
    tree = README.partition("## The tree")[2].partition("## ")[0]
    folders = {
        package: {path.parent.name for path in (ROOT / package).glob("*/*.py")} - {"__pycache__"}
        for package in PACKAGES
    }
    assert [len(found) > 2 for found in folders.values()] == [True] * len(PACKAGES)
    named = set(re.findall(r"([\w]+)/", tree))
    assert set[str]().union(*folders.values(), PACKAGES) <= named
    assert {
        name for name in named if not any((ROOT / place / name).is_dir() for place in ("", *PACKAGES, "tests"))
    } == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_has_the_folders_in_their_order(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{package}` \| (.*) \|$", text, re.MULTILINE)
    folders = [name for name in ORDER[package] if (ROOT / package / name).is_dir()]
    assert re.findall(r"`(\w+)`", row) == folders


def test_the_readme_has_150_lines_at_most() -> None:
    assert len(README.splitlines()) <= 150


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


def test_the_guide_of_methods_has_the_command_that_lists_every_architecture() -> None:
    from mgaa.models.entries import ARCHITECTURES, MULTIMODAL

    (code,) = re.findall(r'^python -c "(.*)"$', (ROOT / "docs" / "guides" / "methods.md").read_text(), re.MULTILINE)
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert set(printed.getvalue().split()) == {*ARCHITECTURES, *MULTIMODAL}


@pytest.mark.parametrize("section", ["factors", "ratios", "ranks"])
def test_the_readme_links_to_the_folder_of_every_kind_of_method(section: str) -> None:
    assert f"(mgaa/{section})" in README
