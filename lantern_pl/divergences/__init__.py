"""Divergences: the contract, and every installed divergence plugin by its alias, such as `lantern_pl.divergences.js`.

Aliases are looked up when they are used. A file of this package must not bear the name of an alias: importing the file
would set the package's attribute to the module and hide the plugin.
"""

from lantern_pl.divergences.contract import Divergence, PointwiseDivergence
from lantern_pl.plugins import alias_lookup

__all__ = ["Divergence", "PointwiseDivergence"]

__getattr__, __dir__ = alias_lookup(__name__)
