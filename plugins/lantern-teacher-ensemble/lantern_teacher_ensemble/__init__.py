"""The `ensemble` teacher: several teachers whose distributions are mixed into one.

Configs name it `lantern_pl.teachers.ensemble`.
"""
