"""Reports: one self-contained HTML page for any result.

`read` finds out what a path holds, `compose` turns it into parts (facts, tables, drawings, remarks), `render` makes HTML of them. Names in
a result belong to its author: templates and drawings escape them, and the page allows no script at all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
