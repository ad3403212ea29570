"""How well moments are found: recall and average precision over temporal overlap."""

from collections.abc import Mapping, Sequence

Span = tuple[float, float]


def overlap(first: Span, second: Span) -> float:
    """Return the intersection of two spans over their union."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    return max(shared, 0.0) / (max(first[1], second[1]) - min(first[0], second[0]))


def recall_at_1(
    found: Mapping[str, Sequence[Span]], truth: Mapping[str, Sequence[Span]], least: float = 0.5
) -> float:
    """Return the share of queries whose first span overlaps a true one by at least `least`."""
    right = [
        bool(found[query]) and any(overlap(found[query][0], span) >= least for span in spans)
        for query, spans in truth.items()
    ]
    return sum(right) / len(right)


def average_precision(found: Sequence[Span], truth: Sequence[Span], least: float = 0.5) -> float:
    """Return the mean, over true spans, of the precision where each is found (0 where not).

    A true span counts for the first of the ranked spans that overlaps it by `least`; a ranked span
    takes the free true span that it overlaps most.
    """
    free = list(truth)
    total = 0.0
    for rank, span in enumerate(found, start=1):
        best = max(free, key=lambda true: overlap(span, true), default=None)
        if best is not None and overlap(span, best) >= least:
            free.remove(best)
            total += (len(truth) - len(free)) / rank
    return total / len(truth)


def mean_average_precision(
    found: Mapping[str, Sequence[Span]], truth: Mapping[str, Sequence[Span]], least: float = 0.5
) -> float:
    """Return the mean over queries of `average_precision`."""
    return sum(average_precision(found[q], truth[q], least) for q in truth) / len(truth)
