"""The book's own small networks."""

from qhelpers.tasks import networks


def test_the_network_is_the_one_that_the_provenance_describes() -> None:
    model = networks.load_digit_resnet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 177_178
