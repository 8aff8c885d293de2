"""The documented commands, run: `python -m bench.pages` (make docs-test), and its quick part in the default suite.

`blocks` reads pages, `place` prepares the folder in which a page's commands run, `shell` runs them, `quoted` compares what
a page says that they print, `check` does a page, `__main__` does all of them. How a page says what it needs: docs/contributing.md.
"""
