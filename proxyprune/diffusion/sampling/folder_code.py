"""Code in a pipeline's folder: what plain `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs to load it.

diffusers takes the class of the pipeline from pipeline.py, and loads each entry of model_index.json by a class in the folder of that
entry. The entry `experts` loads the whole pipeline; the class of the pipeline hands it over. diffusers downloads only the folders of
entries, so the record is in experts/ as well.
"""

from __future__ import annotations

from pathlib import Path

from proxyprune.support.files import write_text

PIPELINE = "pipeline"
LOADER = "step_adaptive_experts"
CLASS_NAME = (PIPELINE, "StepAdaptivePipeline")
"""Value of `_class_name` in model_index.json."""
EXPERTS_CLASS = (LOADER, "StepAdaptiveExperts")
"""Value of `experts` there."""

_IMPORT = """try:
    from proxyprune.diffusion import StepAdaptivePipeline as Pipeline
except ImportError as error:
    raise ImportError(
        f"This pipeline needs proxyprune ({error}). Install proxyprune with its extra `diffusion`, and load the folder again."
    ) from None
"""

_PIPELINE = f'''"""Lets plain diffusers load this folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)."""

{_IMPORT}

class StepAdaptivePipeline(Pipeline):
    """Names the parts of the folder for diffusers; its instances are pipelines of proxyprune."""

    def __new__(cls, experts, scheduler, training_scheduler):
        return experts.with_scheduler(scheduler)

    def __init__(self, experts, scheduler, training_scheduler):
        """Has the parts of the folder as parameters, which diffusers reads; `__new__` returns the finished pipeline."""
'''

_LOADER = f'''"""Loads the experts of this folder; see pipeline.py."""

from pathlib import Path

import torch

{_IMPORT}

class StepAdaptiveExperts(torch.nn.Module):
    """Stands for the experts in model_index.json; a module, because diffusers passes a dtype to modules only."""

    @classmethod
    def from_pretrained(cls, folder, torch_dtype=None, **unused):
        return Pipeline.from_pretrained(Path(folder).parent, torch_dtype=torch_dtype)
'''


def write_code(folder: Path) -> None:
    """Write the two files.

    Args:
        folder: Of the pipeline.
    """
    write_text(folder / f"{PIPELINE}.py", _PIPELINE)
    write_text(folder / "experts" / f"{LOADER}.py", _LOADER)
