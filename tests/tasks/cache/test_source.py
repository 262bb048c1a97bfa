"""The code of a step is what it reaches, by its meaning: how it is written may change, and what it does voids what reaches it."""

import ast
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgaa.errors import UsageError
from tasks.cache import source, steps_lock

ROOT = source.ROOT
Lock = dict[str, dict[str, Any]]


def forget() -> None:
    """Drop what was found in the code; a module whose text is the same has the same meaning."""
    for cached in vars(source).values():
        if hasattr(cached, "cache_clear") and cached.__module__ == source.__name__:
            cached.cache_clear()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code to edit."""
    for folder in ("mgaa", "tasks", "demo", "flows"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


@pytest.fixture(scope="module")
def before() -> Lock:
    return steps_lock.locked_code()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old, text.count(old))
    path.write_text(text.replace(old, new))


def place(tree: Path, module: str) -> Path:
    return tree.joinpath(*module.split(".")).with_suffix(".py")


def voided(before: Lock) -> set[str]:
    """The steps, methods and architectures whose digests an edit has changed; nothing may have vanished."""
    forget()
    after = steps_lock.locked_code()

    def flat(lock: Lock) -> dict[str, str]:
        methods = {
            f"{folder}.{name}": found for folder, known in lock["methods"].items() for name, found in known.items()
        }
        return {**lock["steps"], **methods, **lock["architectures"]}

    assert flat(before).keys() <= flat(after).keys()
    return {name for name, found in flat(before).items() if flat(after)[name] != found}


# What voids nothing


class Rewording(ast.NodeTransformer):
    """Other docstrings, other words in errors, assertions and warnings, and no types of arguments."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Expr(ast.Constant("Other words.")) if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("Other words.")]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = ast.Constant("Other words.")
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def test_prose_messages_comments_types_and_formatting_void_nothing(tree: Path, before: Lock) -> None:
    files = [path for path in tree.rglob("*.py") if path.parent.name != "definitions"]
    assert len(files) > 200
    for path in files:
        path.write_text("# A comment.\n\n\n" + ast.unparse(Rewording().visit(ast.parse(path.read_text()))))
    assert voided(before) == set()


def moved(tree: Path, module: str, to: str) -> None:
    """Give a module another name, everywhere."""
    target = place(tree, to)
    target.parent.mkdir(exist_ok=True)
    (target.parent / "__init__.py").touch()
    shutil.move(place(tree, module), target)
    package, _, name = module.rpartition(".")
    package_to, _, name_to = to.rpartition(".")
    for path in tree.rglob("*.py"):
        text = re.sub(rf"\b{re.escape(module)}\b", to, path.read_text())
        renamed = f"from {package_to} import {name_to} as {name}"
        path.write_text(re.sub(rf"from {re.escape(package)} import {name}\b", renamed, text))


@pytest.mark.parametrize("name", ["linalg", "budget", "statistics", "lowrank"])
def test_a_module_that_moves_into_a_folder_and_gets_another_name_voids_nothing(
    tree: Path, before: Lock, name: str
) -> None:
    (path,) = (tree / "mgaa").rglob(f"{name}.py")
    module = ".".join(path.relative_to(tree).with_suffix("").parts)
    moved(tree, module, f"mgaa.cellar.{name}_of_old")
    assert voided(before) == set()


def test_a_function_that_gets_another_name_or_another_file_voids_nothing(tree: Path, before: Lock) -> None:
    for path in tree.rglob("*.py"):
        path.write_text(re.sub(r"\bparameter_budget\b", "budget_in_parameters", path.read_text()))
    assert voided(before) == set()


