"""What the scores of trained networks advise."""

from __future__ import annotations

import torch

from ...measure.accuracy import paired_difference
from ...measure.interval import Estimate
from ...measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from ...training.evaluation import Score


def judge(scores: list[Score]) -> Verdict:
    """Say whether the trained networks are to be taken in the place of the baseline."""
    if not scores:
        return Verdict(UNDECIDED, "No target has labels, so nothing says how good the network is.")
    known = [(each.before, each.right) for each in scores if each.before is not None]
    if not known:
        shares = ", ".join(_words(each.name, each.accuracy) for each in scores)
        return Verdict(UNDECIDED, f"{shares}; give --baseline to know whether that is better.")
    befores, afters = zip(*known, strict=True)
    gain = paired_difference(torch.cat(befores), torch.cat(afters))
    words = (
        f"{100 * gain.mean:+.1f} points on {gain.count} pictures "
        f"(95 %: {100 * gain.low:+.1f} … {100 * gain.high:+.1f}) over the baseline"
    )
    if gain.low > 0:
        return Verdict(RECOMMENDED, f"{words}.")
    if gain.high < 0:
        return Verdict(NOT_RECOMMENDED, f"{words}; keep the baseline.")
    return Verdict(UNDECIDED, f"{words}: too few pictures to tell.")


def _words(name: str, share: Estimate) -> str:
    return f"{name} {100 * share.mean:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"
