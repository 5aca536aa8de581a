"""The version, alone in a file that the packaging reads without importing anything."""

version = "0.1.0"
