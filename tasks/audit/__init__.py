"""Audits: results are traced, verified, compared and reproduced. Imports `tasks.tracking` and what that imports."""
