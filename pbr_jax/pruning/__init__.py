"""Which columns and tensors to train: samplers, the bandit, its projection, and policies."""

from pbr_jax.pruning.jointspar import JointSpar, JointSparState, joint_spar
from pbr_jax.pruning.policy import PolicyState, PruningPolicy, make_policy, stacked

__all__ = [
    "JointSpar",
    "JointSparState",
    "PolicyState",
    "PruningPolicy",
    "joint_spar",
    "make_policy",
    "stacked",
]