def test_a_new_method_architecture_template_or_flow_voids_nothing_that_is_there(tree: Path, before: Lock) -> None:
    shutil.copy(tree / "mgaa" / "ratios" / "softmax.py", tree / "mgaa" / "ratios" / "gumbel.py")
    edit(
        place(tree, source.ENTRIES),
        "ARCHITECTURES: dict[str, Architecture] = {\n",
        'ARCHITECTURES: dict[str, Architecture] = {\n    "gptj": _GATED_PRE_NORM,\n',
    )
    for path in (*tree.rglob("templates/*"), *(tree / "flows").rglob("*.py")):
        path.write_text(path.read_text() + "\n\n" + ("words = 1\n" if path.suffix == ".py" else "<!-- words -->\n"))
    assert voided(before) == set()
    assert {"gptj"} <= steps_lock.locked_code()["architectures"].keys()
    assert "gumbel" in steps_lock.locked_code()["methods"]["ratios"]


def test_code_that_no_step_reaches_voids_nothing(tree: Path, before: Lock) -> None:
    for path in {*(tree / "mgaa").rglob("*.py")} - {
        *(tree / "mgaa").glob("r*s/*.py"),
        *(tree / "mgaa").glob("factors/*.py"),
    }:
        path.write_text(path.read_text() + "\n\ndef nobody_calls_me(number: int) -> int:\n    return number + 1\n")
    assert voided(before) == set()


# What voids


