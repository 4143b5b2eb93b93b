"""Claim: the slot methods are special cases of one E/M family (model.md section 2).

Every row states an equality of :mod:`psa.experiments.equalities`. Verdict: ``holds`` if none of them is off by more
than 1e-10 (relative to 1 + the largest number compared) on any random problem.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from psa.experiments import equalities as eq
from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress

TOLERANCE = 1e-10

EQUALITIES: Mapping[str, tuple[str, str, Callable[[eq.Problem], float]]] = {
    "dot": ("dot agreement (SA)", "posterior of an isotropic mixture, weights from |q|²", eq.dot_is_a_mixture),
    "soft-k-means": ("gaussian agreement, mean update", "soft k-means, written out", eq.soft_k_means),
    "k-means": ("the same, E-step power 1e6", "scikit-learn KMeans, 3 iterations", eq.lloyd),
    "em": ("em", "scikit-learn GaussianMixture, 3 iterations", eq.scikit_learn_em),
    "psa-em": ("psa, W_q = I", "em from unit variances", eq.psa_is_em),
    "projected-em": ("psa-proj, W_q = I, W_k = W_v = W", "em on the tokens W z", eq.projected_em),
    "proj-psa": ("psa-proj, W_k = W_v = I", "psa", eq.proj_is_psa),
    "algorithm-1": ("psa-proj", "PSA algorithm 1, written out", eq.algorithm_1),
    "smm-psa": ("smm without norms and neural part", "psa-proj", eq.smm_is_psa),
    "query-variants": ("i-sa, bo-sa, qsa, i-qsa, bo-qsa forward", "sa from the same start", eq.gradients_share_values),
    "straight-through": ("bo-sa's gradient to the start", "the last step's Jacobian", eq.straight_through),
    "pyro": ("vb's ELBO", "Pyro TraceEnum_ELBO, single particles", eq.bound_is_pyros),
    "one-slot": ("vb's ELBO, K = 1", "the exact log evidence", eq.one_slot_is_exact),
    "padding": ("every member, padded tokens", "the member without them", eq.padding_is_absence),
    "order": ("every member, slots and tokens reordered", "the member's result, reordered", eq.orders_do_not_matter),
}


@dataclass(frozen=True)
class SpecialCases(Experiment):
    """How many random problems an equality is tried on."""

    name: ClassVar[str] = "special_cases"
    claim: ClassVar[str] = "SA, SMM, PSA, the query-initialised variants, EM and k-means are members of one family."
    source: ClassVar[str] = "model.md section 2; PSA section 4"
    num_problems: int = 200

    def units(self) -> Sequence[str]:
        """An equality each."""
        return tuple(EQUALITIES)

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """The largest deviation over all problems, and how many problems."""
        worst = 0.0
        for seed in range(self.num_problems):
            deviation = EQUALITIES[unit][2](eq.problem(seed))
            worst = deviation if math.isnan(deviation) else max(worst, deviation)
            progress(seed + 1, self.num_problems)
        return Outcome({"deviation": worst})

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """Holds if no deviation is above the tolerance; a NaN is above."""
        deviations = {unit: float(outcome.figures["deviation"]) for unit, outcome in outcomes.items()}
        broken = [unit for unit, deviation in deviations.items() if not deviation <= TOLERANCE]
        rows = [
            {"this": ours, "equals": theirs, "largest deviation": deviations[unit]}
            for unit, (ours, theirs, _) in EQUALITIES.items()
        ]
        largest = max(deviations.values())
        reason = f"The largest deviation is {largest:.1e} over {self.num_problems} problems each" + (
            f"; above {TOLERANCE:g}: {', '.join(broken)}." if broken else f"; the bar is {TOLERANCE:g}."
        )
        figures = {"largest_deviation": largest}
        return Conclusion("fails" if broken else "holds", reason, figures, {"Equalities": rows})


SCALES: Mapping[str, Experiment] = {
    "smoke": SpecialCases(num_problems=3),
    "cpu": SpecialCases(),
    "gpu": SpecialCases(num_problems=1000),
}
