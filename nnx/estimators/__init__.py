"""Networks as scikit-learn estimators, for its pipelines, cross-validation and searches."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"nnx.estimators needs scikit-learn ({error}). Install it with: pip install 'nnx-engine[sklearn]'"
    ) from error

from nnx.estimators.classifier import Classifier
from nnx.estimators.regressor import Regressor

__all__ = ["Classifier", "Regressor"]
