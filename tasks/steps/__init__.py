"""The cached steps, one a file. Imports artifacts, evaluation, data, figures and cache."""
