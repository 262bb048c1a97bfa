"""Run a notebook from top to bottom, and keep what its cells print and draw.

    python docs/notebook.py examples/smollm2.ipynb

A notebook is JSON, and its cells here are plain Python, so no kernel is needed: all of them run in one namespace, in the folder of the
notebook. What a cell prints becomes its output, and the figures that it leaves open become images.
"""

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def run_notebook(path: Path) -> dict[str, Any]:
    """Run every code cell, and return the notebook with the new outputs."""
    import matplotlib

    matplotlib.use("Agg")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(path.parent):
        for number, cell in enumerate(each for each in notebook["cells"] if each["cell_type"] == "code"):
            cell["execution_count"] = number + 1
            cell["outputs"] = run_cell("".join(cell["source"]), namespace, f"{path.name}, cell {number + 1}")
    return notebook


def run_cell(source: str, namespace: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Run a cell, and return its outputs."""
    from matplotlib import pyplot

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, name, "exec"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := said.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
        image = {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"data": image, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return outputs


if __name__ == "__main__":
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for given in map(Path, sys.argv[1:]):
        text = json.dumps(run_notebook(given), indent=1, ensure_ascii=False)
        given.write_text(f"{text}\n", encoding="utf-8")
