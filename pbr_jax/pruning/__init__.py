"""Which columns and tensors to train: samplers, the bandit, its projection, and policies."""

from pbr_jax.pruning.jointspar import JointSpar, JointSparState, joint_spar
from pbr_jax.pruning.policy import Learning, PolicyState, PruningPolicy, make_policy
from pbr_jax.pruning.sites import SitePolicies, stacked

__all__ = [
    "JointSpar",
    "JointSparState",
    "Learning",
    "PolicyState",
    "PruningPolicy",
    "SitePolicies",
    "joint_spar",
    "make_policy",
    "stacked",
]
