"""The SSD-LM family against a slow float64 version written from the equations: one step, a whole decode, the loss."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import ContextOverflow, InvalidModel
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.ssdlm import (
    Guidance,
    SsdlmModel,
    TrainingDraw,
    draw_training,
    guide,
    noised_simplex,
    parameter_groups,
    training_loss,
)
from ssd_diffusion.models.ssdlm_checkpoint import load_folder, load_published, save_folder
from ssd_diffusion.models.ssdlm_engine import SsdlmEngine
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.schedule import uniform_grid
from ssd_diffusion.ssdlm import decode_blocks
from ssd_diffusion.window import Window
from ssd_kernels.noise import normals_f64
from ssd_kernels.types import TokenSets

V, H, LAYERS, HEADS, K = 96, 16, 2, 2, 5.0
PAD = 1


def make_model(seed: int = 0, *, positions: int = 66, scale: float = 0.4) -> SsdlmModel:
    """A random tiny SSD-LM with every weight, norms and biases included, away from its start value."""
    config = transformers.RobertaConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=24,
        max_position_embeddings=positions, type_vocab_size=1, pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    model = SsdlmModel(transformers.RobertaForMaskedLM(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SsdlmModel:
    return make_model()


@pytest.fixture(scope="module")
def spec(model, tmp_path_factory):
    return save_folder(model, tmp_path_factory.mktemp("m") / "ssdlm", name="tiny", grid=(1.0, 0.5), max_block=8)


# --- the slow version: float64 numpy, from the equations ---------------------------------------------------------


def softmax64(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu64(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def norm64(x, w, prefix, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w[prefix + ".weight"] + w[prefix + ".bias"]


def dense64(x, w, prefix):
    return x @ w[prefix + ".weight"].T + w[prefix + ".bias"]


def roberta64(w, embeds, eps):
    """Encoder and masked-LM head over input embeddings [n, H]; logits [n, V]."""
    n = len(embeds)
    positions = w["roberta.embeddings.position_embeddings.weight"][PAD + 1 : PAD + 1 + n]
    x = embeds + positions + w["roberta.embeddings.token_type_embeddings.weight"][0]
    x = norm64(x, w, "roberta.embeddings.LayerNorm", eps)
    size = H // HEADS
    for layer in range(LAYERS):
        at = f"roberta.encoder.layer.{layer}."
        q, k, v = (dense64(x, w, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in range(HEADS):
            cut = slice(head * size, (head + 1) * size)
            heads.append(softmax64(q[:, cut] @ k[:, cut].T / math.sqrt(size)) @ v[:, cut])
        mixed = dense64(np.concatenate(heads, axis=-1), w, at + "attention.output.dense")
        x = norm64(x + mixed, w, at + "attention.output.LayerNorm", eps)
        inner = gelu64(dense64(x, w, at + "intermediate.dense"))
        x = norm64(x + dense64(inner, w, at + "output.dense"), w, at + "output.LayerNorm", eps)
    x = norm64(gelu64(dense64(x, w, "lm_head.dense")), w, "lm_head.layer_norm", eps)
    return x @ w["roberta.embeddings.word_embeddings.weight"].T + w["lm_head.bias"]


def weights64(model):
    return {name: value.detach().double().numpy() for name, value in model.backbone.state_dict().items()}


def ssdlm64(model, context, x_t, u):
    """f(context, softmax(x_t), t/T): logits at the block's positions [B, V]."""
    w = weights64(model)
    w_diff = model.w_diff.detach().double().numpy()
    time = model.w_time.weight.detach().double().numpy()[:, 0], model.w_time.bias.detach().double().numpy()
    block = softmax64(x_t) @ w_diff + np.outer(np.broadcast_to(u, len(x_t)), time[0]) + time[1]
    embeds = np.concatenate([w["roberta.embeddings.word_embeddings.weight"][context], block])
    return roberta64(w, embeds, model.backbone.config.layer_norm_eps)[len(context) :]


def alpha_bar64(u, s=1e-4):
    def r(x):
        return math.cos((x + s) / (1 + s) * math.pi / 2) ** 2

    return 0.0 if u >= 1 else r(u) / r(0)


def state64(tokens, u, *, key, start, step, block):
    """x_t from an estimate of one token a position (any, where u is 1)."""
    simplex = np.full((len(tokens), V), -K)
    simplex[np.arange(len(tokens)), tokens] = K
    z = normals_f64(key, np.arange(start, start + len(tokens), dtype=np.int32), step=step, block=block, vocab=V)
    ab = alpha_bar64(u)
    return math.sqrt(ab) * simplex + math.sqrt(1 - ab) * K * z


