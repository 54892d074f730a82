"""Promises about the outside world: store, manifest, lease, launch. Imports nothing of ours."""
