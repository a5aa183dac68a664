"""Puts the model `tide_cache` into the registry of lm-eval 0.4.13, whose own command looks for no plug-ins.

Later releases find the class by the entry point `lm_eval.models`, and need nothing of this. In 0.4.13 the one way into
the process of `lm_eval` without a change of its command is torch, which calls the entry points `torch.backends` at the
end of `import torch`. What is here runs in every process that imports torch, so it uses the standard library alone, and
does nothing unless that process is lm-eval's. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
"""

import sys
from importlib import import_module

WITHOUT_PLUGINS = "0.4.13"
NAME, TARGET = "tide_cache", "tide_cache.evaluation.harness.plugin:TideCacheLM"


def register() -> None:
    """Register the model by name where lm-eval is being imported; its class is loaded when it is asked for."""
    harness = sys.modules.get("lm_eval")
    if getattr(harness, "__version__", None) != WITHOUT_PLUGINS:
        return
    import_module("lm_eval.models")  # names only; lm-eval leaves it out where its registry is not empty
    registry = import_module("lm_eval.api.registry").model_registry
    if NAME not in registry:
        registry.register(NAME, target=TARGET)
