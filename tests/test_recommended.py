"""The setting that a model folder recommends, and what its family was published with where it recommends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import unmask
from helpers import cli, fine
from llada_folder import CONTEXT, write
from unmask import registry
from unmask.core.errors import ModelError
from unmask.inspection import inspect
from unmask.models.random import SHAPES
from unmask.models.recommended import recommended
from unmask.models.weights import FAMILIES, Checkpoint

ASSETS = Path(registry.__file__).parent / "assets"
WHOLE = {"policy": "threshold(tau=0.8)", "cache": "dual", "gen_length": 40}


def told(folder: Path, given: Any) -> Any:
    """What is recommended by a folder whose generation_config.json has this under the key ``unmask``."""
    write(folder, tokenizer=False)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "unmask": given}))
    return recommended(Checkpoint.find(folder))


def test_the_folder_recommends(tmp_path: Path) -> None:
    found = told(tmp_path, WHOLE)
    assert (found.policy, found.cache, found.gen_length) == tuple(WHOLE.values())
    assert found.source == str(tmp_path / "generation_config.json")


@pytest.mark.parametrize("left_out", WHOLE)
def test_what_it_leaves_out_is_as_published(left_out: str, tmp_path: Path) -> None:
    family = recommended(Checkpoint.find(write(tmp_path / "bare", tokenizer=False)))
    for how in ({k: v for k, v in WHOLE.items() if k != left_out}, WHOLE | {left_out: None}):
        found = told(tmp_path / str(len(how)), how)
        assert getattr(found, left_out) == getattr(family, left_out)
        assert all(getattr(found, k) == v for k, v in WHOLE.items() if k != left_out)


@pytest.mark.parametrize("name", ["llada-8b", "dream-7b"])
def test_llada_and_dream_are_decoded_as_slowfast_was_published(name: str) -> None:
    found = recommended(Checkpoint(Path(name), SHAPES[name]))
    assert registry.policy(found.policy).name == "slowfast"
    assert registry.cache(found.cache).name == "none"
    assert found.gen_length == 256


@pytest.mark.parametrize("name", SHAPES)
def test_each_family_has_a_published_setting(name: str) -> None:
    found = recommended(Checkpoint(Path(name), SHAPES[name]))
    assert registry.policy(found.policy)
    assert registry.cache(found.cache)
    assert found.gen_length in (128, 256, 512)


def test_each_family_has_a_shape() -> None:
    assert {Checkpoint(Path(), config).family.name for config in SHAPES.values()} == {f.name for f in FAMILIES}


def test_the_published_length_leaves_half_of_the_context_to_the_prompt(tmp_path: Path) -> None:
    assert recommended(Checkpoint.find(write(tmp_path, tokenizer=False))).gen_length == CONTEXT // 2


def test_the_bundled_model_recommends_the_tuned_setting() -> None:
    found = recommended(Checkpoint.find(ASSETS / "tiny"))
    tuned = "lookahead(slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32),64)"
    assert registry.policy(found.policy) == registry.policy(tuned)
    assert registry.cache(found.cache) == registry.cache("dllm(kp=2,kr=1)")
    assert found.gen_length == 256


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("threshold", "unmask = 'threshold'"),
        ([], "unmask = []"),
        ({"polcy": "threshold"}, "'polcy'"),
        ({"temperature": 0.5}, "'temperature'"),
        ({"policy": 5}, "unmask.policy = 5"),
        ({"policy": " "}, "unmask.policy = ' '"),
        ({"cache": ["dual"]}, "unmask.cache"),
        ({"gen_length": "64"}, "unmask.gen_length = '64'"),
        ({"gen_length": 0}, "unmask.gen_length = 0"),
        ({"gen_length": True}, "unmask.gen_length = True"),
        ({"gen_length": CONTEXT}, f"unmask.gen_length = {CONTEXT}"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="generation_config") as caught:
        told(tmp_path, given)
    assert named in str(caught.value)


def test_inspect_tells_of_it(tmp_path: Path) -> None:
    told(tmp_path, WHOLE)
    assert inspect(tmp_path)["recommended"] == WHOLE | {"source": str(tmp_path / "generation_config.json")}
    printed = fine(cli("inspect", tmp_path))
    assert "policy threshold(tau=0.8), cache dual, gen_length 40" in printed


@pytest.mark.parametrize("wrong", [{"policy": "nonsense"}, {"policy": "threshold(tau=7)"}, {"cache": "nonsense"}])
def test_a_recommended_setting_that_is_not_known_names_its_file_when_it_is_used(
    wrong: dict[str, str], tmp_path: Path
) -> None:
    told(tmp_path, WHOLE | wrong)
    lm = unmask.load(tmp_path)
    with pytest.raises(unmask.SpecError, match=r"generation_config\.json"):
        lm.generate([1, 2], 4)
    with pytest.raises(unmask.SpecError) as caught:
        lm.generate([1, 2], 4, "absent")
    assert "generation_config" not in str(caught.value)
    assert len(lm.generate([1, 2], 4, "vanilla", ignore_eos=True)[0].tokens) == 4
