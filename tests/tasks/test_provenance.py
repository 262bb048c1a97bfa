"""What a result was made with is the same whether torch is imported or not, and changes with what can change bits."""

import sys

import pytest
import torch

from tasks import provenance


def test_the_flags_before_torch_is_imported_are_those_it_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = provenance.flags()
    monkeypatch.delitem(sys.modules, "torch")
    assert provenance.flags() == imported


def test_precision_is_part_of_the_environment() -> None:
    before = provenance.environment([])
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert provenance.environment([]) != before
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert provenance.environment([]) == before


def test_determinism_is_part_of_the_environment() -> None:
    before = provenance.environment([])
    torch.use_deterministic_algorithms(True)
    try:
        assert provenance.environment([]) != before
    finally:
        torch.use_deterministic_algorithms(False)


def test_versions_of_what_the_code_imports_are_part_of_the_environment_and_of_nothing_else() -> None:
    assert provenance.environment(["transformers", "rich"])["packages"].keys() == {"torch", "transformers"}


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    assert provenance.cuda() == torch.version.cuda
    assert provenance.installed("torch") == torch.__version__
