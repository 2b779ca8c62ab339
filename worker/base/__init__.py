"""What everything stands on: errors, settings, log, metrics, timing, stop signals, locks and state files.

Its files are imported by name (`worker.base.errors`); importing the room itself loads nothing.
"""
