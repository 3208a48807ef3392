"""Logging of studies to MLflow; the only package that imports it."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # like the others, read when mlflow is imported
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from autotl.tracking.mlflow import page
from autotl.tracking.mlflow.projection import Outcome, Projection

__all__ = ["Outcome", "Projection", "page"]
