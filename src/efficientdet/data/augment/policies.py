"""Sequences of changes: AutoAugment for detection (Zoph et al. 2019) and RandAugment (Cubuk et al. 2019).

A policy is a list of short sequences, one of which is drawn for each image; each of its steps has its own probability.
Tables and strengths are google/automl's. Its lengths in px suit COCO, whose images have a longer side of 640 px; here
they scale with the image. An image is uint8[h, w, 3]; boxes are float32[N, 4], yxyx, fractions of its height and width,
and move with the pixels (`geometry`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from efficientdet.config import Policy
from efficientdet.data.augment import color, geometry, holes

_LONGER_SIDE = 640.0  # px; lengths are given for images of this size
_SHIFT, _SHIFT_IN_BOX = 250.0, 120.0  # px at strength 1
_HOLE, _HOLE_IN_BOX = 100.0, 50.0  # px from the center of a hole to its edge, at strength 1

_Image = tuple[Any, Any]  # pixels, boxes


class _Place(NamedTuple):
    """The strength of a change and where it is applied."""

    strength: float  # 1 is the published maximum
    scale: Any  # float32[], longer side of the image over _LONGER_SIDE
    in_box: bool  # the change applies to the inside of a box
    seed: Any  # int32[2]

    def sign(self) -> Any:
        """Draws 1 or -1."""
        import tensorflow as tf

        return tf.where(tf.random.stateless_uniform([], self.seed) < 0.5, 1.0, -1.0)

    def length(self, whole: float, in_box: float) -> Any:
        """Computes a length in px from those at strength 1 for a whole image and for a box."""
        return self.strength * (in_box if self.in_box else whole) * self.scale

    def factor(self) -> float:
        """Computes the factor of a blend."""
        return 1.8 * self.strength + 0.1


_Change = Callable[[Any, Any, _Place], _Image]


class Step(NamedTuple):
    """One change of a sequence.

    Attributes:
        change: the change.
        probability: its probability; for changes inside boxes, three times the probability for each box.
        level: 0..10, ten times its strength.
        in_boxes: apply it inside each box separately, instead of to the whole image.
    """

    change: _Change
    probability: float
    level: float
    in_boxes: bool = False


def apply_policy(
    policy: Policy, image: Any, boxes: Any, seed: Any, *, num_layers: int, magnitude: float
) -> tuple[Any, Any]:
    """Applies a policy to an image and its boxes.

    Args:
        policy: name of the policy.
        image: uint8[h, w, 3].
        boxes: float32[N, 4].
        seed: int32[2].
        num_layers: number of successive changes (RandAugment only).
        magnitude: level of each change (RandAugment only); google/automl's is 15, beyond the published 10.

    Returns:
        uint8[h, w, 3] and float32[N, 4]; boxes moved out of the image are (0, 0, 0, 0).
    """
    import tensorflow as tf

    if policy == "none":
        return image, boxes
    if policy != "randaugment":
        return _apply_one(AUTOAUGMENT[policy], image, boxes, seed)
    sequences = tuple((Step(change, 1.0, magnitude),) for change in RANDAUGMENT)
    for layer in range(num_layers):
        image, boxes = _apply_one(sequences, image, boxes, tf.random.fold_in(seed, layer))
    return image, boxes


def _apply_one(sequences: tuple[tuple[Step, ...], ...], image: Any, boxes: Any, seed: Any) -> _Image:
    """Draws one of the sequences and applies it."""
    import tensorflow as tf

    def branch(steps: tuple[Step, ...]) -> Callable[[], _Image]:
        return lambda: apply_steps(steps, image, boxes, tf.random.fold_in(seed, 1))

    number = tf.random.stateless_uniform([], seed, 0, len(sequences), tf.int32)
    return tf.switch_case(number, [branch(steps) for steps in sequences])


def apply_steps(steps: tuple[Step, ...], image: Any, boxes: Any, seed: Any) -> tuple[Any, Any]:
    """Applies the steps of one sequence, each with its probability.

    Args:
        steps: the steps of the sequence.
        image: uint8[h, w, 3].
        boxes: float32[N, 4].
        seed: int32[2].

    Returns:
        uint8[h, w, 3] and float32[N, 4].
    """
    import tensorflow as tf

    for number, step in enumerate(steps):
        drawing, own = tf.unstack(tf.random.split(tf.random.fold_in(seed, number)))
        if step.in_boxes:
            image = _change_in_boxes(step, image, boxes, own)
        elif step.probability:
            image, boxes = _change(step, image, boxes, drawing, own)
    return image, boxes


def _change(step: Step, image: Any, boxes: Any, drawing: Any, own: Any) -> _Image:
    """Applies one step to a whole image with its probability."""
    import tensorflow as tf

    place = _Place(step.level / 10, _scale(image), False, own)
    is_wanted = tf.random.stateless_uniform([], drawing) < step.probability
    return tf.cond(is_wanted, lambda: step.change(image, boxes, place), lambda: (image, boxes))


def _change_in_boxes(step: Step, image: Any, boxes: Any, own: Any) -> Any:
    """Applies one step inside each box with a third of its probability, as google/automl does."""
    scale = _scale(image)

    def change(part: Any, seed: Any) -> Any:
        return step.change(part, boxes[:0], _Place(step.level / 10, scale, True, seed))[0]

    return geometry.change_in_boxes(image, boxes, step.probability / 3, own, change) if step.probability else image


def _scale(image: Any) -> Any:
    import tensorflow as tf

    return tf.cast(tf.reduce_max(tf.shape(image)[:2]), tf.float32) / _LONGER_SIDE


def _shift_x(image: Any, boxes: Any, place: _Place) -> _Image:
    return geometry.shift(image, boxes, 0.0, place.sign() * place.length(_SHIFT, _SHIFT_IN_BOX))


def _shift_y(image: Any, boxes: Any, place: _Place) -> _Image:
    return geometry.shift(image, boxes, place.sign() * place.length(_SHIFT, _SHIFT_IN_BOX), 0.0)


def _shear_x(image: Any, boxes: Any, place: _Place) -> _Image:
    return geometry.shear(image, boxes, 0.0, place.sign() * 0.3 * place.strength)


def _shear_y(image: Any, boxes: Any, place: _Place) -> _Image:
    return geometry.shear(image, boxes, place.sign() * 0.3 * place.strength, 0.0)


def _rotate(image: Any, boxes: Any, place: _Place) -> _Image:
    return geometry.rotate(image, boxes, place.sign() * 30.0 * place.strength)


def _mirror(image: Any, boxes: Any, place: _Place) -> _Image:
    """Mirrors the inside of a box; the box stays where it is."""
    assert place.in_box
    return image[:, ::-1], boxes


def _cut_out(image: Any, boxes: Any, place: _Place) -> _Image:
    return holes.cut_out(image, place.length(_HOLE, _HOLE_IN_BOX), place.seed), boxes


def _cut_out_in_box(image: Any, boxes: Any, place: _Place) -> _Image:
    return holes.cut_out_in_box(image, boxes, 0.75 * place.strength, place.seed), boxes


def _saturate(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.change_saturation(image, place.factor()), boxes


def _contrast(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.change_contrast(image, place.factor()), boxes


def _brighten(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.change_brightness(image, place.factor()), boxes


def _sharpen(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.sharpen(image, place.factor()), boxes


def _posterize(image: Any, boxes: Any, place: _Place) -> _Image:
    """Keeps int(4 * strength) bits, at least one: if that is 0, google/automl's shift by 8 acts like one by 7."""
    return color.posterize(image, min(max(int(4 * place.strength), 1), 8)), boxes


