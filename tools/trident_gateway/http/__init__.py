"""HTTP as the gateway speaks it with its clients."""
