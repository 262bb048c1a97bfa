"""Environment in which a result was made: versions, flags, device, and the state of the repository.

It is split in two on purpose. `environment` is what can change bits and therefore enters the cache key: Python, the numerical packages that
the step's code imports, CUDA, and torch's determinism and precision flags. `origin` is what readers of the record want to know and
must not void the cache: the git commit, every package of the stack, the device. Versions come from package metadata and torch's
build constants from `torch/version.py`, unexecuted: a run that reuses everything need not import torch (2 s).
"""

import ast
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mgaa.methods import parse_file
from tasks.cache.source import FOLDERS, is_code

NUMERICAL = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "lm_eval",
    "numpy",
    "gguf",
    "scipy",
    "peft",
    "accelerate",
)
BROUGHT = {"peft": "accelerate"}
"""Packages that compute on behalf of another one without being imported by us: the engine of transformers' Trainer."""
RECORDED = (*NUMERICAL, "prefect", "mlflow", "dvc", "mgaa")
ROOT = Path(__file__).resolve().parents[2]


def environment(imported: Iterable[str]) -> dict[str, Any]:
    """Everything that results may depend on besides inputs, parameters and code; `imported` names the packages that the code uses."""
    used = {"torch", *imported, *(BROUGHT[name] for name in imported if name in BROUGHT)} & set(NUMERICAL)
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": {name: installed_version(name) for name in sorted(used)},
        "cuda": cuda_version(),
        "flags": torch_flags(),
    }


def origin() -> dict[str, Any]:
    """Facts about the installation and the repository, for manifests."""
    return {
        "git": dict(git_state()),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in RECORDED}},
        "device": device_name(),
    }


@cache
def installed_version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def cuda_version() -> str | None:
    """CUDA version that torch was built for, read from its source so that torch need not be imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    for node in parse_file(Path(spec.origin).parent / "version.py").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "cuda":
            return str(node.value.value) if isinstance(node.value, ast.Constant) and node.value.value else None
    return None


def torch_flags() -> dict[str, Any]:
    """Global determinism and precision flags of torch; before torch is imported, those that it starts with."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"deterministic": False, "cuda_matmul": "ieee", "cuda_convolution": "tf32", "cpu_matmul": "ieee"}
    backends = torch.backends
    precisions = {
        "cuda_matmul": backends.cuda.matmul.fp32_precision,
        "cuda_convolution": backends.cudnn.conv.fp32_precision,
        "cpu_matmul": backends.mkldnn.matmul.fp32_precision,
    }
    plain = {name: "ieee" if value == "none" else value for name, value in precisions.items()}
    return {"deterministic": torch.are_deterministic_algorithms_enabled(), **plain}


def device_name() -> str:
    """Name of the GPU that this process uses, else of the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return cpu_name()


@cache
def cpu_name() -> str:
    """Model name of the CPU."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@cache
def git_state() -> tuple[tuple[str, Any], ...]:
    """Commit of the checkout and whether its code differs from that commit; both None outside git.

    Code is what `code_digest` covers, files that git ignores or does not know included. Parameters, `dvc.lock` and documents do not
    count: a record holds the parameters in full, and `dvc repro` and `dvc exp run` write both before a run begins.
    """
    commit = run_git("rev-parse", "HEAD")
    return ("commit", commit), ("dirty", None if commit is None else bool(changed_code()))


def changed_code() -> list[str]:
    """Code that differs from the commit of the checkout: changed, removed, added, or unknown to git."""
    asked = (("diff", "--name-only", "--no-renames", "HEAD"), ("ls-files", "--others"))
    names = [name for words in asked for name in (run_git(*words, "-z", "--", *FOLDERS) or "").split("\0") if name]
    return sorted(name for name in names if is_code(Path(name)))


def run_git(*words: str) -> str | None:
    """Output of one git command in the project; None if it fails."""
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
