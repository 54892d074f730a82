"""A whole small world with its own time, in which the real protocol of a stage run is driven.

Real: everything in `flows` that runs a stage or sweeps a run, leases, manifests, checkpoints, the
context of a job, and `S3Store`. Simulated: time, machines, processes, the S3 service, the launcher
and what a job computes. One seed decides everything that happens.
"""