# --- the network and the engine ----------------------------------------------------------------------------------


def test_model_is_the_equations(model):
    rng = np.random.default_rng(0)
    context, x_t = rng.integers(3, V, 9), rng.normal(size=(5, V)) * 4
    expected = ssdlm64(model, context, x_t, 0.37)
    with torch.no_grad():
        block = model.embed_state(torch.tensor(x_t, dtype=torch.float32))[None]
        got = model(torch.tensor(context)[None], block, torch.tensor([0.37]))[0].numpy()
    np.testing.assert_allclose(got, expected, atol=3e-4, rtol=1e-4)


def test_context_is_read_from_both_sides_and_time_on_the_block_only(model):
    """Bidirectional: the block changes what the context's tokens say, and W_time never touches the context."""
    context, x_t = np.array([5, 6, 7]), np.zeros((2, V))
    base = ssdlm64(model, context, x_t, 0.5)
    assert (
        np.abs(ssdlm64(model, context, x_t, 1.0) - base).max() > 1e-3
    )  # W_time matters, as the torch test above holds
    with torch.no_grad():
        block = model.embed_state(torch.zeros(1, 2, V))
        one = model(torch.tensor([[5, 6, 7]]), block, torch.tensor([[0.5, 0.5]])).numpy()[0]
    np.testing.assert_allclose(one, base, atol=3e-4, rtol=1e-4)


def test_w_diff_starts_as_the_embedding_and_is_untied():
    config = transformers.RobertaConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = SsdlmModel(transformers.RobertaForMaskedLM(config))
    embedding = model.backbone.get_input_embeddings().weight
    assert torch.equal(model.w_diff, embedding)
    with torch.no_grad():
        model.w_diff[3] += 1
    assert not torch.equal(model.w_diff, embedding)


def test_an_untied_head_is_refused():
    config = transformers.RobertaConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    with pytest.raises(InvalidModel, match="not tied"):
        SsdlmModel(transformers.RobertaForMaskedLM(config))


@pytest.mark.parametrize(("u", "step"), [(1.0, 0), (0.6, 3), (0.05, 7)])
def test_engine_step_is_the_equations(model, spec, u, step):
    engine = SsdlmEngine(model, spec, slots=2)
    context, tokens, key = np.array([8, 9, 10, 11], np.int32), np.array([20, 30, 40], np.int32), 0xABCDEF0123456789
    engine.prefill([1], [context[:2]])
    engine.commit([1], [context[2:]])
    w_hat = TokenSets.empty(3) if u == 1.0 else TokenSets.single(tokens)
    window = Window(3, step, 1, np.full(3, u, np.float32), w_hat, key)
    (got,) = engine.step([1], [window])
    x_t = state64(tokens, float(np.float32(u)), key=key, start=3, step=step, block=1)
    np.testing.assert_allclose(got, ssdlm64(model, context, x_t, u), atol=2e-3, rtol=1e-3)
    assert engine.forward_passes(1) == 1
    np.testing.assert_array_equal(engine.step([1], [window])[0], got)


def test_noise_is_there_at_full_noise(model, spec):
    """Unlike the decoder family, which hides pure noise, another key gives other logits at u = 1."""
    engine = SsdlmEngine(model, spec)
    engine.prefill([0], [np.array([4, 5], np.int32)])
    windows = [Window(0, 0, 0, np.ones(2, np.float32), TokenSets.empty(2), key) for key in (1, 2)]
    one, two = (engine.step([0], [window])[0] for window in windows)
    assert np.abs(one - two).max() > 1e-3


def test_slots_do_not_change_each_other(model, spec):
    engine = SsdlmEngine(model, spec, slots=3)
    contexts = [np.arange(3, 3 + n, dtype=np.int32) for n in (4, 9, 2)]
    engine.prefill([0, 1, 2], contexts)
    windows = [
        Window(i, i, 0, np.full(3, 0.5, np.float32), TokenSets.single(np.array([7, 8, 9], np.int32)), 5)
        for i in range(3)
    ]
    together = engine.step([0, 1, 2], windows)
    for i in range(3):
        engine.prefill([0], [contexts[i]])
        np.testing.assert_array_equal(engine.step([0], [windows[i]])[0], together[i])


def test_padded_rows_never_come_back(model, spec):
    import dataclasses

    short = dataclasses.replace(spec, vocab=V - 6)
    engine = SsdlmEngine(model, short)
    engine.prefill([0], [np.array([4, 5], np.int32)])
    (logits,) = engine.step([0], [Window(0, 0, 0, np.ones(2, np.float32), TokenSets.empty(2), 1)])
    assert logits.shape == (2, V - 6)


