"""Which trainings the comparison with effdet needs, in which order, and what follows from those that are done.

Nothing here trains; a run that is done is a dict that the result file keeps. effdet's learning rate is tuned on the
first seed: that run is made with each rate, and the best AP on the selection split decides the rate and whether
effdet's averaged weights or those of the last step are taken. The other seeds use that. Ours has nothing to choose.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

OURS, EFFDET = "ours", "effdet"
OURS_SGD, OURS_SCALES, EFFDET_ADAM, EFFDET_SCALES = "ours-sgd", "ours-scales", "effdet-adam", "effdet-scales"
RECIPES = {
    OURS: "ours",
    EFFDET: "effdet",
    OURS_SGD: "ours, SGD instead of Adam",
    OURS_SCALES: "ours, effdet's scales of images",
    EFFDET_ADAM: "effdet, Adam with our rate",
    EFFDET_SCALES: "effdet, our scales of images",
}
"""Name on the command line -> what it is."""

OUR_WEIGHTS = "averages"
EFFDET_WEIGHTS = ("last weights", "averages")
"""What effdet's script can give; the third, averages as ours, only explains."""

_OURS_OTHERWISE = {
    "last weights": "ours, weights of the last step",
    "statistics of the steps": "ours, batch statistics of the steps",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared."""

    rates: tuple[float, ...]
    """Of effdet; the first is the default of its script."""
    adam_rate: float
    """Ours, for effdet with Adam."""
    seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    our_scales: tuple[float, float]
    effdet_scales: tuple[float, float]
    selection: str
    """Split on which effdet's rate and weights are chosen."""
    test: str
    """Split on which both are compared."""
    only: tuple[str, ...] = ()
    """Recipes to train; empty: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training."""

    recipe: str
    seed: int
    rate: float | None
    """Peak; none: derived from batch and steps."""
    scales: tuple[float, float]

    @property
    def is_ours(self) -> bool:
        """Whether our program trains."""
        return self.recipe.startswith(OURS)

    @property
    def method(self) -> str | None:
        """Optimiser where it is not the program's own choice: `sgd` or `adam`."""
        return {OURS_SGD: "sgd", EFFDET_ADAM: "adam"}.get(self.recipe)

    @property
    def name(self) -> str:
        """Names it in the result file and in file names."""
        return f"{self.recipe}-{'derived' if self.rate is None else f'{self.rate:g}'}-seed-{self.seed}"


def plan(options: Options, done: dict[str, Any]) -> list[Run]:
    """Lists the trainings in their order, ours and effdet's in turns; as far as is known what effdet's rate will be.

    Args:
        options: what is compared.
        done: name of a run -> what it found.
    """
    runs: list[Run] = []
    rate = None
    for position, seed in enumerate(options.seeds):
        runs.append(Run(recipe=OURS, seed=seed, rate=None, scales=options.our_scales))
        rates = options.rates if position == 0 else (rate,)
        theirs = [
            Run(recipe=EFFDET, seed=seed, rate=each, scales=options.effdet_scales) for each in rates if each is not None
        ]
        if position == 0:
            rate = choose(options, done)[0]
        runs += theirs
    for seed in options.ablation_seeds:
        runs.append(Run(recipe=OURS_SGD, seed=seed, rate=None, scales=options.our_scales))
        runs.append(Run(recipe=EFFDET_ADAM, seed=seed, rate=options.adam_rate, scales=options.effdet_scales))
        runs.append(Run(recipe=OURS_SCALES, seed=seed, rate=None, scales=options.effdet_scales))
        if rate is not None:
            runs.append(Run(recipe=EFFDET_SCALES, seed=seed, rate=rate, scales=options.our_scales))
    return [run for run in runs if not options.only or run.recipe in options.only]


def choose(options: Options, done: dict[str, Any]) -> tuple[float | None, str | None]:
    """Chooses effdet's rate and which of its weights are taken, by AP on the selection split with the first seed.

    Returns:
        Both; none of them until all rates were tried.
    """
    seed = options.seeds[0]
    tried = {rate: done.get(_effdet(options, seed, rate).name) for rate in options.rates}
    if not all(tried.values()):
        return None, None
    ap = {
        (rate, weights): run["AP"][weights][options.selection]["AP"]
        for rate, run in tried.items()
        for weights in EFFDET_WEIGHTS
    }
    return max(ap, key=ap.__getitem__)


def _effdet(options: Options, seed: int, rate: float | None) -> Run:
    return Run(recipe=EFFDET, seed=seed, rate=rate, scales=options.effdet_scales)


def summarize(options: Options, done: dict[str, Any]) -> dict[str, Any]:
    """Computes the table and the two numbers in question, from the runs so far.

    Returns:
        rows: list of `_row`; effdet_rate and effdet_weights: what was chosen; finetune_ap_minus_effdet: difference of
        the mean AP; finetune_images_per_second_vs_effdet: median of the ratios of runs with the same seed; ratios: its
        median and range. What cannot be said yet is none.
    """
    rate, weights = choose(options, done)
    ours = _found(done, OURS, None, options.seeds)
    theirs = _found(done, EFFDET, rate, options.seeds) if weights else {}
    rows = [_row("ours", ours, OUR_WEIGHTS, options.test)]
    rows.append(_row(f"effdet, {weights}, rate {rate:g}" if weights else "effdet", theirs, weights, options.test))
    rows += [_row(title, ours, name, options.test) for name, title in _OURS_OTHERWISE.items()]
    for recipe in (OURS_SGD, OURS_SCALES):
        found = _found(done, recipe, None, options.ablation_seeds)
        rows.append(_row(RECIPES[recipe], found, OUR_WEIGHTS, options.test))
    for other in EFFDET_WEIGHTS:
        if weights and other != weights:
            rows.append(_row(f"effdet, {other}", theirs, other, options.test))
    rows.append(_row("effdet, averages as ours", theirs, "averages as ours", options.test))
    soft = f"{weights}, soft suppression"
    softened = {seed: run for seed, run in theirs.items() if soft in run["AP"]}
    rows.append(_row(f"effdet, {soft}", softened, soft, options.test))
    for other_rate in options.rates:
        if weights and other_rate != rate:
            tried = _found(done, EFFDET, other_rate, options.seeds[:1])
            rows.append(_row(f"effdet, {weights}, rate {other_rate:g}", tried, weights, options.test))
    for recipe, own_rate in ((EFFDET_ADAM, options.adam_rate), (EFFDET_SCALES, rate)):
        found = _found(done, recipe, own_rate, options.ablation_seeds) if weights else {}
        rows.append(_row(RECIPES[recipe], found, weights, options.test))
    return {
        "rows": [row for row in rows if row is not None],
        "effdet_rate": rate,
        "effdet_weights": weights,
        **_headline(rows[0], rows[1]),
    }


def _found(done: dict[str, Any], recipe: str, rate: float | None, seeds: Sequence[int]) -> dict[int, Any]:
    """Collects the runs of a recipe that are done, by seed."""
    names = {seed: Run(recipe=recipe, seed=seed, rate=rate, scales=(0.0, 0.0)).name for seed in seeds}
    return {seed: done[name] for seed, name in names.items() if name in done}


def _row(title: str, runs: dict[int, Any], weights: str | None, split: str) -> dict[str, Any] | None:
    """Sums up the runs of a recipe; none without any."""
    if not runs or weights is None:
        return None
    found = {seed: run["AP"][weights][split] for seed, run in runs.items()}
    row: dict[str, Any] = {"what": title, "seeds": list(runs)}
    for metric in ("AP", "AP50"):
        values = [each[metric] for each in found.values()]
        row[metric] = {
            "by_seed": values,
            "mean": statistics.fmean(values),
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        }
    for name in ("images_per_second", "images_per_second_with_start", "minutes"):
        row[name] = {"by_seed": [run[name] for run in runs.values()], **_spread([run[name] for run in runs.values()])}
    return row


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _headline(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> dict[str, Any]:
    """Compares the seeds that both have."""
    common = [seed for seed in ours["seeds"] if seed in theirs["seeds"]] if ours and theirs else []
    if not ours or not theirs or not common:
        return {"finetune_ap_minus_effdet": None, "finetune_images_per_second_vs_effdet": None, "ratios": {}}

    def of(row: dict[str, Any], name: str) -> list[float]:
        by_seed = dict(zip(row["seeds"], row[name]["by_seed"], strict=True))
        return [by_seed[seed] for seed in common]

    ratios = {}
    for ending in ("", "_with_start"):
        pairs = zip(*(of(row, f"images_per_second{ending}") for row in (ours, theirs)), strict=True)
        ratios[f"finetune_images_per_second{ending}_vs_effdet"] = _spread([our / their for our, their in pairs])
    return {
        "finetune_ap_minus_effdet": statistics.fmean(of(ours, "AP")) - statistics.fmean(of(theirs, "AP")),
        "finetune_images_per_second_vs_effdet": ratios["finetune_images_per_second_vs_effdet"]["median"],
        "compared_seeds": common,
        "ratios": ratios,
    }
