"""Lets megatron-core 0.16.1 train, save and resume with torch's AdamW, without TransformerEngine.

Needed on CPU and on CUDA alike. Each function mends one fault of 0.16.1 that shows only when
neither TransformerEngine nor Apex is installed.
"""

from typing import Any

import torch


def _is_installed() -> bool:
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return bool(HAVE_TE)


def _mend_router_gemm() -> None:
    """The router asks for `te_general_gemm`, a name that exists only with TransformerEngine."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def create_optimizer_state(optimizer: Any) -> None:
    """Give every parameter of a fresh torch AdamW its (zero) state.

    The checkpoint template is built from the state, which torch creates only at the first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                device = parameter.device if group.get("fused") else None
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)


def _fuse_adam() -> None:
    """Without TransformerEngine and Apex, Megatron takes torch's AdamW in its plain form.

    Fused it is one kernel instead of a dozen passes over states and gradients.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original_init = DistributedOptimizer.__init__

    def fuse_and_init(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["fused"] = True
        original_init(self, optimizer, *args, **kwargs)

    DistributedOptimizer.__init__ = fuse_and_init


def _separate_step_counters(optimizer: Any) -> None:
    """Undo the sharing of one `step` tensor by all parameters after loading.

    Shared, it would advance once per parameter and step, and bias correction would go wrong
    without any message.
    """
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def _mend_distributed_optimizer() -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original_state_dict = DistributedOptimizer.state_dict
    original_load = DistributedOptimizer.load_state_dict

    def state_dict(self: Any) -> Any:
        create_optimizer_state(self.optimizer)
        return original_state_dict(self)

    def load_state_dict(self: Any, stored: Any) -> None:
        original_load(self, stored)
        _separate_step_counters(self.optimizer)

    def set_states(self: Any, model_param: Any, tensors: dict[str, torch.Tensor]) -> None:
        """Copy what the checkpoint holds; `step` is not among it and is restored elsewhere."""
        group_index, group_order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group_index]["params"][group_order]
        targets = {"param": main_param, **self.optimizer.state[main_param]}
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)

    DistributedOptimizer.state_dict = state_dict
    DistributedOptimizer.load_state_dict = load_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states


def install() -> None:
    """Apply all patches of this module, unless TransformerEngine is there."""
    if _is_installed():
        return
    _mend_router_gemm()
    _mend_distributed_optimizer()
    if torch.cuda.is_available():
        _fuse_adam()
