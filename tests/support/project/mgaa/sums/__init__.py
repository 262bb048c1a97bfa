"""Methods of `combine`."""
