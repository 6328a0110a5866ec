"""Calls to the tritonservers behind the gateway."""

# For the owner, from build (remove this): `trident serve` restricts POST /v2/repository/index to itself (Triton's group
# `model-repository` also loads and unloads; it answers 403 {"error":"This API is restricted, ..."}). What is open and
# lists every ready model is GET /v2/models/stats: {"model_stats":[{"name","version",...}]}; tried with 2.51. Find models
# by it, and take the index only where stats is refused.
