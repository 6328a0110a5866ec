"""A deployment under load, played through with the real scheduler and simulated time."""
