"""Divergences beside lantern-pl's own: `skew_kl`, `skew_reverse_kl`, `jeffreys`, `alpha` and `squared_hellinger`.

Configs name them as `lantern_pl.divergences.skew_kl` and so on.
"""