ALLOCATORS = {"ratios.linear", "ratios.proportional", "ratios.softmax", "ratios.uniform"}
EDITS = {
    "a default": ("mgaa.ratios.softmax", "temperature: float = 0.1", "temperature: float = 0.2", {"ratios.softmax"}),
    "an operator": (
        "mgaa.budget",
        "return torch.minimum(ratios, caps)",
        "return torch.maximum(ratios, caps)",
        ALLOCATORS,
    ),
    "a constant": ("mgaa.budget", "(1 + 1e-12)", "(1 + 1e-11)", ALLOCATORS),
    "a name": (
        "tasks.artifacts.files",
        'f"scores-{index:04d}',
        'f"score-{index:04d}',
        {"compress_block", "draw_figures"},
    ),
    "an entry": (
        "mgaa.models.entries",
        'Fused("mlp.gate_up_proj", ("gate", "up"))',
        'Fused("mlp.gate_up_proj", ("up", "gate"))',
        {"phi3"},
    ),
    "what entries share": (
        "mgaa.models.entries",
        '_PROJECTOR = Architecture(\n    "model.multi_modal_projector"',
        '_PROJECTOR = Architecture(\n    "model.projector"',
        {"llava", "llava_next", "mistral3"},
    ),
    "the body of a step": (
        "tasks.steps.take_best",
        '"objectives": objectives}',
        '"objectives": objectives, "more": 1}',
        {"take_best"},
    ),
    "a called function": (
        "mgaa.evaluation.perplexity",
        "precise = torch.promote_types(logits.dtype, torch.float32)",
        "precise = torch.float64",
        {"answer", "differentiate", "measure", "measure_perplexity"},
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_of_what_code_does_voids_exactly_what_reaches_it(tree: Path, before: Lock, what: str) -> None:
    module, old, new, expected = EDITS[what]
    edit(place(tree, module), old, new)
    assert voided(before) == expected


def test_an_edit_of_what_is_executed_on_import_voids_what_imports_it(tree: Path, before: Lock) -> None:
    registered = "AUTO_QUANTIZER_MAPPING[METHOD] = "
    edit(place(tree, "mgaa.checkpoints.format"), f"{registered}LowRankQuantizer", f"{registered}LowRankConfig")
    found = voided(before)
    assert {"measure", "load_backbone", "calibrate"} <= found
    assert found <= {
        name for name, root in steps_lock.steps().items() if "mgaa/checkpoints/format.py" in source.sources(root)
    }


def test_an_import_of_another_function_of_the_same_name_voids_what_calls_it(tree: Path, before: Lock) -> None:
    other = place(tree, "mgaa.budget").read_text().replace("torch.minimum", "torch.maximum")
    (tree / "mgaa" / "other_budget.py").write_text(other)
    edit(place(tree, "mgaa.ratios.linear"), "from mgaa.budget import", "from mgaa.other_budget import")
    assert voided(before) == {"ratios.linear"}


def test_a_name_that_is_local_is_not_taken_for_what_the_module_calls_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_of(helper: str, body: str) -> str:
        (tmp_path / "mgaa").mkdir(exist_ok=True)
        (tmp_path / "mgaa" / "part.py").write_text(
            f"def helper(x):\n    return {helper}\n\n\ndef step(a, b):\n    {body}\n"
        )
        forget()
        return source.code_of("mgaa.part:step")

    monkeypatch.setattr(source, "ROOT", tmp_path)
    for local in ("helper = a; return helper", "return [helper for helper in a]", "return (lambda helper: helper)(a)"):
        assert digest_of("x", local) == digest_of("x + 1", local), local
    for reached in (
        "return helper(a)",
        "return [helper(x) for x in a]",
        "return [helper for helper in helper(a)]",
        "return map(helper, a)",
        "def inner(): return helper(a)\n    return inner",
        "if a:\n        return helper\n    return b",
    ):
        assert digest_of("x", reached) != digest_of("x + 1", reached), reached
    forget()


# The lock, and what else the code says


def test_the_lock_is_that_of_the_code() -> None:
    assert yaml.safe_load(steps_lock.LOCK.read_text()) == steps_lock.locked_code(), (
        "run `make lock`, and look at what changed"
    )


def test_the_lock_names_every_step_and_what_dvc_depends_on_is_the_lock() -> None:
    steps = steps_lock.steps()
    assert len(steps) >= 35
    pipelines = [yaml.safe_load(path.read_text()) for path in (ROOT / "dvc.yaml", ROOT / "examples" / "dvc.yaml")]
    for name, stage in (item for each in pipelines for item in each["stages"].items()):
        held = [*stage["deps"], *(file for each in stage.get("params", []) if isinstance(each, dict) for file in each)]
        assert "steps.lock" in held or name == "texts", name
        assert not {"mgaa", "tasks", "flows"} & {dep.partition("/")[0] for dep in stage["deps"]}, name


def test_the_machinery_that_runs_and_stores_and_what_changes_no_bit_is_no_code_of_a_step() -> None:
    for root in steps_lock.steps().values():
        modules = {module for module, _ in source.reached(root)}
        assert root.partition(":")[0] in modules
        assert not {module for module in modules if module in {*source.INERT, *source.ORCHESTRATION}}
        assert not {module for module in modules if module.partition(".")[0] == "flows"}


def test_every_module_that_is_left_out_exists() -> None:
    assert all(source.file_of(module) is not None for module in (*source.ORCHESTRATION, *source.INERT, source.ENTRIES))


def test_the_files_of_the_code_are_those_it_imports_byte_by_byte() -> None:
    files = source.sources("mgaa.ratios.softmax")
    assert {"mgaa/ratios/softmax.py", "mgaa/budget.py", "mgaa/errors.py"} <= files.keys()
    assert not {"mgaa/__init__.py", "mgaa/ratios/linear.py", "mgaa/ratios/__init__.py"} & files.keys()


def test_the_packages_of_others_that_the_code_uses_are_found() -> None:
    assert "torch" in source.packages("mgaa.ratios.softmax")
    assert not {"mgaa", "tasks"} & source.packages("mgaa.ratios.softmax")
    assert {"peft", "transformers"} <= source.packages(steps_lock.steps()["recover"])


def test_an_unknown_method_lists_the_files_of_its_folder() -> None:
    with pytest.raises(
        UsageError, match=r"no method 'softmix' in mgaa.ratios: expected one of file, linear, .*softmax"
    ):
        source.method_module("mgaa.ratios", "softmix")


def test_many_threads_may_ask_for_the_code_at_once() -> None:
    root = steps_lock.steps()["allocate_ratios"]

    def digest(_: int) -> str:
        forget()
        return source.code_of(root)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(digest, range(16)))
    assert all(each == found[0] for each in found)
