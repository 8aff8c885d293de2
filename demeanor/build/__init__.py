"""The composition root: the only room that knows concrete classes; everybody else receives callables.

`workshop` makes weights, `house` makes them answer as any variant, `measure` runs the suites over variants.
"""
