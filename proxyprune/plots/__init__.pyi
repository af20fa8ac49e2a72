from .figure import check_plot_path as check_plot_path, write_figure as write_figure
from .network import plot_ranking as plot_ranking, plot_widths as plot_widths
from .noise_intervals import plot_layout as plot_layout
from .sampling_frontier import plot_frontier as plot_frontier
from .scorer_comparison import plot_comparison as plot_comparison
from .search_curve import plot_search as plot_search
