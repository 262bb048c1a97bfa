"""The text of the embedded backbone: the docstrings of the pinned dependencies, which every installation already carries.

The idea: eight large scientific packages hold tens of megabytes of edited English, and because their versions are pinned the text is
the same on every machine, so a language model can be trained, calibrated and tested without fetching anything.

A document is one source file: its docstrings of at least 80 characters, in file order, joined by blank lines. The split of a file is
decided by the sha256 of its bytes, so it needs no list, no seed and no parsing: the demo hashes every file (a second or two) and
parses only the held-out twelfth.

Near copies are removed by containment of word 8-shingles (Broder 1997; Lee et al. 2022 apply it to language models), in the fixed order
test, validation, calibration, train. A docstring is dropped if more than half of its distinct shingles were kept before. A training
docstring is also dropped if it holds more than half of one held-out docstring: otherwise a long class description in train could contain
a whole test docstring. The held-out splits never depend on the training files.

Left out, because they differ between builds, platforms or Python versions: tests, generated version files, one file in Python 3.12
syntax, and `numpy.distutils` (shipped for Python 3.11 only). What remains is the same text under Python 3.11, 3.12 and 3.13, and it is
checked against the digests in `models/demo/training.json`.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from mgaa.errors import InputError

PACKAGES = {
    "matplotlib": "matplotlib",
    "mlflow": "mlflow",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
"""Import name -> distribution name."""

HELD_OUT = ("test", "validation", "calibration")
SHARES = {"test": 30, "validation": 20, "calibration": 30}
"""Files out of a thousand; the rest is train."""

MINIMUM = 80
SHINGLE = 8
RECORD = Path(__file__).parents[1] / "models" / "demo" / "training.json"
_SKIPPED_FOLDERS = frozenset({"tests", "test", "distutils", "__pycache__"})
_SKIPPED_FILES = frozenset(
    {"version.py", "_version.py", "__config__.py", "_version_meson.py", "conftest.py", "py312_intrinsics.py"}
)


@dataclass(frozen=True)
class Document:
    """Docstrings of one source file that were kept; `path` is relative to the folder that holds the packages."""

    path: str
    text: str


@dataclass
class Deduplicator:
    """Deduplicator that remembers the shingles of everything kept; `guarded` maps a held-out shingle to its docstring."""

    seen: set[bytes] = field(default_factory=set)
    guarded: dict[bytes, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def keep(self, text: str, *, held_out: bool) -> bool:
        """Tell whether `text` is new; if so, its shingles are remembered."""
        own = shingles(text)
        if 2 * len(own & self.seen) > len(own) or (not held_out and self._contains_held_out(own)):
            return False
        if held_out:
            new = own - self.seen
            self.guarded.update(dict.fromkeys(new, len(self.sizes)))
            self.sizes.append(len(new))
        self.seen |= own
        return True

    def _contains_held_out(self, own: set[bytes]) -> bool:
        hits = Counter(self.guarded[each] for each in own & self.guarded.keys())
        return any(2 * count > self.sizes[owner] for owner, count in hits.items())


def shingles(text: str) -> set[bytes]:
    """Hashes of every run of 8 words, or of the whole text if it is shorter."""
    words = text.split()
    runs = (" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1)))
    return {hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs}


def held_out_documents(site: Path | None = None) -> dict[str, list[Document]]:
    """Collect test, validation and calibration documents in path order, within seconds; `site` is the folder that holds the packages."""
    return _collect(HELD_OUT, assign(site), "reading the held-out docstrings")


def splits(site: Path | None = None) -> dict[str, list[Document]]:
    """Collect all four splits; parses every file, about a minute."""
    return _collect((*HELD_OUT, "train"), assign(site), "reading all docstrings")


def assign(site: Path | None = None) -> dict[str, dict[str, bytes]]:
    """Assign every source file to a split by content hash: split -> path -> content, in path order."""
    found: dict[str, dict[str, bytes]] = {name: {} for name in (*HELD_OUT, "train")}
    for path, content in sorted(_files(site)):
        found[split_of(content)][path] = content
    return found


def split_of(content: bytes) -> str:
    """Split of a file with this content."""
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % 1000
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def docstrings(content: bytes) -> list[str]:
    """Docstrings of one source file, in file order.

    Raises:
        SyntaxError: this Python cannot parse the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(content)
    found = [_clean(ast.get_docstring(node)) for node in _documentable_nodes(tree)]
    return [text for text in found if len(text) >= MINIMUM]


def digest(documents: Iterable[Document]) -> str:
    """Digest of a split: sha256 over paths and texts."""
    total = hashlib.sha256()
    for document in documents:
        total.update(f"{document.path}\0{document.text}\0".encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Installed version of every package of the corpus, without the local part (`+cpu`)."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES.values()}


def check(found: Mapping[str, Sequence[Document]], record: Path = RECORD) -> list[str]:
    """One sentence for every split whose digest differs from the one the backbone was trained with; empty if all agree."""
    expected = json.loads(record.read_text())
    now, then = versions(), expected["versions"]
    changed = [f"{name} {now[name]} instead of {then.get(name)}" for name in now if now[name] != then.get(name)]
    cause = ", ".join(changed) or "same versions, so files of these packages were edited or this build differs"
    return [
        f"The {name} text differs from the one the demo backbone was trained with: sha256 {digest(documents)[:12]}, expected "
        f"{expected['splits'][name]['sha256'][:12]} ({cause}). Results will differ; install from constraints.txt to repeat them."
        for name, documents in found.items()
        if digest(documents) != expected["splits"][name]["sha256"]
    ]


def _collect(names: Sequence[str], assigned: Mapping[str, Mapping[str, bytes]], what: str) -> dict[str, list[Document]]:
    kept: dict[str, list[Document]] = {}
    deduplicator = Deduplicator()
    unparsed: list[str] = []
    with tqdm(total=sum(len(assigned[name]) for name in names), desc=what, unit=" files", disable=None) as bar:
        for name in names:
            kept[name] = []
            for path, content in assigned[name].items():
                bar.update()
                try:
                    found = docstrings(content)
                except SyntaxError:
                    unparsed.append(path)
                    continue
                texts = [text for text in found if deduplicator.keep(text, held_out=name in HELD_OUT)]
                if texts:
                    kept[name].append(Document(path, "\n\n".join(texts)))
    if unparsed:
        warnings.warn(
            f"{len(unparsed)} files were left out because this Python cannot parse them: {unparsed}", stacklevel=3
        )
    return kept


def _files(site: Path | None) -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        root = _folder(package, site)
        for path in root.rglob("*.py"):
            relative = path.relative_to(root.parent)
            if not _SKIPPED_FOLDERS.intersection(relative.parts) and not _is_skipped(path.name):
                yield relative.as_posix(), path.read_bytes()


def _is_skipped(name: str) -> bool:
    return name in _SKIPPED_FILES or name.startswith("test_") or name.endswith("_test.py")


def _folder(package: str, site: Path | None) -> Path:
    if site is not None:
        return site / package
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"Package {package} is not installed, but the demo text is made from its docstrings: run `make install`."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _documentable_nodes(
    tree: ast.Module,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Nodes that may have a docstring, in file order. Visits statements only: `ast.walk` would visit every expression."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        parts = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
        stack += [each for part in parts if isinstance(part, list) for each in part][::-1]


def _clean(text: str | None) -> str:
    """Remove trailing blanks and lone surrogates, which Python versions treat differently."""
    if text is None:
        return ""
    return "\n".join(line.rstrip() for line in text.encode("utf-8", "ignore").decode().split("\n")).strip()
