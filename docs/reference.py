"""The reference of the library, from its docstrings: `make docs` writes it to build/docs.

    python docs/reference.py [folder]

pdoc imports every public module of `mgaa`. The package itself brings its names when they are asked for, so they are asked for first.
"""

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import mgaa


def specifications(package: str) -> list[str]:
    """A package and those public modules of it that pdoc does not find by itself, because `__all__` does not name them."""
    module = import_module(package)
    named = getattr(module, "__all__", None)
    found = [package]
    for each in iter_modules(module.__path__, f"{package}."):
        name = each.name.rpartition(".")[2]
        if named is not None and name not in named and not name.startswith("_"):
            found += specifications(each.name) if each.ispkg else [each.name]
    return found


def write(folder: Path) -> None:
    """Write a page for every public module of `mgaa`."""
    for name in mgaa.__all__:
        setattr(mgaa, name, getattr(mgaa, name))
    pdoc.render.configure(docformat="google", footer_text=f"mgaa {mgaa.__version__}", show_source=True)
    pdoc.pdoc(*specifications("mgaa"), output_directory=folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    write(target)
    print(f"The reference is in {target / 'index.html'}")
