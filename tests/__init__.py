"""Tests: they run under trial and under pytest, and none of them sleeps."""

import tempfile
from pathlib import Path
from unittest import TestCase

from hypothesis import HealthCheck, settings

settings.register_profile("wecompany", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wecompany")


def temporaryFolder(test: TestCase) -> Path:
    """Return a new folder that goes when the test does; C{mktemp} would leave one where pytest was called."""
    folder = tempfile.TemporaryDirectory(prefix="wecompany-test-")
    test.addCleanup(folder.cleanup)
    return Path(folder.name)
