"""The command line, `python -m worker.cli`: make a video here, send a job to an endpoint, print the schema."""
