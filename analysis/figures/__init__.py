"""The builders of figures: each takes a sweep's view and gives `Figures`, which a notebook shows (docs/figures.md).

Who does not ask for one does not pay for Altair's import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.figures.cost import cost_figures as cost_figures
    from analysis.figures.difference_heatmap import difference_heatmap_figures as difference_heatmap_figures
    from analysis.figures.figure import Figure as Figure
    from analysis.figures.figure import Figures as Figures
    from analysis.figures.forest import forest_figures as forest_figures
    from analysis.figures.heatmap import heatmap_figures as heatmap_figures
    from analysis.figures.layer_lines import layer_lines_figures as layer_lines_figures
    from analysis.figures.pairs import pair_figures as pair_figures
    from analysis.figures.response import response_figures as response_figures
    from analysis.figures.runs_grid import runs_grid_figures as runs_grid_figures
    from analysis.figures.scan import scan_figures as scan_figures
    from analysis.figures.spectrum import spectrum_figures as spectrum_figures
    from analysis.figures.timelines import timeline_figures as timeline_figures
    from analysis.figures.training_curves import curve_figures as curve_figures
    from analysis.figures.volatility import volatility_figures as volatility_figures
    from analysis.figures.volatility_heatmap import volatility_heatmap_figures as volatility_heatmap_figures

_MODULES = {
    "Figure": "figure",
    "Figures": "figure",
    "forest_figures": "forest",
    "curve_figures": "training_curves",
    "response_figures": "response",
    "timeline_figures": "timelines",
    "cost_figures": "cost",
    "runs_grid_figures": "runs_grid",
    "heatmap_figures": "heatmap",
    "difference_heatmap_figures": "difference_heatmap",
    "pair_figures": "pairs",
    "scan_figures": "scan",
    "layer_lines_figures": "layer_lines",
    "spectrum_figures": "spectrum",
    "volatility_figures": "volatility",
    "volatility_heatmap_figures": "volatility_heatmap",
}
BUILDERS = tuple(name for name in _MODULES if name.endswith("_figures"))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
