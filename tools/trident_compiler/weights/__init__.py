"""Weights, one at a time, in the formats that engines take."""
