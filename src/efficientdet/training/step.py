"""step(state, batch) -> (state, logs): loss, gradient, guard, update, average; a pure function.

The state is a dict of arrays; lists are in the order of the model's variables:
    trainable, momentum, average_trainable: float32; square: float32, Adam only; non_trainable,
    average_non_trainable: batch statistics and random generator states; step: steps done; updates: steps that changed
    the weights; bad_steps: consecutive steps that did not, not counting overflows from too large a loss scale;
    loss_scale, good_steps: dynamic loss scale (Micikevicius et al. 2018, section 3.2).
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from efficientdet.config import ExperimentConfig, Method
from efficientdet.model import normalization
from efficientdet.structures import Array, Batch, Boxes, Scalar
from efficientdet.training import loss_scale, losses, optimizer, targets
from efficientdet.training.distributed import engine, packing
from efficientdet.training.distributed.replicas import Replicas

State = dict[str, Any]


def first_state(model: Any, method: Method | None = "sgd") -> State:
    """Creates the initial state of a model for an optimizer: NumPy arrays."""
    trainable = [np.array(variable.numpy()) for variable in model.trainable_variables]
    non_trainable = [np.array(variable.numpy()) for variable in model.non_trainable_variables]
    is_scaled = model.dtype_policy.name == "mixed_float16"
    return {
        "trainable": trainable,
        "non_trainable": non_trainable,
        "momentum": [np.zeros_like(value) for value in trainable],
        **({"square": [np.zeros_like(value) for value in trainable]} if method == "adam" else {}),
        "average_trainable": [value.copy() for value in trainable],
        "average_non_trainable": [value.copy() for value in non_trainable],
        "step": np.int32(0),
        "updates": np.int32(0),
        "bad_steps": np.int32(0),
        "loss_scale": np.float32(loss_scale.AT_FIRST if is_scaled else 1.0),
        "good_steps": np.int32(0),
    }


def make_step(
    model: Any,
    anchors: Boxes,
    config: ExperimentConfig,
    schedule: dict[str, float],
    replicas: Replicas,
    *,
    is_fixed: bool = False,
) -> Callable[[State, Batch], tuple[State, dict[str, Any]]]:
    """Creates the training step.

    With `training.accumulate_steps` the batch goes through the network in parts. Their losses are divided by the
    matched anchors of the whole batch, so that the sum of the gradients is that of the whole batch. What is tested,
    updated, averaged and counted is the sum.

    A step whose loss, gradients or new batch statistics are not finite changes only the counters: this is how too large
    a loss scale is detected, and it keeps a bad batch from doing damage.

    Args:
        model: EfficientDet.
        anchors: float32[A, 4], for the model's image size.
        config: losses, optimizer, parts of the batch; with derived values.
        schedule: arguments of `optimizer.learning_rate`.
        replicas: what shares the batch; its sums and means cover the whole batch.
        is_fixed: whether to normalize by the moving statistics, which then stay constant.

    Returns:
        step(state, batch) -> (state, logs); logs are float32[]: loss, class_loss, box_loss as in validation, l2_loss,
        gradient_norm (after clipping), learning_rate, ok (1 if the step counted), is_overflow (1 if it was skipped
        because of too large a loss scale), loss_scale, bad_steps.
    """
    is_scaled = model.dtype_policy.name == "mixed_float16"
    weights, statistics = replicas.packing.trainable, replicas.packing.non_trainable
    is_kernel = packing.which_decay(model, weights)
    num_parts = config.training.accumulate_steps

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        wanted = targets.assign(anchors, batch, config.loss.match_iou)
        num_matched = replicas.sum(losses.count_matched(wanted["labels"]))
        rows = {"images": batch["images"], "valid_size": batch["valid_size"], "wanted": wanted}

        def differentiate(rows: Any, non_trainable: list[Any]) -> tuple[dict[str, Any], list[Any], list[Any]]:
            inputs = {name: rows[name] for name in ("images", "valid_size")}

            def scaled_loss(trainable: list[Any]) -> tuple[Any, Any]:
                with normalization.fixed() if is_fixed else contextlib.nullcontext():
                    raw, moved = model.stateless_call(
                        trainable, statistics.unpack(non_trainable), inputs, training=True
                    )
                values = losses.detection_losses(raw, rows["wanted"], config.loss, num_matched=num_matched)
                return values["loss"] * state["loss_scale"], (values, moved)

            arrays = weights.unpack(state["trainable"])
            _, (values, moved), gradients = engine.value_and_gradients(scaled_loss, arrays)
            return values, statistics.pack(moved), weights.pack(gradients)

        if num_parts == 1:
            values, non_trainable, gradients = differentiate(rows, state["non_trainable"])
        else:
            parts = replicas.split(rows, num_parts)
            values, non_trainable, gradients = _accumulate(differentiate, state, parts, num_parts, replicas)
        values, gradients = replicas.sum((values, gradients))
        non_trainable = replicas.mean(non_trainable)
        if is_scaled:
            gradients = [g / state["loss_scale"] for g in gradients]
        gradients, l2_loss = _add_l2(gradients, state["trainable"], is_kernel, config.optimizer.weight_decay)
        ok = _all_finite([values["loss"], *gradients, *non_trainable])
        gradients = weights.join(optimizer.clip(weights.pieces(gradients), config.optimizer.clip_norm))
        rate = optimizer.learning_rate(state["step"], **schedule)
        new = _update(state, gradients, non_trainable, rate, config)
        new = engine.choose(ok, new, {key: state[key] for key in new})
        is_overflow = loss_scale.is_overflow(state, ok, values["loss"], is_scaled)
        new = {**new, **loss_scale.count(state, ok, is_overflow, is_scaled)}
        logs = {
            **values,
            "l2_loss": l2_loss,
            "gradient_norm": optimizer.global_norm(gradients),
            "learning_rate": rate,
            "ok": ops.cast(ok, "float32"),
            "is_overflow": ops.cast(is_overflow, "float32"),
            "loss_scale": state["loss_scale"],
            "bad_steps": ops.cast(new["bad_steps"], "float32"),
        }
        return new, logs

    return step


def _accumulate(
    differentiate: Callable[..., Any], state: State, parts: Any, num_parts: int, replicas: Replicas
) -> tuple[Any, Any, Any]:
    """Differentiates part by part and sums losses and gradients; each part updates the batch statistics."""

    def add(carry: Any, rows: Any) -> Any:
        values, non_trainable, gradients = carry
        new_values, non_trainable, new_gradients = differentiate(rows, non_trainable)
        values = {name: value + new_values[name] for name, value in values.items()}
        return values, non_trainable, [a + b for a, b in zip(gradients, new_gradients, strict=True)]

    zeros = {name: ops.zeros((), "float32") for name in losses.NAMES}
    first = (zeros, state["non_trainable"], [ops.zeros_like(weight) for weight in state["trainable"]])
    return replicas.fold(add, first, parts, num_parts)


def _add_l2(
    gradients: list[Any], weights: list[Any], is_kernel: list[bool], weight_decay: float
) -> tuple[list[Array], Scalar]:
    """Adds the gradient of weight_decay * sum(kernel^2) / 2; also returns that loss."""
    rows = list(zip(gradients, weights, is_kernel, strict=True))
    kernels = [w for _, w, chosen in rows if chosen]
    l2_loss = 0.5 * weight_decay * sum(ops.sum(ops.square(kernel)) for kernel in kernels)
    return [g + weight_decay * w if chosen else g for g, w, chosen in rows], l2_loss


def _update(
    state: State, gradients: list[Any], non_trainable: list[Any], rate: Scalar, config: ExperimentConfig
) -> State:
    """Updates weights, momenta and averages as if the step were good."""
    weights, momentum, knobs = state["trainable"], state["momentum"], config.optimizer
    moments = {}
    if knobs.method == "adam":
        trainable, moments["momentum"], moments["square"] = optimizer.adam_update(
            weights,
            gradients,
            momentum,
            state["square"],
            updates=state["updates"] + 1,
            rate=rate,
            momentum=knobs.momentum,
            square_decay=knobs.square_decay,
        )
    else:
        trainable, moments["momentum"] = optimizer.momentum_update(
            weights, gradients, momentum, rate=rate, momentum=knobs.momentum
        )
    decay = optimizer.average_decay(state["updates"] + 1, config.optimizer.average_decay)
    return {
        "trainable": trainable,
        **moments,
        "non_trainable": non_trainable,
        "average_trainable": optimizer.average_update(state["average_trainable"], trainable, decay),
        "average_non_trainable": optimizer.average_update(state["average_non_trainable"], non_trainable, decay),
        "updates": state["updates"] + 1,
    }


def _all_finite(arrays: list[Array]) -> Scalar:
    """Returns whether all numbers in the float arrays are finite: bool[]."""
    # Concatenated first: if the results for separate arrays are combined, XLA recomputes all of them in every consumer,
    # and compiling takes minutes (JAX 0.10.2, a choice between two states: 90 s instead of 1.5 s).
    flat = [ops.reshape(array, (-1,)) for array in arrays if "float" in str(array.dtype)]
    return ops.all(ops.isfinite(ops.concatenate(flat)))
