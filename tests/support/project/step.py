"""One step without a server: `python step.py count upto=5` prints the digest of its artifact, or the error and its exit code."""

import os
import sys
from pathlib import Path

from mgaa.errors import MgaaError
from tasks import toy
from tasks.cache.artifact import Store

store = Store(Path("store"), float(os.environ.get("LOCK_TIMEOUT", "60")))
name, *words = sys.argv[1:]
arguments = {key: int(value) if value.isdigit() else value for key, _, value in (word.partition("=") for word in words)}
inputs = [toy.count.fn(store, upto=5)] if name in ("combine", "fail") else []
print("asks", flush=True)
try:
    print(getattr(toy, name).fn(store, *inputs, **arguments).digest)
except MgaaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
