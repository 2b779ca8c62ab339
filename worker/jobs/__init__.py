"""One job: accept, prepare, make, deliver, answer; the only error boundary."""

from worker.jobs.flow import Report, run
from worker.jobs.services import Services
from worker.jobs.tidy import tidy_alone

__all__ = ["Report", "Services", "run", "tidy_alone"]
