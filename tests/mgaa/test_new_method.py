"""A factorizer is one file: a copy of the library with the one of CONTRIBUTING.md in `factors/` lists it, compresses with it
and holds it to the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mgaa.methods import available_methods
from tests.support.guide import blocks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAME = "deviation"
FILE = next(block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.file == f"mgaa/factors/{NAME}.py")
USE = f"""
import mgaa, pytest, torch
from mgaa.methods import available_methods
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                              num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
model, tokens = AutoModelForCausalLM.from_config(config).eval(), torch.arange(64).reshape(4, 16)
try:
    mgaa.compress_(model, tokens, factors={{"method": "{NAME}", "pwer": 2.0}})
except mgaa.UsageError as error:
    print(error)
print(round(mgaa.compress_(model, tokens, compression=0.3, factors={{"method": "{NAME}", "power": 2.0}}).compression, 2))
print(sum(isinstance(module, mgaa.LowRankLinear) for module in model.modules()) > 0)
print(bool(model(tokens).logits.isfinite().all()))
print(*available_methods("factors"))
print(mgaa.__file__, flush=True)
raise SystemExit(pytest.main(["-vv", "--import-mode=importlib", "-k", "{NAME}", "tests/mgaa/factors/test_factors.py"]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, its contract tests, and the one new file."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "mgaa", folder / "mgaa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/support/layers.py", "tests/mgaa/factors/test_factors.py"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "mgaa/factors" / f"{NAME}.py").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def said(copy: Path) -> list[str]:
    """The lines of a fresh interpreter that has the copy first on its path, and of the plugins of pytest none (they are slow to load)."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_it_is_listed_takes_its_option_and_compresses(copy: Path, said: list[str]) -> None:
    assert NAME not in available_methods("factors")
    assert said[:6] == [
        f"factors.pwer is not an option of the method '{NAME}'; it takes power",
        "0.3",
        "True",
        "True",
        " ".join(sorted([*available_methods("factors"), NAME])),
        str(copy / "mgaa/__init__.py"),
    ]


def test_the_contract_of_the_factorizers_finds_and_tests_it(said: list[str]) -> None:
    passed = re.findall(rf"::(\w+)\[\S*{NAME}\S*\] PASSED", "\n".join(said))
    contract = {
        "test_full_rank_is_exact",
        "test_the_squared_error_in_its_own_metric_is_the_sum_of_the_dropped_energies",
        "test_it_is_the_plain_svd_of_the_weight_times_a_root_of_the_metric",
        "test_without_a_bias_none_beats_whitened_and_with_one_none_beats_afm",
        "test_a_misspelt_option_is_refused_with_the_valid_ones",
    }
    assert contract <= set(passed)
    assert f"{len(passed)} passed" in said[-1]
