"""Hypothesis's profiles, for the tests that use it: elsewhere its import is left out, which is slow in an L1."""

import os

import hypothesis

# No example database: the tree may be read-only.  Deadlines would time the machine, not the code.
hypothesis.settings.register_profile("pyvmm", database=None, deadline=None, max_examples=200)
hypothesis.settings.register_profile("quick", database=None, deadline=None, max_examples=20)
hypothesis.settings.load_profile(os.environ.get("PYVMM_HYPOTHESIS", "pyvmm"))
