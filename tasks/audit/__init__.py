"""Every result traced, verified, compared and made again. Imports `tasks.tracking` and what that imports."""
