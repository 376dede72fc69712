"""Loaded by every Python process whose PYTHONPATH names this folder: it hides all engines of PyTorch but qnnpack.

What is left is the list of a build without oneDNN and FBGEMM, ``['qnnpack', 'none']``, as PyTorch 2.2.2 printed it on a
Mac with Apple silicon (pytorch issue 123507). Wheels for Linux on ARM have ``['qnnpack', 'onednn']``, as
``experiments/arm_emulated.py`` records. The processor stays what it is, so the kernels that run are qnnpack's for x86;
only the choice of an engine is that of such a build.
"""

import sys
from pathlib import Path
from types import ModuleType

ROOT = str(Path(__file__).parents[2])
sys.path.insert(0, ROOT)  # only for this import
from tools.after_torch import AfterTorch  # noqa: E402

sys.path.remove(ROOT)

ENGINES = ("none", "qnnpack")


def hide_engines(torch: ModuleType) -> None:
    """Let the build list two engines, accept no other, and start with qnnpack."""
    real = torch._C
    set_engine, get_id = real._set_qengine, torch.backends.quantized._get_qengine_id
    allowed = [get_id(name) for name in ENGINES]

    def set_allowed(number: int) -> None:
        if number not in allowed:
            name = torch.backends.quantized._get_qengine_str(number)
            raise RuntimeError(f"quantized engine {name} is not supported")
        if number != get_id("none"):  # this build cannot set it; the real ones can
            set_engine(number)

    set_engine(get_id("qnnpack"))
    real._set_qengine = set_allowed
    real._supported_qengines = lambda: [get_id("qnnpack"), get_id("none")]


sys.meta_path.insert(0, AfterTorch(hide_engines))
