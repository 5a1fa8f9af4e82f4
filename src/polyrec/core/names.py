"""Names that polyrec, transformers or torch use where the names of tasks and columns stand, too."""

from __future__ import annotations

import warnings

from polyrec.core.older_files import reads_saved

# Of a recommendation beside the predictions of tasks, which stand in the same row under the names of the tasks.
ROW_KEYS = ("rank", "item", "title", "score", "cold_item", "cold_start", "propensity")
_FURTHER_KEYS = ("reason", "events", "query", "history")  # of a row with reasons, and of a request
_OF_METRICS = ("loss", "total", "mean", "model", "runtime", "samples", "steps")  # eval_loss, eval_mean_improvement ...
# What every module of torch has: a head cannot be kept under these names.
_TORCH_WORDS = (
    "add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval "
    "extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys "
    "load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
    "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty "
    "train training type update values xpu zero_grad T_destination"
)
_OF_TORCH = frozenset(_TORCH_WORDS.split())
# Metrics of several words begin with these: "age" and "age_class" would both have a metric "age_class_logloss".
METRIC_BEGINNINGS = ("calibration", "class", "interval", "poisson", "quadratic")

RESERVED_TASKS = frozenset((*ROW_KEYS, *_FURTHER_KEYS, *_OF_METRICS))


def check_task_name(name: str) -> None:
    """Refuse a task's name that means something else already; of a saved run a warning is enough.

    Example:
        >>> check_task_name("score")
        Traceback (most recent call last):
            ...
        ValueError: the task name 'score' is taken ... choose another one, e.g. 'score_task'
    """
    if name in RESERVED_TASKS or name in _OF_TORCH:
        _refuse(
            f"the task name {name!r} is taken (recommendations, metrics or torch use it): choose another one, e.g. "
            f"'{name.rstrip('_')}_task'"
        )


def check_task_names(names: list[str]) -> None:
    """Refuse names of tasks whose metrics would have one name.

    Example:
        >>> check_task_names(["age", "age_class"])
        Traceback (most recent call last):
            ...
        ValueError: metrics of the tasks 'age' and 'age_class' could have one name ('age_class_...'): rename one of them
    """
    for name in names:
        for word in METRIC_BEGINNINGS:
            if (other := f"{name}_{word}") in names:
                _refuse(
                    f"metrics of the tasks {name!r} and {other!r} could have one name ('{other}_...'): rename one of "
                    "them"
                )


def _refuse(message: str) -> None:
    if not reads_saved():
        raise ValueError(message)
    warnings.warn(f"{message}; a saved run still loads, but what collides is not shown", stacklevel=2)
