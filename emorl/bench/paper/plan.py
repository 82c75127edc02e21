"""What the paper's suite measures, how often at least, and what that costs."""

from __future__ import annotations

from emorl.bench import largest
from emorl.bench.budget import Item
from emorl.bench.paper import cases as paper
from emorl.bench.paper.cases import OURS, Case, Survey
from emorl.bench.passes import PARTS
from emorl.bench.suite import Options
from emorl.bench.tables import Rows
from emorl.bench.turns import LEAST, MOST, warm_up

LARGE = 128  # images from this side on are promised one timing, smaller ones three
BISECTED = 1000  # images, about, of all batches that a bisection tries


def least_of(case: Case) -> int:
    """The timings of a case that a full budget promises."""
    if case.size >= LARGE:
        return 1 if case.code == OURS else 0
    return LEAST


def batch_item(case: Case) -> str:
    """Name of the search for a case's largest batch."""
    return f"largest batch of {case}"


def items_of(surveys: dict[Case, Survey], start: float, device: str) -> list[Item]:
    """What is to be measured, in the order of its importance.

    Args:
        surveys: of one image of each case.
        start: seconds that a process takes to start.
        device: "cpu" or "cuda".
    """
    timings, batches = [], []
    for case, survey in surveys.items():
        each = sum(survey.seconds.values())
        seconds = each * case.batch
        begin = start + survey.build
        warm = begin + warm_up(device) * seconds
        timings.append(Item(str(case), warm, seconds, least_of(case), MOST))
        images = BISECTED if device == "cuda" else sum(largest.others_than(case.batch))
        batches.append(Item(batch_item(case), 2 * begin + images * each, 0.0, 0, 1))
    return [*timings, *batches]


def outline(options: Options) -> Rows:
    """A row for each case: its least timings, and how its largest batch is found."""
    way = largest.BISECTION if options.device == "cuda" else largest.LINE
    cases = paper.cases(options.models, options.sizes, options.batch, options.official is not None)
    heading = ["case", "device", "batch", "parts", "timings, at least", "largest batch by"]
    parts = ", ".join(PARTS)
    return [heading] + [
        [str(case), options.device, str(case.batch), parts, str(least_of(case)), way]
        for case in cases
    ]
