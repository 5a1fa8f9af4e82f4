"""The configuration refuses what it does not know and survives the way to disk."""

import copy
import json
import subprocess
import sys

import pytest
from model_fixtures import TASKS, random_config
from transformers import AutoConfig, BertConfig, LlamaConfig, Qwen2Config

from polyrec import FeatureConfig, PolyRecConfig, TaskConfig
from polyrec.core.registry import EXPERTS, HEADS

FEATURES = [
    FeatureConfig("genre", "item", "categorical", size=5),
    FeatureConfig("statistics", "candidate", "vector", size=3),
]


def test_reload_gives_the_same_values(tmp_path):
    """Prevents a nested value (task options, features, the history backbone) from being lost in config.json."""
    config = random_config(features=FEATURES, expert_options={"members": 2}, weighting="fixed")
    config.save_pretrained(tmp_path)
    assert PolyRecConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()  # what transformers adds, too
    for loaded in (PolyRecConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is PolyRecConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert loaded.task_configs == config.task_configs == [TaskConfig(**t) for t in TASKS]
        assert loaded.feature_configs == FEATURES
        assert type(loaded.history_config) is LlamaConfig


def test_any_causal_backbone_round_trips(tmp_path):
    """Prevents a history backbone of another family from coming back as the default Llama."""
    history = Qwen2Config(
        vocab_size=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    random_config(history_config=history).save_pretrained(tmp_path)
    loaded = PolyRecConfig.from_pretrained(tmp_path).history_config
    assert isinstance(loaded, Qwen2Config)
    assert loaded.num_key_value_heads == 1


def test_new_object_does_not_share_state():
    """Prevents two configurations from sharing one list or dict of options (a mutable default)."""
    tasks = [{"name": "like", "head": "binary", "options": {"prior": 0.25}}]
    first, second = random_config(tasks=tasks), random_config(tasks=tasks)
    first.tasks[0]["options"]["prior"] = 0.5
    first.expert_options["members"] = 4
    assert second.task_configs[0].options == {"prior": 0.25}
    assert second.expert_options == {}
    assert tasks[0]["options"] == {"prior": 0.25}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hiden_size": 8}, "did you mean 'hidden_size'"),
        ({"experts": "shared_botom"}, "did you mean 'shared_bottom'"),
        ({"weighting": "fixd"}, "did you mean 'fixed'"),
        ({"tasks": [{"name": "like", "head": "binry"}]}, "did you mean 'binary'"),
        ({"tasks": [{"name": "like", "haed": "binary", "head": "binary"}]}, "did you mean 'head'"),
        ({"tasks": [{"name": "like", "head": "binary"}] * 2}, "used 2 times"),
        ({"tasks": [{"name": "like", "head": "binary", "weight": 0.0}]}, "weight 0"),
        (
            {"tasks": [{"name": "like", "head": "binary", "weight": -1.0}]},
            "tasks.like.weight is .*it must be a number >= 0",
        ),
        (
            {"tasks": [{"name": "like", "head": "binary", "weight": float("nan")}]},
            "tasks.like.weight is .*it must be a number >= 0",
        ),
        ({"tasks": [{"name": "like.it", "head": "binary"}]}, "beginning with a letter"),
        ({"features": [{"name": "genre", "source": "itm", "kind": "numeric"}]}, "did you mean 'item'"),
        ({"features": [{"name": "genre", "source": "item", "kind": "categorial"}]}, "did you mean 'categorical'"),
        ({"features": [FEATURES[0]] * 2}, "listed twice"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be a number in \[0, 1\)"),
        ({"num_items": 1}, "num_items is 1"),
        ({"hidden_size": 9}, "hidden_size 9 is not a multiple"),
        ({"candidate_attention_heads": 3}, "not a multiple of candidate_attention_heads 3"),
        ({"max_history": 0}, "max_history is 0"),
        ({"history_config": LlamaConfig(hidden_size=16, num_attention_heads=2)}, "history_config.hidden_size is 16"),
    ],
)
def test_mistakes_are_refused_with_the_fix(overrides, message):
    """Prevents a misspelt or impossible setting from being kept silently, as transformers' own configurations do."""
    with pytest.raises(ValueError, match=message):
        random_config(**overrides)


def test_same_feature_name_in_two_sources_is_fine():
    """Prevents an item attribute from being mistaken for the person's attribute of the same name."""
    features = [
        FeatureConfig("region", "item", "categorical", size=4),
        FeatureConfig("region", "user", "categorical", size=7),
    ]
    assert [f.size for f in random_config(features=features).feature_configs] == [4, 7]


def test_newer_file_loads_with_a_warning_and_unknown_key_of_this_format_is_refused(tmp_path):
    """Prevents a file of a later version from failing outright, and a typing error in a file from passing."""
    random_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"surprise": 1}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="unknown key 'surprise'"):
        PolyRecConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps(values | {"format_version": 99}))
    with pytest.warns(UserWarning, match="ignored keys: \\['surprise'\\]"):
        loaded = PolyRecConfig.from_pretrained(tmp_path)
    assert loaded.hidden_size == 8


def test_file_of_older_format_without_a_key_takes_the_default(tmp_path):
    """Prevents a configuration saved before an option existed from failing to load."""
    random_config(hidden_size=16).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["numeric_bins"]
    path.write_text(json.dumps(values))
    assert PolyRecConfig.from_pretrained(tmp_path).numeric_bins == 8


def test_schema_and_registry_need_no_torch():
    """Prevents the command line's --help from importing torch: names are checked by file names alone."""
    program = (
        "import sys; sys.argv[0] = 'polyrec'\n"
        "from polyrec.core.schema import TaskConfig\n"
        "from polyrec.core.registry import EXPERTS\n"
        "TaskConfig('like', head='binary'), EXPERTS.names()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_defaults_are_those_that_docs_and_cards_were_written_with():
    """Prevents an option that nobody set from changing every model that is trained anew."""
    assert PolyRecConfig(tasks=TASKS).item_cooccurrence == 0.0
    assert EXPERTS.get("lml").default_options["rank"] == 8
    assert HEADS.get("count").default_options["mean"] == 1.0


def test_nested_configurations_have_attributes_and_come_back(tmp_path):
    """Prevents `config.text.model` from working before saving only, and config.json files of before from loading else."""
    small = {"hidden_size": 8, "num_attention_heads": 2}
    bert, llama = (json.loads(kind(**small).to_json_string()) for kind in (BertConfig, LlamaConfig))
    config = PolyRecConfig(
        tasks=[TaskConfig("like", head="binary")],
        text={"model": "a/b", "architecture": bert, "adapters": ["x"], "tuning": "lora"},
        history_backbone={"model": "c/d", "architecture": llama},
        distillation={"tasks": {"like": {"alpha": 0.7}}},
    )
    assert (config.text.model, config.text.tuning, config.history_backbone.tuning) == ("a/b", "lora", "lora")
    assert config.distillation.tasks["like"].alpha == 0.7
    plain = config.to_dict()
    assert json.loads(config.to_json_string())["text"]["adapters"] == ["x"]
    assert plain["text"]["model"] == "a/b"
    assert plain["distillation"]["tasks"]["like"]["alpha"] == 0.7
    config.save_pretrained(tmp_path)
    for loaded in (PolyRecConfig.from_pretrained(tmp_path), PolyRecConfig.from_dict(plain), copy.deepcopy(config)):
        for name in ("text", "history_backbone", "distillation"):
            assert getattr(loaded, name) == getattr(config, name)
    with pytest.raises(ValueError, match="unknown key 'modle' in text; did you mean 'model'"):
        PolyRecConfig(text={"modle": "a/b"})
