"""A job: the model that is shipped, and the data by which its int8 file is judged."""

from qhelpers.tasks import digits, networks

model = networks.load_digit_transformer()
validation = digits.loader("validation", limit=100)
target, budget = "pytorch", 1.0
