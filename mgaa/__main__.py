"""Run a program that does not import mgaa so that it loads compressed checkpoints like any other.

    python -m mgaa lm_eval --model hf --model_args pretrained=models/compressed --tasks hellaswag

The first word is the argument of `python -m`, the rest belongs to the program. The effect is that of `import mgaa` at the top of the
program; where a program starts others by their own command line, wrap the inner one: `accelerate launch -m mgaa lm_eval ...`.
"""

import runpy
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the module that the first argument names in this process."""
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m mgaa MODULE [ARGUMENTS]\nfor example: python -m mgaa lm_eval --model hf ...")
    del sys.argv[0]
    if (
        not all(part.isidentifier() for part in sys.argv[0].split("."))
        or find_spec(sys.argv[0].partition(".")[0]) is None
    ):
        sys.exit(f"error: there is no module {sys.argv[0]!r}: expected the argument of `python -m`, such as lm_eval")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
