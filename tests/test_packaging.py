"""The wheel, and not the checkout, is what people install."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder

ROOT = Path(__file__).parent.parent


class WheelTests(SynchronousTestCase):
    """The wheel in a virtual environment of its own."""

    def test_installed(self) -> None:
        """The wheel brings the plugin and the command, so twistd knows the service from any directory."""
        folder = temporaryFolder(self)

        def run(*command: str | Path) -> str:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            return done.stdout

        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        self.assertIn("twisted/plugins/wecompany_plugin.py", names)
        self.assertIn("wecompany/py.typed", names)
        self.assertEqual([n for n in names if n in ("twisted/__init__.py", "twisted/plugins/__init__.py")], [])
        self.assertEqual([n for n in names if n.startswith("tests/")], [])

        venv.create(folder / "venv", with_pip=True)
        programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        run(programs / "python", "-m", "pip", "install", "-q", wheel)
        self.assertIn("--ring-timeout", run(programs / "twistd", "wecompany", "--help"))
        self.assertIn("receive-files", run(programs / "wecompany", "--help"))
