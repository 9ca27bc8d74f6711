"""`pbr_jax.prune`: any model, with the weight gradients of selected rows alone."""

from typing import Any

import jax

from pbr_jax.pruning import Learning
from pbr_jax.transform.groups import Keep, Patterns, make_plan
from pbr_jax.transform.model import front_end
from pbr_jax.transform.policies import GroupPolicies
from pbr_jax.transform.pruned import Pruned
from pbr_jax.transform.tracing import Traced

EXCLUDE = r"(?i)(^|/)([^/]*[_.])?(head|classifier|logits)(_?\d+)?(/|$)"
"""Output layers by their usual names: `head`, `lm_head`, `classifier`, `logits`, `head_0`."""


def prune(
    model: Any,
    *example: Any,
    keep: Keep = 0.1,
    include: Patterns = ".*",
    exclude: Patterns | None = EXCLUDE,
    policy: str = "bandit",
    min_columns: int = 64,
    group_size: int = 1,
    learning: Learning | None = None,
    **kwargs: Any,
) -> Pruned:
    """Prunes the weight gradients of a model whose code stays as it is.

    The model is traced once, by shapes. Every matrix product between an activation and a parameter
    is a site: in a step, only K of the D rows of its weight gradient are computed, and only K
    columns of the activation are kept for them (PreBackRazor, Algorithm 1). The forward pass and
    the derivative by the activation are the model's own.

        pruned = pbr_jax.prune(model, images, keep=0.1)
        state = pruned.init()
        selection = pruned.select(state, key)
        loss, grads = pruned.value_and_grad(loss_fn)(params, selection, images, labels)
        state = pruned.learn(state, selection, grads)

    Args:
      model: a Linen module, an NNX module, or a function `(params, *args)`.
      *example: the model's inputs, arrays or `jax.ShapeDtypeStruct`; of a function, its parameters
        come first. `kwargs` go to the model too.
      keep: fraction of the columns to keep, in (0, 1]; or `{pattern: fraction}`, of which the first
        pattern that is found in a parameter's path counts. Parameters of no pattern stay dense.
      include, exclude: patterns of paths, regular expressions that are searched for.
      policy: "bandit" (Algorithm 2), "importance" or "uniform", see `pbr_jax.pruning`.
      min_columns: sites with fewer stay dense.
      group_size: contiguous columns that are chosen together; divides those of every site.
      learning: how the policy follows the gradient; None takes the defaults.

    Raises:
      ValueError: nothing can be pruned; a pattern names nothing, or only what cannot be pruned,
        with the reason; or groups do not tile the columns of a site.
      TypeError: `model` is of no kind above.
    """
    front = front_end(model)
    shown = front.example(example, kwargs)
    trace, _, _ = Traced(shown.function)(shown.params, shown.args, shown.kwargs)
    plan = make_plan(
        trace.analysis,
        front.paths(shown.params),
        jax.tree.leaves(shown.params),
        keep=keep,
        include=include,
        exclude=exclude,
        min_columns=min_columns,
        group_size=group_size,
    )
    policies = GroupPolicies(plan.groups, policy, learning or Learning(), group_size)
    return Pruned(front, plan, policies)
