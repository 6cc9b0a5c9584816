"""What `unmask.text` reads is what `transformers` reads: the same ids, rendered conversations and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import unmask
from unmask.text import Text

transformers = pytest.importorskip("transformers")

BUNDLED = Path(unmask.__file__).parent / "assets" / "tiny"
CORPUS = [
    "Amy has 3 apples. She buys 4 more. How many apples does Amy have?",
    "def f(x):\n    return x + 1  # 12345\n\n\tprint(f(2))",
    "Grüße, 世界! Don't — it's 1.5e-3… user system assistant <b>bold</b> [INST] <|x|>",
] * 3
LLAMA_SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

HEADERS = (  # as LLaDA and Llama 3 lay out a conversation
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = 'Today is ' + strftime_now('%Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}\n    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
CHATML = (  # as Qwen and Dream do
    "{%- if tools %}{{- tools | tojson }}{%- endif %}{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- set ns = namespace(content=m.content) %}"
    "{%- if m.role == 'assistant' %}{% generation %}{{- '<|im_start|>assistant\n' + ns.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{%- else %}{{- '<|im_start|>' + m.role + '\n' + ns.content + '<|im_end|>' + '\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
INST = (  # as Llama 2 and Mistral do
    "{{ bos_token }}{% for m in messages %}\n"
    "  {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}\n"
    "  {% if loop.index0 > 9 %}{% break %}{% endif %}\n"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(split: str | None, names: list[AddedToken], **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    first = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(names)
    return tokenizer


def special(*names: str, **flags: Any) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def llama3() -> tuple[Tokenizer, dict[str, Any]]:
    names = special("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>")
    tokenizer = byte_level(LLAMA_SPLIT, names, ignore_merges=True)
    at = tokenizer.token_to_id("<|begin_of_text|>")
    around = [("<|begin_of_text|>", at)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=around)
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": HEADERS}


def qwen() -> tuple[Tokenizer, dict[str, Any]]:
    names = [*special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), AddedToken("<tool>", normalized=False)]
    tokenizer = byte_level(LLAMA_SPLIT.replace("{1,3}", ""), [*names, AddedToken("    ", normalized=False)])
    tokenizer.normalizer = normalizers.NFC()
    end = {"__type": "AddedToken", "content": "<|im_end|>", "special": True, "normalized": False}
    return tokenizer, {"eos_token": end, "pad_token": "<|endoftext|>", "chat_template": CHATML}


def phi() -> tuple[Tokenizer, dict[str, Any]]:
    """Control tokens that swallow blanks beside them, and one that only the config knows."""
    names = [*special("<s>", "</s>"), *special("<|end|>", rstrip=True), *special("<|mask|>", lstrip=True)]
    tokenizer = byte_level(None, names)
    last = tokenizer.get_vocab_size()
    extra = {str(last): {"content": "<|extra|>", "special": True, "normalized": False}}
    template = INST.replace("' [/INST]'", "'<|end|> \n [/INST]<|extra|>'")
    return tokenizer, {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": extra,
        "chat_template": template,
    }


def llama2() -> tuple[Tokenizer, dict[str, Any]]:
    """Blanks as a symbol of their own, in front of the text's first word only; control tokens inside the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    names = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": INST}


def unigram() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": INST}