def test_limits(model, spec):
    engine = SsdlmEngine(model, spec, slots=1)
    assert model.max_positions == 64 == spec.max_context
    with pytest.raises(ContextOverflow, match="65 tokens"):
        engine.prefill([0], [np.full(65, 5, np.int32)])
    with pytest.raises(ContextOverflow):
        engine.prefill([0], [np.zeros(0, np.int32)])
    engine.prefill([0], [np.full(60, 5, np.int32)])
    engine.step([0], [Window(0, 0, 0, np.ones(4, np.float32), TokenSets.empty(4), 1)])  # 64 of 64 positions
    with pytest.raises(ContextOverflow, match="65 tokens"):
        engine.step([0], [Window(0, 0, 0, np.ones(5, np.float32), TokenSets.empty(5), 1)])
    with pytest.raises(ContextOverflow):
        model(torch.full((1, 60), 5), torch.zeros(1, 5, H), torch.ones(1))
    with pytest.raises(InvalidModel, match="diffusion decoder"):
        engine.next_logits([0])
    assert engine.slot_bytes(0) == 240
    engine.release([0])
    assert engine.slot_bytes(0) == engine.forward_passes(0) == 0
    with pytest.raises(InvalidModel, match="prefill"):
        engine.commit([0], [np.array([3], np.int32)])


def test_decoding_is_the_papers_procedure(model, spec):
    """Two blocks of three positions, four steps each, greedy: tokens equal to a loop written from the paper."""
    steps, blocks, size, key = 4, 2, 3, 77
    context, step = [5, 6, 7, 8], 0
    expected: list[int] = []
    for number in range(blocks):
        w_hat = np.zeros(size, np.int64)
        for t in range(steps, 0, -1):
            # x_T is pure noise; afterwards x_t is the estimate of the step before, renoised to t
            x_t = state64(w_hat, t / steps, key=key, start=number * size, step=step, block=number)
            logits = ssdlm64(model, np.array(context + expected), x_t, t / steps)
            w_hat, step = logits.argmax(-1), step + 1
        expected += w_hat.tolist()
    engine = SsdlmEngine(model, spec)
    member = EngineMember(engine, 0, np.array(context, np.int32), name="core")
    params = DecodeParams(block=size, grid=uniform_grid(steps), max_tokens=size * blocks, projection="greedy")
    with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
        events = list(decode_blocks(ensemble, params, noise_key=key, draw_key=1))
        assert member.forward_passes == steps * blocks == len(events)
    assert [int(t) for e in events for t in e.committed] == expected


# --- training ----------------------------------------------------------------------------------------------------


def test_training_loss_is_the_equation(model):
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, V, (2, 12))
    c, b, t = 4, 3, [1200, 4000]
    noise = rng.normal(size=(2, b, V))
    total = []
    for row in range(2):
        clean = tokens[row, c : c + b]
        simplex = np.full((b, V), -K)
        simplex[np.arange(b), clean] = K
        ab = alpha_bar64(t[row] / 5000)
        x_t = math.sqrt(ab) * simplex + math.sqrt(1 - ab) * K * noise[row]
        p = softmax64(ssdlm64(model, tokens[row, :c], x_t, t[row] / 5000))
        total += [-math.log(p[i, clean[i]]) for i in range(b)]
    draw = TrainingDraw(c, torch.tensor(t), torch.tensor(noise))
    got = training_loss(model, torch.tensor(tokens), draw)
    assert got.item() == pytest.approx(np.mean(total), rel=1e-4)
    changed = tokens.copy()
    changed[:, c + b :] = 3  # what follows the block is not an input
    assert training_loss(model, torch.tensor(changed), draw).item() == got.item()


def test_training_draw_ranges():
    generator = torch.Generator().manual_seed(0)
    draws = [draw_training(3, length=9, block=4, vocab=7, generator=generator, steps=5) for _ in range(300)]
    assert {d.context_length for d in draws} == {1, 2, 3, 4, 5}
    assert {int(t) for d in draws for t in d.t} == {1, 2, 3, 4, 5}
    assert draws[0].noise.shape == (3, 4, 7)
    with pytest.raises(InvalidModel):
        draw_training(1, length=4, block=4, vocab=7, generator=generator)


def test_noised_simplex_ends():
    tokens, noise = torch.tensor([[2, 0]]), torch.ones(1, 2, 4)
    clean = noised_simplex(tokens, torch.ones(1), noise)
    assert clean[0, 0].tolist() == [-5, -5, 5, -5]
    assert noised_simplex(tokens, torch.zeros(1), noise).unique().tolist() == [5.0]


