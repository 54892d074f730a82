"""What megatron-core 0.16.1 needs to run without CUDA and without TransformerEngine.

`install()` must run before anything imports `megatron`; every module of ours that imports
megatron imports this package first. It is idempotent, and each patch names its reason.
"""

import warnings

import torch

# What megatron-core 0.16.1 says on every start, about things this package or torch takes care of.
KNOWN_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",
    "`load_state_dict` is deprecated",
)
_installed = False


def install() -> None:
    """Apply the patches this machine needs, once."""
    global _installed
    if _installed:
        return
    _installed = True
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not torch.cuda.is_available():
        from m1.model.compat import cpu

        cpu.install()
    from m1.model.compat import no_transformer_engine

    no_transformer_engine.install()


install()
