"""Derived figures: installs, failures, durations, devices and releases, worked out of the events as they arrive."""
