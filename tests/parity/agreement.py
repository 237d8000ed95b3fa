"""When our network agrees with effdet's: each level of both heads, measured and judged. NumPy alone.

    spread      standard deviation of effdet's values in float64
    largest     largest |effdet in float64|
    exact       largest |ours in float64 - effdet in float64|
    difference  largest |ours in float32 - effdet in float64|
    noise       largest |effdet in float32 - effdet in float64|
    ratio       difference / noise

In float64 both must be the same function. What is left is the rounding of our outputs, which are float32 under every
precision: `exact` is at most `EXACT` of `largest`.

In float32 both add the same numbers in other orders, with other kernels: `ratio` is at most `LIMIT`. What is really
different, a padding, a constant, a layer, is wrong by a share of the spread, far beyond both limits.
"""

import dataclasses

import numpy as np

NUM_CLASSES = 90
EXACT = 2.0**-23
"""Fraction of the largest value: twice what rounding to float32 changes at most."""
LIMIT = 4.0
"""Times effdet's own noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One output: a head at a level."""

    output: str
    """`class_3`, `box_3`, ..."""
    spread: float
    largest: float
    exact: float | None
    """None where there is no float64."""
    difference: float
    noise: float
    ratio: float

    @property
    def agrees(self):
        """Whether the output is within the limits."""
        return self.ratio <= LIMIT and (self.exact is None or self.exact <= EXACT * self.largest)


def compare_outputs(single, double, outputs, noise):
    """Measures how far our predictions are from a reference.

    Args:
        single: our RawPredictions of one image in float32.
        double: the same in float64, or None.
        outputs: `class_3`, ... -> what effdet computes in float64, [1, D, h, w].
        noise: the same keys -> largest difference of effdet's float32 from it.

    Returns:
        A row for each output.
    """
    levels = {name: like_ours(array, name).astype(np.float64) for name, array in outputs.items()}
    in_single, in_double = by_output(single, levels), None if double is None else by_output(double, levels)
    rows = []
    for name, exact in levels.items():
        difference = np.abs(in_single[name] - exact).max()
        rows.append(
            Row(
                output=name,
                spread=float(exact.std()),
                largest=float(np.abs(exact).max()),
                exact=None if in_double is None else float(np.abs(in_double[name] - exact).max()),
                difference=float(difference),
                noise=float(noise[name]),
                ratio=float(difference / noise[name]),
            )
        )
    return rows


def like_ours(output, name):
    """Brings a level of effdet's into our layout.

    Args:
        output: [1, 9 * n, h, w]; the channels of a place are anchors and, within an anchor, n classes or deltas.
        name: `class_3`, `box_3`, ...

    Returns:
        [h * w * 9, n].
    """
    numbers = NUM_CLASSES if name.startswith("class") else 4
    return output[0].transpose(1, 2, 0).reshape(-1, numbers)


def by_output(predictions, levels):
    """Cuts RawPredictions of one image into levels, which lie one after another.

    Args:
        predictions: our `class_logits` and `box_deltas`.
        levels: output -> array of the level's shape, finest level first.

    Returns:
        Output -> float64 array of the same shape.
    """
    parts = {}
    for kind, key in (("class", "class_logits"), ("box", "box_deltas")):
        names = [name for name in levels if name.startswith(kind)]
        ends = np.cumsum([len(levels[name]) for name in names])
        assert ends[-1] == predictions[key].shape[1]
        parts |= dict(zip(names, np.split(predictions[key][0].astype(np.float64), ends[:-1]), strict=True))
    return parts
