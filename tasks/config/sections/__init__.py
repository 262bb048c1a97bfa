"""The sections of `params.yaml`, one per stage, in the order of the run.

Every field says what it means, so that `--help` and the error messages are written from the model alone (tasks/config/messages.py). A
section that selects a method also holds that method's options (tasks/config/method_options.py); the lists of a sweep hold many such
sections (tasks/config/shorthand.py).
"""
