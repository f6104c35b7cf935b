"""Converting real (tiny, random) models of three architectures, and serving them. Needs the extra [convert]."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from replica_fixtures import a_spec, chat, running
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.core.types import Resume, Sampling
from headrace.process import group_members

torch = pytest.importorskip("torch", reason="conversion needs pip install 'headrace[convert]'")
transformers = pytest.importorskip("transformers", reason="conversion needs pip install 'headrace[convert]'")
pytest.importorskip("optimum.intel", reason="conversion needs pip install 'headrace[convert]'")
pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

SIZES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "Phi": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
CLASSES = {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel", "Phi": "PhiForCausalLM"}


def make_model(kind: str, folder: Path) -> Any:
    """A random model whose greedy answers are not all one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<|end|>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    ids = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**ids, **SIZES[kind])
    model = getattr(transformers, CLASSES[kind])(config).eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    )
    return model


@pytest.mark.parametrize("kind", SIZES)
async def test_a_safetensors_folder_is_converted_and_served(kind: str, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    model = make_model(kind, folder)
    spec = a_spec(engine="auto", source=str(folder), chat_template="{{ messages[0].content }}", cpus=2)
    greedy = Sampling(temperature=0.0, ignore_eos=True)
    async with asyncio.timeout(240), running(spec, tmp_path / "a", cache) as replica:
        status = await replica.status_when(lambda s: s.activity.startswith("converting") or s.model)
        assert status.activity.startswith("converting to OpenVINO")
        status = await replica.status_when(lambda s: s.model or s.reason, wait_s=240)
        assert status.model is not None, status.reason
        async with replica.session() as p:
            whole = await p.ask(chat("water"), max_tokens=24, sampling=greedy)
            sent = "".join(whole.pieces[:9])
            rest = await p.ask(
                chat("water"), max_tokens=24, sampling=greedy, resume=Resume(whole.tokens[:9], len(sent))
            )
            assert rest.tokens == whole.tokens[9:]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("water").ids
    expected = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0, len(ids) :]
    assert whole.tokens == expected.tolist(), "the same tokens as transformers"
    async with running(spec, tmp_path / "b", cache) as replica:
        async for status in replica.statuses():
            assert "converting" not in status.activity, "converted once per node"
            if status.model:
                break


async def test_a_converter_ends_with_its_replica(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model("Llama", folder)
    async with running(a_spec(engine="openvino", source=str(folder)), tmp_path / "a") as replica:
        await replica.status_when(lambda s: s.activity.startswith("converting to OpenVINO:"))
        assert len(group_members(replica.child.pid)) > 1
        replica.child._popen.kill()  # type: ignore[union-attr]  # only the leader, as the kernel would
        await replica.exit_code()
        async with asyncio.timeout(30):
            while group_members(replica.child.pid):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