def _solarize(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.solarize(image, int(256 * place.strength)), boxes


def _solarize_add(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.solarize_add(image, int(110 * place.strength)), boxes


def _equalize(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.equalize(image), boxes


def _auto_contrast(image: Any, boxes: Any, place: _Place) -> _Image:
    return color.auto_contrast(image), boxes


def _in_boxes(change: _Change, probability: float, level: float) -> Step:
    return Step(change, probability, level, True)


RANDAUGMENT: tuple[_Change, ...] = (
    _equalize,
    _solarize,
    _saturate,
    _cut_out,
    _solarize_add,
    _shift_x,
    _shift_y,
    _shear_x,
    _shear_y,
    _rotate,
)
"""What RandAugment draws from. At google/automl's magnitude 15, no value reaches the threshold of `_solarize`."""

# Steps with probability 0 are kept as published.
_V1 = (
    (Step(_shift_x, 0.6, 4), Step(_equalize, 0.8, 10)),
    (_in_boxes(_shift_y, 0.2, 2), Step(_cut_out, 0.8, 8)),
    (Step(_sharpen, 0.0, 8), Step(_shear_x, 0.4, 0)),
    (Step(_shear_y, 1.0, 2), _in_boxes(_shift_y, 0.6, 6)),
    (Step(_rotate, 0.6, 10), Step(_saturate, 1.0, 6)),
    (Step(_saturate, 0.0, 0), _in_boxes(_shear_x, 0.8, 4)),
    (_in_boxes(_shear_y, 0.8, 2), _in_boxes(_mirror, 0.0, 10)),
    (Step(_equalize, 0.6, 10), Step(_shift_x, 0.2, 2)),
    (Step(_saturate, 1.0, 10), _in_boxes(_shift_y, 0.4, 6)),
    (Step(_rotate, 0.8, 10), Step(_contrast, 0.0, 10)),
    (Step(_cut_out, 0.2, 2), Step(_brighten, 0.8, 10)),
    (Step(_saturate, 1.0, 6), Step(_equalize, 1.0, 2)),
    (_in_boxes(_cut_out, 0.4, 6), _in_boxes(_shift_y, 0.8, 2)),
    (Step(_saturate, 0.2, 8), Step(_rotate, 0.8, 10)),
    (Step(_sharpen, 0.4, 4), _in_boxes(_shift_y, 0.0, 4)),
    (Step(_sharpen, 1.0, 4), Step(_solarize_add, 0.4, 4)),
    (Step(_rotate, 1.0, 8), Step(_sharpen, 0.2, 8)),
    (Step(_shear_y, 0.6, 10), _in_boxes(_equalize, 0.6, 8)),
    (Step(_shear_x, 0.2, 6), _in_boxes(_shift_y, 0.2, 10)),
    (Step(_solarize_add, 0.6, 8), Step(_brighten, 0.8, 10)),
)
_V2 = (
    (Step(_saturate, 0.0, 6), Step(_cut_out, 0.6, 8), Step(_sharpen, 0.4, 8)),
    (Step(_rotate, 0.4, 8), Step(_sharpen, 0.4, 2), Step(_rotate, 0.8, 10)),
    (Step(_shift_y, 1.0, 8), Step(_auto_contrast, 0.8, 2)),
    (Step(_auto_contrast, 0.4, 6), Step(_shear_x, 0.8, 8), Step(_brighten, 0.0, 10)),
    (Step(_solarize_add, 0.2, 6), Step(_contrast, 0.0, 10), Step(_auto_contrast, 0.6, 0)),
    (Step(_cut_out, 0.2, 0), Step(_solarize, 0.8, 8), Step(_saturate, 1.0, 4)),
    (Step(_shift_y, 0.0, 4), Step(_equalize, 0.6, 8), Step(_solarize, 0.0, 10)),
    (Step(_shift_y, 0.2, 2), Step(_shear_y, 0.8, 8), Step(_rotate, 0.8, 8)),
    (Step(_cut_out, 0.8, 8), Step(_brighten, 0.8, 8), Step(_cut_out, 0.2, 2)),
    (Step(_saturate, 0.8, 4), Step(_shift_y, 1.0, 6), Step(_rotate, 0.6, 6)),
    (Step(_rotate, 0.6, 10), Step(_cut_out_in_box, 1.0, 4), Step(_cut_out, 0.2, 8)),
    (Step(_rotate, 0.0, 0), Step(_equalize, 0.6, 6), Step(_shear_y, 0.6, 8)),
    (Step(_brighten, 0.8, 8), Step(_auto_contrast, 0.4, 2), Step(_brighten, 0.2, 2)),
    (Step(_shift_y, 0.4, 8), Step(_solarize, 0.4, 6), Step(_solarize_add, 0.2, 10)),
    (Step(_contrast, 1.0, 10), Step(_solarize_add, 0.2, 8), Step(_equalize, 0.2, 4)),
)
_V3 = (
    (Step(_posterize, 0.8, 2), Step(_shift_x, 1.0, 8)),
    (Step(_cut_out_in_box, 0.2, 10), Step(_sharpen, 1.0, 8)),
    (Step(_rotate, 0.6, 8), Step(_rotate, 0.8, 10)),
    (Step(_equalize, 0.8, 10), Step(_auto_contrast, 0.2, 10)),
    (Step(_solarize_add, 0.2, 2), Step(_shift_y, 0.2, 8)),
    (Step(_sharpen, 0.0, 2), Step(_saturate, 0.4, 8)),
    (Step(_equalize, 1.0, 8), Step(_shift_y, 1.0, 8)),
    (Step(_posterize, 0.6, 2), Step(_rotate, 0.0, 10)),
    (Step(_auto_contrast, 0.6, 0), Step(_rotate, 1.0, 6)),
    (Step(_equalize, 0.0, 4), Step(_cut_out, 0.8, 10)),
    (Step(_brighten, 1.0, 2), Step(_shift_y, 1.0, 6)),
    (Step(_contrast, 0.0, 2), Step(_shear_y, 0.8, 0)),
    (Step(_auto_contrast, 0.8, 10), Step(_contrast, 0.2, 10)),
    (Step(_rotate, 1.0, 10), Step(_cut_out, 1.0, 10)),
    (Step(_solarize_add, 0.8, 6), Step(_equalize, 0.8, 8)),
)
AUTOAUGMENT: dict[str, tuple[tuple[Step, ...], ...]] = {"v0": _V1[:5], "v1": _V1, "v2": _V2, "v3": _V3}
"""The published policies; v0 has the first five sequences of v1."""
