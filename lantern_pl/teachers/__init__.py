"""Teachers: the contract, and every installed teacher plugin by its alias, such as `lantern_pl.teachers.hf`.

Aliases are looked up when they are used. A file of this package must not bear the name of an alias: importing the file
would set the package's attribute to the module and hide the plugin.
"""

from lantern_pl.plugins import alias_lookup
from lantern_pl.teachers.contract import Teacher

__all__ = ["Teacher"]

__getattr__, __dir__ = alias_lookup(__name__)
