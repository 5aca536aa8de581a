"""Tests: they run under trial and under pytest, and none of them sleeps."""

from hypothesis import HealthCheck, settings

settings.register_profile("wecompany", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wecompany")
