"""`python -m videogen_client.page`: a page in the browser on which to try an endpoint or a local worker."""