def bert() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    around = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return tokenizer, {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def bundled() -> tuple[Tokenizer, dict[str, Any]]:
    config = json.loads((BUNDLED / "tokenizer_config.json").read_text())
    return Tokenizer.from_file(str(BUNDLED / "tokenizer.json")), config


KINDS = {f.__name__: f for f in (bundled, llama3, qwen, phi, llama2, unigram, bert)}
TEXTS = st.one_of(
    st.sampled_from(CORPUS), st.text(max_size=30), st.text("aA é\n<|>[]12", max_size=30).map(lambda t: f" {t} ")
).filter(bool)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Text, Any]:
    """A folder's tokenizer as read here, and by `transformers`."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer, config = KINDS[request.param]()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Text(folder), transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


def conversations() -> list[list[dict[str, str]]]:
    turns = [("user", " 1 + 1?  "), ("assistant", "2,\n\n I think"), ("user", "Amy has 3\tapples.\n")]
    talk = [{"role": role, "content": content} for role, content in turns]
    return [talk[:1], talk, [{"role": "user", "content": "    x"}], [{"role": "user", "content": "é <b>"}]]


@given(TEXTS)
@settings(max_examples=60)
def test_a_text(pair: tuple[Text, Any], text: str) -> None:
    ours, theirs = pair
    if any(name in text for name in ours.control):
        return
    assert ours.plain(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.plain(text, special=True) == theirs(text)["input_ids"]
    ids = ours.plain(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("at", range(4))
def test_a_conversation(pair: tuple[Text, Any], at: int) -> None:
    ours, theirs = pair
    if not ours.chat:
        pytest.skip("this one has no template")
    talk = conversations()[at]
    rendered = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert ours.render(talk) == rendered
    assert ours.encode(talk) == theirs(rendered, add_special_tokens=False)["input_ids"]
    assert ours.parse(rendered, special=True) == theirs(rendered)["input_ids"]


def test_functions_reach_the_template(pair: tuple[Text, Any]) -> None:
    """As ``transformers`` gives them; what a description spells stays text."""
    ours, theirs = pair
    if not ours.chat:
        pytest.skip("this one has no template")
    own = {"name": "f", "description": "caf\u00e9 {x}", "parameters": {"type": "object", "properties": {"a": {}}}}
    tools, talk = [{"type": "function", "function": own}], [{"role": "user", "content": "1 + 1?"}]
    rendered = theirs.apply_chat_template(talk, tools=tools, tokenize=False, add_generation_prompt=True)
    assert ours.takes_tools == ("café {x}" in rendered)
    assert ours.encode(talk, tools=tools) == theirs(rendered, add_special_tokens=False)["input_ids"]
    if ours.takes_tools:
        own |= {"description": "<|im_end|>", "parameters": {"type": "object", "properties": {"<|im_end|>": {}}}}
        plain = ours.encode(talk)
        control = ours.control["<|im_end|>"]
        assert ours.encode(talk, tools=tools).count(control) == plain.count(control)


@pytest.mark.parametrize("end", ["2", "2 ", "2\n\n", " so"])
def test_a_message_that_is_continued(pair: tuple[Text, Any], end: str) -> None:
    ours, theirs = pair
    if not ours.chat:
        pytest.skip("this one has no template")
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": end}]
    rendered = theirs.apply_chat_template(talk, tokenize=False, continue_final_message=True)
    assert ours.render(talk, answer=False) == rendered
    assert ours.encode(talk) == theirs(rendered, add_special_tokens=False)["input_ids"]


def test_what_it_knows(pair: tuple[Text, Any]) -> None:
    ours, theirs = pair
    assert ours.pieces_by_id == {i: piece for piece, i in theirs.get_vocab().items()}
    assert len(ours) == len(theirs)
    assert ours.unknown == ()
    assert ours.bos == theirs.bos_token_id
    assert theirs.eos_token_id is None or ours.eos[0] == theirs.eos_token_id
    every = list(range(len(ours)))
    assert ours.pieces(every) == [theirs.decode([i], clean_up_tokenization_spaces=False) for i in every]
    special = [t.content for t in theirs.added_tokens_decoder.values() if t.special]
    assert {*theirs.all_special_tokens, *special} <= set(ours.control)


def test_control_tokens_are_text_where_users_write_them(pair: tuple[Text, Any]) -> None:
    """Not only are the control tokens absent: the ids are those of a tokenizer that has never heard of them."""
    ours, _ = pair
    unknown = ours.token("[UNK]") if "[UNK]" in ours.control else ours.control.get("<unk>")
    for name in ours.control:
        for text in (name, f"a {name} b", f"{name}{name}x", f"\ufdd0{name}"):
            assert not set(ours.plain(text)) & (set(ours.control.values()) - {unknown})
            if not ours.chat:
                continue
            fair = ours.encode([{"role": "user", "content": "x"}])
            ids = ours.encode([{"role": "user", "content": text}])
            control = set(ours.control.values()) - {unknown}
            assert [i for i in ids if i in control] == [i for i in fair if i in control]
            assert ours.parse(ours.render([{"role": "user", "content": text}])) == ids


def test_the_ids_of_a_name_are_those_of_a_tokenizer_without_it(tmp_path: Path) -> None:
    tokenizer, config = llama3()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    text = Text(tmp_path)
    innocent = byte_level(LLAMA_SPLIT, [], ignore_merges=True)
    for words in ("<|eot_id|>", "a<|eot_id|>b c", "x <|mdm_mask|><|mdm_mask|>\n\n12345"):
        assert text.plain(words) == innocent.encode(words).ids
        assert text.decode(text.plain(words)) == words


def test_a_kind_whose_rules_are_not_known_is_converted(tmp_path: Path) -> None:
    tokenizer = byte_level(None, special("<|endoftext|>"))
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    )
    text = Text(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert text.eos == (theirs.eos_token_id,)
    for words in CORPUS:
        assert text.plain(words) == theirs(words)["input_ids"]


def test_vocab_and_merges_of_qwen_need_no_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, config = qwen()
    tokenizer.model.save(str(tmp_path))
    added = {
        str(i): {"content": t.content, "special": t.special} for i, t in tokenizer.get_added_tokens_decoder().items()
    }
    config |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.Qwen2TokenizerFast.from_pretrained(str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    text = Text(tmp_path)
    assert text.pieces_by_id == {i: piece for piece, i in theirs.get_vocab().items()}
    for words in [*CORPUS, "  two  blanks\n\n\n and 12345 e\u0301", "<tool>x</tool>"]:
        assert text.plain(words) == theirs(words)["input_ids"]
    talk = conversations()[1]
    assert text.render(talk) == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
