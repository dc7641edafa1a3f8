"""What every test needs."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A test that fails must fail again; `HYPOTHESIS_PROFILE=search` looks for what nobody has seen yet.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
