"""Engines: the protocol the core drives, the artifact on disk, and one host a compiler."""
