"""The doctor: checks everything that a deployment needs, and says what to do: `videogen doctor [--json]`.

Each check is a function of a `Deployment` in the file of its subject; `checks` lists them, `runner` runs them side by
side, `report` shows them. The start of a worker makes the cheap ones (`start_checks`).
"""

from worker.doctor.checks import CHECKS, Check
from worker.doctor.deployment import Deployment, profile_of, readable_settings
from worker.doctor.report import Finding, Line
from worker.doctor.runner import Running
from worker.doctor.start_checks import CannotStart, watched

__all__ = [
    "CHECKS",
    "CannotStart",
    "Check",
    "Deployment",
    "Finding",
    "Line",
    "Running",
    "profile_of",
    "readable_settings",
    "watched",
]
