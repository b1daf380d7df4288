"""Random sequence classifiers in the layouts of published ones, saved to folders."""

import json
from pathlib import Path
from typing import Any

import torch

# Real RoBERTa has 514: the first two belong to the ids before and of the padding.
ROBERTA_POSITIONS = 514
END_OF_TEXT = "<|endoftext|>"
OASST_TOKENS = ("<|prompter|>", "<|assistant|>", "<|prefix_begin|>", "<|prefix_end|>", "<|system|>")
WORDS = ["kettle", "fuse", "sorry", "thank", "Ada", "leaks", "soon", "user", "assistant", "Knowledge"]


def logits(path: str, *texts: str, **options: Any) -> torch.Tensor:
    """[C]: those of one text or pair, without padding, from transformers' own classes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    with torch.inference_mode():
        return model.eval()(**tokenizer(*texts, return_tensors="pt", **options)).logits[0]


def roberta(folder: Path, **settings: Any) -> str:
    """RobertaForSequenceClassification with RoBERTa's special ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizer

    vocab, merges = _byte_pairs(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = RobertaTokenizer(vocab=vocab | {"<mask>": len(vocab)}, merges=merges, model_max_length=512)
    options = {"max_position_embeddings": ROBERTA_POSITIONS, "type_vocab_size": 1, "num_labels": 2} | settings
    config = RobertaConfig(**_encoder(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, **options)
    return _save(RobertaForSequenceClassification, config, tokenizer, folder)


def bert(folder: Path, **settings: Any) -> str:
    """BertForSequenceClassification of 64 positions, `[CLS] A [SEP] B [SEP]`, with three named classes."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _generic(["[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[PAD]")
    labels = {0: "bad", 1: "fair", 2: "good"}
    options = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}} | settings
    config = BertConfig(**_encoder(tokenizer), pad_token_id=0, max_position_embeddings=64, **options)
    return _save(BertForSequenceClassification, config, tokenizer, folder)


def xlnet(folder: Path) -> str:
    """XLNetForSequenceClassification: its summary is the last position, where `A <sep> B <sep> <cls>` ends."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    single, pair = "$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"
    tokenizer = _generic(["<pad>", "<cls>", "<sep>"], single, pair, "<pad>")
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "num_labels": 1, "initializer_range": 0.5}
    config = XLNetConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes)
    return _save(XLNetForSequenceClassification, config, tokenizer, folder)


def gpt2(folder: Path, chat_template: str | None = None, max_length: int = 1024, **settings: Any) -> str:
    """GPT2ForSequenceClassification with one output, as DialogRPT: its only special token is the end of text.

    `max_length` is what its tokenizer says.
    """
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Tokenizer

    vocab, merges = _byte_pairs([])
    tokenizer = GPT2Tokenizer(vocab=vocab | {END_OF_TEXT: len(vocab)}, merges=merges, model_max_length=max_length)
    tokenizer.chat_template = chat_template
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.5, "num_labels": 1}
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **(sizes | settings))
    return _save(GPT2ForSequenceClassification, config, tokenizer, folder)


NEOX_SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "use_parallel_residual": True,
}
# Neither is transformers' default, so that a reader who drops them is seen.
ROTARY = {"rotary_pct": 0.5, "rotary_emb_base": 500}


def neox_reward_model(folder: Path, weights: str = "safetensors", **fields: Any) -> str:
    """A folder as OpenAssistant's: config.json of a model type of their own, `gpt_neox.*`, `out_proj.*`, tokenizer.

    `weights`: safetensors, bin, or shards (pytorch_model-0000n-of-00002.bin with their index).
    """
    folder.mkdir(parents=True)
    tensors = {f"gpt_neox.{name}": tensor for name, tensor in neox_decoder().state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tensors |= {"out_proj.weight": torch.randn(1, 32) / 8, "out_proj.bias": torch.tensor([0.75])}
    # Buffers that GPT-NeoX checkpoints of the time held beside the weights.
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    _write_tensors(folder, tensors, weights)
    config = {"architectures": ["GPTNeoXRewardModel"], "model_type": "gpt_neox_reward_model", "pooling": "last"}
    config |= {"torch_dtype": "float16", "transformers_version": "4.28.0.dev0", "bos_token_id": 0, "eos_token_id": 0}
    _write_json(folder / "config.json", config | NEOX_SIZES | ROTARY | fields)
    backend = _backend([END_OF_TEXT, "<|padding|>"])
    backend.add_special_tokens(list(OASST_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    _write_json(folder / "tokenizer_config.json", names | {"tokenizer_class": "GPTNeoXTokenizer"})
    special = {"eos_token": END_OF_TEXT, "pad_token": "<|padding|>", "additional_special_tokens": list(OASST_TOKENS)}
    _write_json(folder / "special_tokens_map.json", special)
    return str(folder)


def neox_decoder() -> Any:
    """The decoder inside `neox_reward_model`, made from transformers' own class and config."""
    from transformers import GPTNeoXConfig, GPTNeoXModel

    rope = {"rope_type": "default", "rope_theta": ROTARY["rotary_emb_base"], "partial_rotary_factor": 0.5}
    config = GPTNeoXConfig(**NEOX_SIZES, rope_parameters=rope, initializer_range=0.3)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXModel(config).eval()


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor], form: str) -> None:
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    elif form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        index = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
        for file in set(index.values()):
            torch.save({name: tensors[name] for name, of in index.items() if of == file}, folder / file)
        _write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _encoder(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.5,  # scores that differ
    }


def _save(architecture: Any, config: Any, tokenizer: Any, folder: Path) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _generic(special: list[str], single: str, pair: str, pad: str) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = _backend(special)
    ids = [(token, i) for i, token in enumerate(special)]
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, model_input_names=inputs)


def _backend(special: list[str]) -> Any:
    """A byte-level BPE of WORDS whose first ids are `special`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def _byte_pairs(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(_backend(special).to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
