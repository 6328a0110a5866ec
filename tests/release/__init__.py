"""The gate that a release passes: its quality against the last release's figures, its speed against its engine."""
