"""The ancestry of a result for people and programs: a tree in the terminal, or JSON.

Many inputs of one kind (one for each block) are one line; a branch that was shown above is not repeated. The leaves are
the files that came from outside, with their sha256.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from mgaa.checkpoints.folder import GGUF
from tasks.artifacts.files import BACKBONE, CARD
from tasks.audit.references import derivation
from tasks.cache.artifact import Artifact, Store
from tasks.record.lineage import Node, ancestry, describe_node, full_name

SHORT = 12
"""Characters of a shortened digest."""
OUTSIDE = ("backbone", "model", "texts", "questions")
"""Kinds that are made from files outside the project."""


def as_json(store: Store, root: Artifact) -> str:
    """Describe all ancestors of `root` as JSON, by `kind/digest`, inputs first, with the files that came from outside."""
    nodes = ancestry(store, [root], derivation(store, root))
    ancestors = {
        full_name(artifact): {**describe_node(node), "files": dict(files_of(store, node))}
        for artifact, node in nodes.items()
    }
    return json.dumps({"root": full_name(root), "artifacts": ancestors}, indent=1, ensure_ascii=False)


def print_tree(store: Store, root: Artifact, *, full: bool) -> None:
    """Print the ancestry of `root` as a tree; `full` shows every artifact on a line of its own, with complete digests."""
    from rich.console import Console
    from rich.tree import Tree

    nodes = ancestry(store, [root], derivation(store, root))
    tree = Tree(format_node(nodes[root], "", full=full), guide_style="dim")
    add_inputs(tree, store, nodes, nodes[root], shown=set(), full=full)
    Console(highlight=False, markup=True, width=None if sys.stdout.isatty() else 10_000).print(tree)
    kinds = len({node.artifact.kind for node in nodes.values()})
    missing = sum(node.problem is not None for node in nodes.values())
    print(f"{len(nodes)} artifacts of {kinds} kinds" + (f", {missing} of them missing or damaged" if missing else ""))


def add_inputs(
    tree: Any, store: Store, nodes: Mapping[Artifact, Node], node: Node, *, shown: set[Artifact], full: bool
) -> None:
    """Add the inputs of a node below it."""
    for file, digest in files_of(store, node):
        tree.add(f"[dim]{file}  {digest if full else digest[:SHORT]}[/dim]")
    for role, inputs in node.inputs.items():
        first, *others = inputs
        more = [] if full else others
        folded = all(nodes[each].problem is None for each in more)
        for each in inputs if full or not folded else [first]:
            label = format_node(nodes[each], role, full=full) + (
                f" [dim]and {len(more)} more[/dim]" if more and folded else ""
            )
            if each in shown and (nodes[each].inputs or nodes[each].artifact.kind in OUTSIDE):
                tree.add(f"{label} [dim](above)[/dim]")
                continue
            shown.add(each)
            add_inputs(tree.add(label), store, nodes, nodes[each], shown=shown, full=full)


def format_node(node: Node, role: str, *, full: bool) -> str:
    """Format an artifact as one line: its role for its parent, its name, when it was made and by which task."""
    artifact, manifest = node.artifact, node.manifest
    digest = artifact.digest if full else artifact.digest[:SHORT]
    called = f"[bold]{role or artifact.kind}[/bold]  [cyan]{artifact.kind}/{digest}[/cyan]"
    if node.problem is not None:
        return f"{called}  [red]{node.problem}[/red]"
    when = datetime.fromisoformat(manifest["end"]).strftime("%Y-%m-%d %H:%M")
    commit, dirty = str(manifest["git"]["commit"])[:8], " changed" if manifest["git"]["dirty"] else ""
    return f"{called}  {manifest['task']}, {when}, {manifest['seconds']:.1f} s, commit {commit}{dirty}"


def files_of(store: Store, node: Node) -> Iterator[tuple[str, str]]:
    """List the outside files that an artifact was made from, with their sha256; sources that are not files appear under their kind."""
    place, kind = store.path_of(node.artifact), node.artifact.kind
    if node.problem is not None:
        return
    if kind in ("backbone", "model") and (path := place / BACKBONE).is_file():
        record = json.loads(path.read_bytes())
        for file, digest in record["files"].items():
            yield record["source"] if record["source"].endswith(GGUF) else f"{record['source']}/{file}", digest
        if (origin := record.get("dequantized")) and not record["source"].endswith(GGUF):
            yield f"dequantized from {origin['file']}", origin["sha256"]
            if wheel := origin.get("wheel"):
                yield f"out of {wheel['file']}", wheel["sha256"]
    if kind in ("texts", "questions") and (path := place / CARD).is_file():
        for section, card in json.loads(path.read_bytes())["sections"].items():
            files = card.get("files") or [
                {"name": str(card.get("kind") or card.get("source")), "sha256": card["data_digest"]}
            ]
            yield from ((f"{section}: {file['name']}", file["sha256"]) for file in files)
