"""The code of a step is its module and what that imports, however it imports it, and nothing more."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mgaa.errors import UsageError
from tasks import code


def test_the_code_of_a_method_is_its_file_and_what_it_imports() -> None:
    files = code.sources("mgaa.ratios.softmax")
    assert {"mgaa/ratios/softmax.py", "mgaa/budget.py", "mgaa/errors.py"} <= files.keys()


def test_importing_a_module_of_a_package_does_not_draw_in_the_package() -> None:
    assert "mgaa/__init__.py" not in code.sources("mgaa.ratios.softmax")
    assert not {"mgaa/ratios/linear.py", "mgaa/ratios/__init__.py"} & code.sources("mgaa.ratios.softmax").keys()


def test_the_machinery_that_runs_and_stores_is_no_code_of_a_step() -> None:
    files = code.sources("tasks.calibrate")
    assert "tasks/calibrate.py" in files
    assert not {"tasks/step.py", "tasks/artifact.py", "tasks/stage.py", "tasks/parameters.py"} & files.keys()


@pytest.mark.parametrize("module", ["tasks.run_point", "tasks.points", "tasks.recipes"])
def test_the_sections_of_the_parameters_are_no_code_of_a_step(module: str) -> None:
    assert not [file for file in code.sources(module) if file.startswith("tasks/sections/")]


def test_the_packages_of_others_that_the_code_imports_are_found() -> None:
    assert "torch" in code.packages("mgaa.ratios.softmax")
    assert "mgaa" not in code.packages("mgaa.ratios.softmax")


def test_an_unknown_method_lists_the_files_of_its_folder() -> None:
    with pytest.raises(
        UsageError, match=r"no method 'softmix' in mgaa.ratios: expected one of file, linear, .*softmax"
    ):
        code.method_module("mgaa.ratios", "softmix")


def test_many_threads_may_ask_for_the_code_at_once() -> None:
    def digest(_: int) -> dict[str, str]:
        code.sources.cache_clear()
        return code.sources("tasks.ladders")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(digest, range(16)))
    assert all(each == found[0] for each in found)
