"""Time the same model against itself ten times: how far can a ratio be trusted on this machine?

python -m tools.benchmark_itself
"""

import torch

from qhelpers import benchmark
from qhelpers.tasks import checkpoints

REPETITIONS = 10
TOLERANCE = 0.05


def main() -> None:
    """Print the ten ratios and how many lie within 5 % of 1."""
    torch.set_num_threads(1)
    model = checkpoints.load_digits_float()
    image = torch.zeros(1, 3, 224, 224)
    ratios = []
    for _ in range(REPETITIONS):
        result = benchmark.compare_latency({"one": lambda: model(image), "same": lambda: model(image)}, progress=False)
        ratios.append(result["same"].ratio)
        slow, fast = result["same"].ratio_quartiles
        print(f"{ratios[-1]:.3f} (quartiles {slow:.3f} to {fast:.3f})", flush=True)
    close = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
    print(f"{close} of {REPETITIONS} within {TOLERANCE:.0%} of 1; {result.setting}")


if __name__ == "__main__":
    main()
