"""The reference is made of docstrings, without a complaint, and leaves out no public name and no public module."""

import runpy
import warnings
from pathlib import Path

import pytest

import mgaa
from tests.support.processes import ROOT


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_module(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(ROOT / "docs" / "reference.py"))["write"](tmp_path)
    page = (tmp_path / "mgaa.html").read_text(encoding="utf-8")
    assert {name for name in mgaa.__all__ if f'<section id="{name}">' not in page} == set()
    public = {
        path.relative_to(ROOT).with_suffix(".html")
        for path in (ROOT / "mgaa").rglob("*.py")
        if not path.stem.startswith("_")
    }
    assert {page for page in public if not (tmp_path / page).is_file()} == set()
