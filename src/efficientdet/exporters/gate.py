"""What an export of int8 is judged by: the AP that it may lose against the weights it was made of."""

import dataclasses

from efficientdet.config import ExportPrecision
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.formats import loading

_LEAST_AP = 5  # times the loss allowed: with more than a fifth of its AP gone no detector is the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Opens for an export whose AP is near that of the weights."""

    data: str
    split: str
    max_ap_loss: float
    """A fraction; 0.01 is a point."""
    keras_ap: float
    """Of the weights."""

    def pass_through(self, runtime: loading.Runtime, name: str) -> dict[str, float]:
        """Measures the AP of an export.

        Args:
            runtime: the export, loaded.
            name: of its format.

        Returns:
            ap and keras_ap.

        Raises:
            UserError: it lost too much.
        """
        ap = _measure(runtime, self.data, self.split)
        if not self.keras_ap - ap <= self.max_ap_loss:
            raise UserError(
                f"int8 of {name} loses too much: AP {ap:.4f} on `{self.data}` ({self.split}), Keras's is "
                f"{self.keras_ap:.4f}; `max_ap_loss` is {self.max_ap_loss:g}. Calibrate with more images, or take "
                "float16."
            )
        return {"ap": ap, "keras_ap": self.keras_ap}


def find_gate(
    precision: ExportPrecision, keras: loading.Runtime, *, data: str, split: str, max_ap_loss: float
) -> Gate | None:
    """Measures the AP of the weights; none for other precisions than int8, which are judged by each detection.

    Raises:
        UserError: there are no records, or the AP is too small to tell what is lost.
    """
    if precision != "int8":
        return None
    if not data:
        raise UserError("An export of int8 is verified by its AP; give labelled records: `--data RECORDS --split val`.")
    ap = _measure(keras, data, split)
    if ap <= 0 or ap < _LEAST_AP * max_ap_loss:
        raise UserError(
            f"`max_ap_loss` is {max_ap_loss:g}, but Keras's AP on `{data}` ({split}) is {ap:.4f}, too small to tell "
            f"what int8 loses: it must be {_LEAST_AP} times as large. Train longer, give records like those of the "
            "training, or a smaller loss."
        )
    return Gate(data=data, split=split, max_ap_loss=max_ap_loss, keras_ap=ap)


def _measure(runtime: loading.Runtime, data: str, split: str) -> float:
    """Measures AP.

    Raises:
        UserError: the records have nothing to find.
    """
    ap = measuring.evaluate_runtime(runtime, store.open_records(data, split)).result().metrics["AP"]
    if ap is None:
        raise UserError(f"`{data}` has no boxes in `{split}`; AP cannot be measured.")
    return ap
