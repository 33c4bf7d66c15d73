"""Routing traces: which experts each token of a text uses, and how well that suits keeping some of them in memory.

    from penstock.routing import profile, report

    routes = profile(model, ids, window=512)
    report(routes)["cache"]

``model`` is one of transformers or of penstock; ``model.penstock.profile()`` records while the model is used.
"""

from .runtime.forecasting.assumed import assumed_routes
from .runtime.routing.profiling import RoutingRecording, profile
from .runtime.routing.routed import RoutedLayer
from .runtime.routing.routes import Routes
from .runtime.routing.suitability_plot import check_plot, draw
from .runtime.routing.suitability_report import report

__all__ = ["RoutedLayer", "Routes", "RoutingRecording", "assumed_routes", "check_plot", "draw", "profile", "report"]
