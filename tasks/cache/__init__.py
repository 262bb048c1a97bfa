"""Steps that are computed once: artifacts, manifests, keys, and what ran where. Imports no other folder of `tasks`."""
