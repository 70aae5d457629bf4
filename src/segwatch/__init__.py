"""segwatch learns one One-Class SVM per segment of a metric and scores every segment every day."""

__version__ = "0.1.0"
