"""The promises about bits, held with the real engines on tiny models."""

from __future__ import annotations

import asyncio

import pytest
from ssd_cloud import models
from ssd_protos.ssd.v1 import ssd_pb2 as pb

CASES = [
    ("llama", pb.DECODER_WINDOW), ("opt", pb.DECODER_WINDOW), ("llama", pb.DECODER_AUTOREGRESSIVE),
    ("ssdlm", pb.DECODER_SSDLM), ("llama", pb.DECODER_SSDLM),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    from ssd_diffusion.models.tiny import write_tiny

    folders: dict[str, object] = {}

    def load(family: str):
        if family not in folders:
            folders[family] = write_tiny(tmp_path_factory.mktemp(family) / "m", family=family, seed=5, learned=0.5)
        return models.load(folders[family], slots=8, batch_width=4, threads=1)

    return load


@pytest.mark.parametrize(("family", "decoder"), CASES)
async def test_replay_unary_and_stream_give_the_same_bits(start_node, engine_of, family, decoder):
    async with start_node(engine_of(family)) as run:
        whole = run.device(decoder=decoder, max_tokens=9)
        await whole.stream(run.stub)
        broken = run.device(decoder=decoder, max_tokens=9)
        await broken.stream(run.stub, passes=2)
        await broken.stream(run.stub, passes=1, history=broken.steps[:-1])
        await broken.unary(run.stub)
        assert (broken.data, broken.text) == (whole.data, whole.text)
        assert len(set(whole.data)) == len(whole.data)
        await run.settled()


@pytest.mark.parametrize(("family", "decoder"), CASES)
async def test_one_session_or_eight_at_once(start_node, engine_of, family, decoder):
    async with start_node(engine_of(family), batch_width=8) as run:

        async def answer(i: int):
            prompt = list(range(3 + i, 8 + 3 * i))
            device = run.device(decoder=decoder, prompt=prompt, noise_key=i, max_tokens=7 + i % 2)
            await (device.stream(run.stub) if i % 2 else device.unary(run.stub))
            return device.data

        alone = [await answer(i) for i in range(8)]
        before = run.node.scheduler.batches
        together = await asyncio.gather(*(answer(i) for i in range(8)))
        assert together == alone
        assert run.node.scheduler.batches - before < before / 2  # they did share batches


async def test_eight_at_once_on_onnxruntime(start_node, tmp_path):
    from ssd_diffusion.models.tiny import write_tiny

    folder = write_tiny(tmp_path / "m", seed=5, learned=0.5)
    engine = models.load_quickest(folder, tmp_path, slots=8, batch_width=None, threads=2, runtime="onnx")
    async with start_node(engine, batch_width=models.usual_batch_width(engine)) as run:

        async def answer(i: int):
            decoder = (pb.DECODER_WINDOW, pb.DECODER_AUTOREGRESSIVE)[i % 2]
            device = run.device(decoder=decoder, prompt=list(range(3 + i, 8 + 3 * i)), noise_key=i, max_tokens=7)
            await device.stream(run.stub)
            return device.data

        alone = [await answer(i) for i in range(8)]
        before = run.node.scheduler.batches
        assert await asyncio.gather(*(answer(i) for i in range(8))) == alone
        assert run.node.scheduler.batches - before < before / 2


async def test_asking_again_and_a_fresh_process_give_the_same_bits(start_node, engine_of):
    async with start_node(engine_of("llama")) as run:
        device = run.device(max_tokens=9)
        session = await device.unary(run.stub, passes=2, last=False)
        request = pb.DenoiseStepRequest(session_id=session, step=device.step)
        first = (await run.stub.DenoiseStep(request)).result.logits.data
        assert (await run.stub.DenoiseStep(request)).result.logits.data == first
    async with start_node(engine_of("llama")) as other:  # another node with the same core takes over
        moved = pb.DenoiseStepRequest(open=device.open(device.steps[:-1]), step=device.step)
        assert (await other.stub.DenoiseStep(moved)).result.logits.data == first
