"""What is made before a worker starts: prepared weights, images."""
