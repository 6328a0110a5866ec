"""Callers move to a new version in stages, and back as soon as it is worse."""
