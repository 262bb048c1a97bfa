"""What makes a flow a command: options, exit codes, workers, engines. Imports no other folder of `flows`."""
