"""The command line of the flows: options, exit codes, workers, engine. Imports no other folder of `flows`."""
