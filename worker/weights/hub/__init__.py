"""The model hub: listing a repository, and downloading it with resume, retries and checks."""
