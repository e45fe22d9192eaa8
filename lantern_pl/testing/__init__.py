"""Contracts that plugin authors run against their own plugins, in pytest.

    from lantern_pl.testing import DivergenceContract

    class TestHellinger(DivergenceContract):
        def make(self):
            return Hellinger()

        def reference(self, p, q):
            return 0.5 * (p.sqrt() - q.sqrt()).square().sum(-1)

pytest collects the checks of the base class; each says what is wrong and what to look at. Our own plugins pass the same.
"""

from lantern_pl.testing.checking import failures
from lantern_pl.testing.divergence_contract import DivergenceContract
from lantern_pl.testing.teacher_contract import TeacherContract

__all__ = ["DivergenceContract", "TeacherContract", "failures"]
