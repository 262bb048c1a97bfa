"""The sections of `params.yaml`, one per stage, in the order of the run.

Every field has a description, from which `--help` and error messages are generated (tasks/config/messages.py). A section that selects a
method also holds the options of that method (tasks/config/method_options.py); the lists of a sweep hold such sections
(tasks/config/shorthand.py).
"""