def test_decay_groups(model):
    decayed, plain = parameter_groups(model)
    names = {id(p): n for n, p in model.named_parameters()}
    exempt = {names[id(p)] for p in plain["params"]}
    kept = {names[id(p)] for p in decayed["params"]}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert {"w_time.weight", "w_time.bias", "backbone.lm_head.bias"} <= exempt
    assert "w_diff" in kept
    assert not any("bias" in n or "orm" in n for n in kept)
    assert len(exempt | kept) == len(names)


def test_training_learns():
    """A few steps on one repeated row bring the loss down: gradients reach W_diff, W_time and the backbone."""
    model = make_model(scale=0.02).train()
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    tokens = torch.arange(3, 15)[None].repeat(4, 1)
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=3e-2)
    losses = []
    for _ in range(60):
        loss = training_loss(model, tokens, draw_training(4, length=12, block=4, vocab=V, generator=generator))
        optimiser.zero_grad()
        loss.backward()
        assert model.w_diff.grad is not None
        assert model.w_time.weight.grad is not None
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])


# --- control -----------------------------------------------------------------------------------------------------


def linear_classifier(weight):
    return lambda embeds: embeds.mean(dim=1) @ weight


def test_guidance_is_the_gradient(model):
    """Against finite differences of log f(label | softmax(logits) E_clf) in float64, with and without context."""
    rng = np.random.default_rng(5)
    embedding, weight = rng.normal(size=(6, 3)), rng.normal(size=(3, 2))
    logits, context = rng.normal(size=(2, 2, 6)), np.array([[1, 2], [3, 4]])

    def log_f(row, with_context, x):
        vectors = softmax64(x) @ embedding
        if with_context:
            vectors = np.concatenate([embedding[context[row]], vectors])
        scores = vectors.mean(0) @ weight
        return scores[1] - np.log(np.exp(scores).sum())

    for with_context in (True, False):
        expected = logits.copy()
        for index in np.ndindex(logits.shape):
            up, down = logits[index[0]].copy(), logits[index[0]].copy()
            up[index[1:]] += 1e-6
            down[index[1:]] -= 1e-6
            expected[index] += 3.0 * (log_f(index[0], with_context, up) - log_f(index[0], with_context, down)) / 2e-6
        guidance = Guidance(
            linear_classifier(torch.tensor(weight)), torch.tensor(embedding), 1, 3.0, with_context=with_context
        )
        got = guide(torch.tensor(logits), guidance, torch.tensor(context))
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)
        alone = guide(torch.tensor(logits[:1]), guidance, torch.tensor(context[:1]))  # lambda is not tied to the batch
        np.testing.assert_allclose(alone[0].numpy(), got[0].numpy(), atol=1e-12)


def test_guidance_steers_the_engine(model, spec):
    generator = torch.Generator().manual_seed(2)
    embedding, weight = torch.randn(V, 4, generator=generator), torch.randn(4, 2, generator=generator)
    window = Window(0, 0, 0, np.ones(3, np.float32), TokenSets.empty(3), 9)
    scores = []
    for strength in (0.0, 50.0):
        guidance = Guidance(linear_classifier(weight), embedding, 0, strength)
        engine = SsdlmEngine(model, spec, guidance=guidance)
        engine.prefill([0], [np.array([4, 5], np.int32)])
        logits = torch.tensor(engine.step([0], [window])[0])[None]
        context = embedding[torch.tensor([[4, 5]])]
        vectors = torch.cat([context, torch.softmax(logits, -1) @ embedding], 1)
        scores.append(torch.log_softmax(linear_classifier(weight)(vectors), -1)[0, 0].item())
    assert scores[1] > scores[0] + 0.01
    with pytest.raises(InvalidModel, match="classifier"):
        guide(torch.zeros(1, 1, V), Guidance(linear_classifier(weight), embedding[:9], 0, 1.0))


# --- checkpoints -------------------------------------------------------------------------------------------------


def write_published(model, folder, prefix=""):
    model.backbone.save_pretrained(folder)
    torch.save({f"{prefix}weight": model.w_diff.detach().T.contiguous()}, folder / "embed_sum_layer.pt")
    time = {f"{prefix}weight": model.w_time.weight.detach(), f"{prefix}bias": model.w_time.bias.detach()}
    torch.save(time, folder / "timestep_layer.pt")
    return folder


