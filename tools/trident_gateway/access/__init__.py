"""Who may use the gateway: keys of its own, and tokens of identity providers."""
