"""The service over HTTP: Flask, its pages, gunicorn."""
