"""The acceptance test of int8 exports: how much AP they lose compared to the weights they were made from."""

import dataclasses

from efficientdet.config import ExportPrecision
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.formats import loading

_LEAST_AP = 5  # times the allowed loss: a detector that loses over a fifth of its AP is a different detector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Accepts exports whose AP is close to that of the weights."""

    data: str
    split: str
    max_ap_loss: float
    """A fraction; 0.01 is one point."""
    keras_ap: float
    """AP of the weights."""

    def pass_through(self, runtime: loading.Runtime, name: str) -> dict[str, float]:
        """Measures the AP of an export.

        Args:
            runtime: the loaded export.
            name: name of its format.

        Returns:
            ap and keras_ap.

        Raises:
            UserError: it loses too much AP.
        """
        ap = _measure(runtime, self.data, self.split)
        if not self.keras_ap - ap <= self.max_ap_loss:
            raise UserError(
                f"{name} in int8 loses too much AP: {ap:.4f} on `{self.data}` ({self.split}), {self.keras_ap:.4f} in "
                f"Keras; `max_ap_loss` is {self.max_ap_loss:g}. Calibrate with more images, or use float16."
            )
        return {"ap": ap, "keras_ap": self.keras_ap}


def find_gate(
    precision: ExportPrecision, keras: loading.Runtime, *, data: str, split: str, max_ap_loss: float
) -> Gate | None:
    """Measures the AP of the weights; returns None for other precisions, whose detections are compared instead.

    Raises:
        UserError: there are no records, or the AP is too low to measure the loss.
    """
    if precision != "int8":
        return None
    if not data:
        raise UserError("int8 exports are verified by AP on labeled records; pass `--data RECORDS --split val`.")
    ap = _measure(keras, data, split)
    if ap <= 0 or ap < _LEAST_AP * max_ap_loss:
        raise UserError(
            f"`max_ap_loss` is {max_ap_loss:g}, but Keras's AP on `{data}` ({split}) is {ap:.4f}, too low to measure "
            f"what int8 loses; it must be at least {_LEAST_AP} times `max_ap_loss`. Train longer, use records like the "
            "training data, or set a smaller `--max-ap-loss`."
        )
    return Gate(data=data, split=split, max_ap_loss=max_ap_loss, keras_ap=ap)


def _measure(runtime: loading.Runtime, data: str, split: str) -> float:
    """Measures AP.

    Raises:
        UserError: the records have no boxes.
    """
    ap = measuring.evaluate_runtime(runtime, store.open_records(data, split)).result().metrics["AP"]
    if ap is None:
        raise UserError(f"`{data}` has no boxes in `{split}`; AP cannot be measured.")
    return ap
