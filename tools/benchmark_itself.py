"""Time six copies of one int8 model as six candidates, ten times over: how far can a ratio be trusted on this machine?

python -m tools.benchmark_itself
"""

from functools import partial

import torch

from qhelpers import benchmark, engines
from qhelpers.tasks import checkpoints

COPIES = 6
REPETITIONS = 10
TOLERANCE_PERCENT = 3.0


def main() -> None:
    """Print the ratios of each repetition, and in how many all copies lie within 3 % of each other."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    engine = engines.default_engine()
    candidates = {"float": partial(checkpoints.load_digits_float(), image)}
    for i in range(COPIES):
        copy = engines.UnderEngine(engine, checkpoints.load_digits_int8(engine))
        candidates[f"copy {i + 1}"] = partial(copy, image)
    close = 0
    for repetition in range(REPETITIONS):
        result = benchmark.compare_latency(candidates, seed=repetition, progress=False)
        ratios = [result.ratio(name).value for name in result.names[1:]]
        apart = 100 * (max(ratios) / min(ratios) - 1)
        close += apart <= TOLERANCE_PERCENT
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{shown} times float: {apart:.1f} % apart; float's copies {result.noise_percent:.1f} %", flush=True)
    print(f"{close} of {REPETITIONS} within {TOLERANCE_PERCENT:.0f} %; {result.setting}")


if __name__ == "__main__":
    main()
