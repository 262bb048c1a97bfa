"""Parts that several flows have in common. Imports `flows.command`."""
