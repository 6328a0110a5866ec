"""Which sequences are computed in a step, and how far. Pure: no thread, no clock, no engine."""
