"""Pictures of training, predictions and searches, drawn with matplotlib.

Each function draws into the given axes, or into those of a new figure, and returns them. Save with
`ax.figure.savefig("picture.png")`. No style and no other figure is changed. The colours of Okabe and Ito
(jfly.uni-koeln.de/color) can be distinguished by all kinds of colour vision.

May import: core, activations, callbacks, NumPy.
"""

from nnx.plot.activations import activation_gallery
from nnx.plot.boundary import decision_boundary
from nnx.plot.confusion import confusion_matrix
from nnx.plot.curves import precision_recall_curve, roc_curve
from nnx.plot.histograms import gradient_histograms, weight_histograms
from nnx.plot.regression import predicted_against_true, residuals
from nnx.plot.search import search_heatmap, validation_curve
from nnx.plot.training import learning_curves

__all__ = [
    "activation_gallery",
    "confusion_matrix",
    "decision_boundary",
    "gradient_histograms",
    "learning_curves",
    "precision_recall_curve",
    "predicted_against_true",
    "residuals",
    "roc_curve",
    "search_heatmap",
    "validation_curve",
    "weight_histograms",
]
