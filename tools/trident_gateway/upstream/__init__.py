"""Calls to the tritonservers behind the gateway."""
