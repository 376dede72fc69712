"""The decoder-only transformer: causal, the same in one call and token by token, and the committed weights."""

import pytest
import torch
from torch import nn

from qhelpers.tasks import checkpoints, decoder, manual_text


def small(context: int = 8) -> decoder.Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return decoder.Decoder(width=16, layers=2, heads=2, context=context, vocabulary=11).eval()


def some_codes(length: int) -> torch.Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(1))


def test_a_token_does_not_see_what_follows() -> None:
    model, codes = small(), some_codes(6)
    other = codes.clone()
    other[:, 4:] = 0
    with torch.inference_mode():
        one, two = model(codes)[0], model(other)[0]
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 5], two[:, 5])


def require_same_in_parts(model: decoder.Decoder, codes: torch.Tensor, parts: list[int]) -> decoder.State:
    """The state at the end, if the logits of the parts, each called with the state before, are those of one call."""
    found: list[torch.Tensor] = []
    state: decoder.State | None = None
    with torch.inference_mode():
        whole = model(codes)[0]
        for part in codes.split(parts, dim=1):
            logits, state = model(part, state)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole)
    assert state is not None
    return state


@pytest.mark.parametrize("parts", [[1] * 8, [3, 5], [1, 6, 1]])
def test_token_by_token_equals_one_call(parts: list[int]) -> None:
    require_same_in_parts(small(), some_codes(8), parts)


@pytest.mark.parametrize("parts", [[1] * 20, [7, 13], [20]])
def test_beyond_the_context_each_layer_looks_back_equally_far(parts: list[int]) -> None:
    state = require_same_in_parts(small(context=4), some_codes(20), parts)
    assert {kept.shape[3] for kept in state} == {3}


def test_the_state_stays_in_the_context() -> None:
    with torch.inference_mode():
        _, state = small(context=4)(some_codes(9))
    assert [tuple(kept.shape) for kept in state] == [(2, 2, 2, 3, 8)] * 2


def test_scores_depend_on_distances() -> None:
    queries, keys = torch.randn(2, 1, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    near = decoder.rotated(queries) @ decoder.rotated(keys).transpose(2, 3)
    far = decoder.rotated(queries, 50) @ decoder.rotated(keys, 50).transpose(2, 3)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


def test_the_committed_decoder_is_the_one_that_the_provenance_describes() -> None:
    model = decoder.load_decoder()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_212_288
    linear = [one for one in model.modules() if isinstance(one, nn.Linear)]
    assert len(linear) == 17
    assert all(one.in_features % 256 == 0 for one in linear)


@pytest.mark.skipif(not manual_text.is_recorded_text(), reason="another release of Python, another text")
def test_it_predicts_the_text_and_writes(one_thread: None) -> None:
    model = decoder.load_decoder()
    codes = manual_text.encode(manual_text.text_corpus("test"))[:4_000]
    assert manual_text.bits_per_character(model, codes) < 2.1
    assert len(manual_text.generate(model, "The ", 20)) == 20


def test_an_altered_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = checkpoints.recorded_sums() | {decoder.WEIGHTS: "0" * 64}
    monkeypatch.setattr(checkpoints, "recorded_sums", lambda: sums)
    with pytest.raises(checkpoints.CheckpointError, match="restore the file"):
        decoder.load_decoder()


@pytest.mark.parametrize("sizes", [{"width": 12, "heads": 4}, {"context": 0}, {"width": 10, "heads": 4}, {"layers": 0}])
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(decoder.DecoderError, match="a multiple of twice the heads"):
        decoder.Decoder(**sizes)  # type: ignore[arg-type]
