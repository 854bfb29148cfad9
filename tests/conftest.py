"""Settings for all tests: property tests try the same examples on every run, so that a red run can be run again.

For other examples each time: python -m pytest --hypothesis-profile=search
"""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # both would judge the machine, not the code
settings.register_profile("fixed", derandomize=True, **COMMON)
settings.register_profile("search", **COMMON)
settings.load_profile("fixed")
