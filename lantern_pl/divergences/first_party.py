"""The four divergences of the LANTERN paper and its field, as configs name them. The maths is lantern_kernels'."""

import math

import lantern_kernels.divergences as kernels

from lantern_pl.divergences.contract import PointwiseDivergence


class KL(kernels.KL, PointwiseDivergence):
    """Forward Kullback-Leibler, KL(teacher‖student): the student covers all that the teacher says."""

    lantern_api = 1


class ReverseKL(kernels.ReverseKL, PointwiseDivergence):
    """Reverse Kullback-Leibler, KL(student‖teacher): the student says only what the teacher says too."""

    lantern_api = 1


class JS(kernels.JS, PointwiseDivergence):
    """Jensen-Shannon, β·KL(teacher‖m) + (1−β)·KL(student‖m) with m = β·teacher + (1−β)·student.

    Args:
        beta: the teacher's weight, between 0 and 1, both excluded. ½ is symmetric and at most ln 2.
    """

    lantern_api = 1

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__(beta)
        # The entropy of the choice between the two distributions; ln 2 at ½.
        self.upper_bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


class TVD(kernels.TVD, PointwiseDivergence):
    """Total variation distance, ½·Σ|teacher − student|: at most 1, and robust where the teacher is unsure."""

    lantern_api = 1

    upper_bound = 1.0