def logits_of(model):
    with torch.no_grad():
        x_t = torch.linspace(-3, 3, 2 * V).reshape(1, 2, V)
        return model.eval()(torch.tensor([[4, 5, 6]]), model.embed_state(x_t), torch.tensor([0.4]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_layout(model, tmp_path, prefix):
    loaded = load_published(write_published(model, tmp_path / "ssdlm", prefix))
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not torch.equal(loaded.w_diff, loaded.backbone.get_input_embeddings().weight)


def test_pickled_backbone_loads_too(model, tmp_path):
    """The published folder stores the backbone itself as pytorch_model.bin."""
    folder = write_published(model, tmp_path / "ssdlm")
    state = model.backbone.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(logits_of(load_published(folder)), logits_of(model))


class _Bomb:
    def __reduce__(self):
        import pathlib

        return pathlib.Path("exploded").touch, ()


@pytest.mark.parametrize("name", ["embed_sum_layer.pt", "timestep_layer.pt"])
def test_malicious_pickle_is_refused(model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = write_published(model, tmp_path / "ssdlm")
    torch.save({"weight": _Bomb()}, folder / name)
    with pytest.raises(InvalidModel, match="more than plain tensors"):
        load_published(folder)
    assert not (tmp_path / "exploded").exists()


def test_foreign_checkpoints_are_refused(model, tmp_path):
    folder = write_published(model, tmp_path / "ssdlm")
    good = torch.load(folder / "embed_sum_layer.pt", weights_only=True)
    torch.save({"weight": good["weight"].T.contiguous()}, folder / "embed_sum_layer.pt")
    with pytest.raises(InvalidModel, match=r"should be \[16, 96\] and is \[96, 16\]"):
        load_published(folder)
    torch.save({"other": good["weight"]}, folder / "embed_sum_layer.pt")
    with pytest.raises(InvalidModel, match="missing"):
        load_published(folder)
    torch.save([good["weight"]], folder / "embed_sum_layer.pt")
    with pytest.raises(InvalidModel, match="no named tensors"):
        load_published(folder)
    torch.save({"weight": good["weight"] * float("nan")}, folder / "embed_sum_layer.pt")
    with pytest.raises(InvalidModel, match="not finite"):
        load_published(folder)
    (folder / "embed_sum_layer.pt").write_bytes(b"not a pickle")
    with pytest.raises(InvalidModel, match="damaged"):
        load_published(folder)
    (folder / "embed_sum_layer.pt").unlink()
    with pytest.raises(InvalidModel, match="missing"):
        load_published(folder)
    with pytest.raises(InvalidModel, match=r"no config\.json"):
        load_published(tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(InvalidModel, match="not a RobertaForMaskedLM"):
        load_published(folder)


def test_missing_backbone_tensors_are_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_published(model, tmp_path / "ssdlm")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("roberta.encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match="lacks 1 of"):
        load_published(folder)
    tensors["roberta.encoder.layer.1.output.dense.weight"] = torch.full((H, 24), float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match="not finite"):
        load_published(folder)


def test_model_folder_round_trip(model, tmp_path):
    saved = save_folder(model, tmp_path / "m", name="tiny", eos_ids=(2,), tokenizer_fingerprint="ab")
    loaded, spec = load_folder(tmp_path / "m")
    assert spec == saved
    assert (spec.family, spec.output_shift, spec.max_context, len(spec.grid)) == ("ssdlm", False, 64, 1000)
    assert torch.equal(logits_of(loaded), logits_of(model))
    card = json.loads((tmp_path / "m" / "model.json").read_text())
    for change in ({"hidden": 8}, {"family": "ssd2"}, {"format": 9}, {"unknown": 1}):
        (tmp_path / "m" / "model.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(InvalidModel, match=r"model\.json"):
            load_folder(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(json.dumps(card))
    (tmp_path / "m" / "diffusion.safetensors").write_bytes(b"xx")
    with pytest.raises(InvalidModel, match="cannot be read"):
        load_folder(tmp_path / "m")


def test_tiny_folder_loads(tmp_path):
    from ssd_diffusion.models.tiny import write_tiny

    loaded, spec = load_folder(write_tiny(tmp_path / "t", family="ssdlm", learned=0.5))
    engine = SsdlmEngine(loaded, spec)
    engine.prefill([0], [np.array([40, 41], np.int32)])
    assert engine.step([0], [Window(0, 0, 0, np.ones(4, np.float32), TokenSets.empty(4), 3)])[0].shape == (4, 256)


def test_spec_must_describe_the_weights(model, spec):
    import dataclasses

    with pytest.raises(InvalidModel, match="does not describe"):
        SsdlmEngine(model, dataclasses.replace(spec, family="ssd2"))
