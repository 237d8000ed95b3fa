"""Detects a diverging training loss: one that stays far above its lowest level.

The loss is smoothed over about 50 steps because small batches make it noisy. It counts as diverging once the smoothed
loss has been more than 3 times its lowest value, and more than half of its early level, for 50 steps in a row, or at
the end of the run. The second condition is for runs that overfit, where a loss that rises from 0.02 to 0.08 is nothing
to worry about. A warm-up from weights that already fit may raise the loss for a long time; that is reported too, since
the learning rate is then too high for those weights.

The early level is that of the first 10 steps. A run may diverge within them, so neither it nor the lowest value may
exceed twice the loss of the very first step, which comes before any update.
"""

_MEMORY = 50
_SETTLED = 10
_LASTING = 50
_OFF = 2.0  # how far the loss of a single batch may be above that of others
_ABOVE_LOWEST, _ABOVE_EARLY = 3.0, 0.5


class LossTrend:
    """The smoothed training loss of a run."""

    def __init__(self) -> None:
        self.level = 0.0
        """The smoothed loss."""
        self.lowest = float("inf")
        """Its lowest value so far."""
        self._count = self._lasted = 0
        self._sum = self._weight = 0.0
        self._early = float("inf")

    def add(self, loss: float) -> None:
        """Adds the loss of a step; the caller skips steps that were not finite."""
        self._count += 1
        decay = 1 - 1 / _MEMORY
        self._sum = decay * self._sum + (1 - decay) * loss
        self._weight = decay * self._weight + (1 - decay)
        self.level = self._sum / self._weight
        if self._count == 1:
            self._early = self.lowest = _OFF * loss
        if self._count == _SETTLED:
            self._early = min(self._early, self.level)
        if self._count >= _SETTLED:
            self.lowest = min(self.lowest, self.level)
        self._lasted = self._lasted + 1 if self.is_high else 0

    @property
    def is_high(self) -> bool:
        """Whether the loss is currently far above its lowest value."""
        return self.level > max(_ABOVE_LOWEST * self.lowest, _ABOVE_EARLY * self._early)

    @property
    def is_diverging(self) -> bool:
        """Whether the loss has been high for 50 steps."""
        return self._lasted >= _LASTING
