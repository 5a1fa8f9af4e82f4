"""Pretrained backbones: what is learnt, what is saved, what comes back."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, model_inputs, tiny_model
from safetensors.torch import load_file
from text_fixtures import tiny_bert
from transformers import AutoModel, LlamaConfig, LlamaModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor, PolyRecTrainer
from polyrec.core.backbones import BackboneConfig, TextConfig, resolve
from polyrec.core.manifest import write_manifest
from polyrec.modules.encoders.backbone import Backbone, backbones
from polyrec.modules.encoders.history import PretrainedHistory

TUNINGS = ["frozen", "top:1", "lora", "full"]


def text_model(tuning, **text):
    processor, data = fit(text={"model": str(tiny_bert()), "template": "{title} {genre}"})
    model = tiny_model(processor, text={"tuning": tuning, **text})
    model.load_texts(processor)
    return processor, data, model


def trained(folder, tuning, steps=3, **text):
    processor, data, model = text_model(tuning, **text)
    settings = arguments(folder, max_steps=steps, per_device_train_batch_size=8, backbone_learning_rate=1e-2)
    trainer = PolyRecTrainer(model, settings, data.train, data.valid, processing_class=processor)
    trainer.train()
    return processor, data, trainer


def batch_of(data):
    return PolyRecCollator()([data[i] for i in range(4)])


def answers(model, data):
    batch = model_inputs(batch_of(data))
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("tuning", TUNINGS)
def test_one_from_pretrained_restores_base_adapter_heads_and_weighting(tuning, tmp_path):
    """Prevents what befell sentence-transformers (189, 2872, 3980): heads or adapters lost by saving."""
    processor, data, trainer = trained(tmp_path / "run", tuning)
    before = answers(trainer.model, data.valid)
    trainer.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    assert loaded.config.text.fingerprint is not None or tuning in ("top:1", "full")
    old, new = trainer.model.state_dict(), loaded.state_dict()
    assert old.keys() == new.keys()
    for name, value in old.items():
        torch.testing.assert_close(value, new[name], atol=0, rtol=0, equal_nan=True, msg=name)
    for task, logits in answers(loaded, data.valid).items():
        assert torch.equal(logits, before[task])
    assert PolyRecProcessor.from_pretrained(tmp_path / "saved").item_tokens().flat.tolist() == (
        processor.item_tokens().flat.tolist()
    )


@pytest.mark.parametrize("tuning", TUNINGS)
def test_only_what_is_tuned_learns_also_after_loading(tuning, tmp_path):
    """Prevents transformers from making every loaded parameter a trainable one, and a frozen base from drifting."""
    base = AutoModel.from_pretrained(tiny_bert()).state_dict()
    _, _, trainer = trained(tmp_path, tuning)
    trainer.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    for model in (trainer.model, loaded):
        learnt = {n for n, p in model.named_parameters() if p.requires_grad and ".text.encoder." in n}
        assert bool(learnt) == (tuning != "frozen")
        if tuning == "lora":
            assert all("lora_" in name for name in learnt)
        if tuning == "top:1":
            assert all(".layer.1." in name for name in learnt)
        for _, backbone in backbones(model):
            for name, value in backbone.transformer().state_dict().items():
                plain = name.replace(".base_layer", "")
                kept = tuning in ("frozen", "lora") or (tuning == "top:1" and ".layer.1." not in name)
                if plain in base and kept:
                    assert torch.equal(value, base[plain]), name


def test_a_lora_checkpoint_leaves_the_base_out_and_misses_nothing(tmp_path, caplog):
    """Prevents adapters of a few kilobytes from being saved with the whole backbone, and false alarms in loading."""
    _, _, trainer = trained(tmp_path, "lora")
    trainer.save_model(tmp_path / "saved")
    held = [name for name in load_file(tmp_path / "saved" / "model.safetensors") if ".text.encoder." in name]
    assert held
    assert all("lora_" in name for name in held)
    _, info = PolyRecForRecommendation.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_base_that_changed_is_refused(tuning, tmp_path):
    """Prevents adapters or stored vectors from being read with other weights than they were made for."""
    base = AutoModel.from_pretrained(tiny_bert())
    base.save_pretrained(tmp_path / "base")
    config = resolve(BackboneConfig(str(tmp_path / "base"), tuning=tuning))
    backbone = Backbone(config)
    backbone.transformer()
    with torch.no_grad():
        base.embeddings.word_embeddings.weight[0, 0] += 1
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="is another one now"):
        Backbone(backbone.config).transformer()


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_merge_and_save_needs_no_other_files(tuning, tmp_path):
    """Prevents a model that was meant to stand alone from depending on a folder that is gone."""
    _, data, trainer = trained(tmp_path / "run", tuning)
    before = answers(trainer.model, data.valid)
    trainer.model.merge_and_save(tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    config["text"]["model"] = "gone/away"
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config))
    write_manifest(tmp_path / "merged")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "merged")
    for task, logits in answers(loaded, data.valid).items():
        torch.testing.assert_close(logits, before[task], atol=1e-5, rtol=1e-4)
    assert any(".text.encoder." in name for name, _ in loaded.named_parameters())


def test_adapters_are_switched_at_run_time_and_learn_apart(tmp_path):
    """Prevents one adapter's training from moving another's answers."""
    processor, data, model = text_model("lora", adapters=["en", "fr"])
    start = answers(model, data.valid)
    model.set_adapter("fr")
    settings = arguments(tmp_path, max_steps=3, per_device_train_batch_size=8, backbone_learning_rate=1e-1)
    PolyRecTrainer(model, settings, data.train, data.valid, processing_class=processor).train()
    moved = {n: p for n, p in model.named_parameters() if "lora_B" in n}
    assert all((p != 0).any() == ("fr" in n) for n, p in moved.items() if ".layer." in n)
    french = answers(model, data.valid)
    model.set_adapter("en")
    english = answers(model, data.valid)
    assert any(not torch.equal(french[task], english[task]) for task in french)
    assert start.keys() == english.keys()
    with pytest.raises(ValueError, match="no backbone has an adapter 'de'"):
        model.set_adapter("de")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "lorra"}, "did you mean 'lora'"),
        ({"tuning": "top:N"}, "write the number"),
        ({"tuning": "top:9"}, "has 2 layers"),
        ({"lora": {"r": 4}}, "but tuning is 'frozen'"),
        ({"model": "/no/such/model"}, "cannot read the backbone"),
        ({"model": ""}, "give a name on the Hub or a folder"),
        ({"tuning": "lora", "adapters": ["a", "a"]}, "different names"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_fix(options, message):
    """Prevents a misspelt tuning from training nothing, or everything."""
    with pytest.raises(ValueError, match=message):
        Backbone(resolve(BackboneConfig(**{"model": str(tiny_bert()), **options})))


def test_missing_weights_are_named(tmp_path):
    """Prevents a random backbone from taking the place of one whose weights are not there."""
    config = resolve(BackboneConfig(str(tiny_bert()), tuning="full"))
    with pytest.raises(ValueError, match="cannot read the weights"):
        Backbone(replace(config, model=str(tmp_path)))


def llama(folder):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    LlamaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_pretrained_history_encoder_is_causal_learns_and_comes_back(kind, tuning, tmp_path):
    """Prevents states that see later events, and a language model that is lost by saving."""
    name = llama(tmp_path / "llama") if kind == "llama" else str(tiny_bert())
    processor, data = fit()
    model = tiny_model(processor, history_backbone={"model": name, "tuning": tuning})
    assert not model.model.history_encoder.backbone.leave.weight.any()  # states begin as the events
    settings = arguments(tmp_path, max_steps=2, per_device_train_batch_size=8)
    trainer = PolyRecTrainer(model, settings, data.train, data.valid, processing_class=processor)
    trainer.train()
    batch = model_inputs(batch_of(data.valid))
    batch.pop("labels")
    model.eval()
    with torch.no_grad():
        states = model.model(batch["item_ids"], batch["event_features"], batch["user_features"]).last_hidden_state
        batch["item_ids"][:, -1] = 2 + batch["item_ids"][:, -1] % 5
        later = model.model(batch["item_ids"], batch["event_features"], batch["user_features"]).last_hidden_state
    torch.testing.assert_close(states[:, :-1], later[:, :-1], atol=1e-5, rtol=1e-4)
    trainer.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    before = answers(model, data.valid)
    for task, logits in answers(loaded, data.valid).items():
        torch.testing.assert_close(logits, before[task])


def test_a_backbone_without_causal_attention_is_refused(tmp_path):
    """Prevents training on states that see the future."""
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=8, dim=16, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
        tmp_path
    )
    config = resolve(BackboneConfig(str(tmp_path), tuning="lora"))
    with pytest.raises(ValueError, match="reads histories in both directions"):
        PretrainedHistory(config, 8)
    with pytest.raises(ValueError, match="use tuning 'lora'"):
        PretrainedHistory(replace(config, tuning="frozen"), 8)


def test_files_of_sentence_transformers_say_how_to_pool(tmp_path):
    """Prevents a model that was trained with its first token from being read by the mean."""
    AutoModel.from_pretrained(tiny_bert()).save_pretrained(tmp_path)
    kinds = ["Transformer", "Pooling"]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": f"{n}_{k}" * (n > 0)} for n, k in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = resolve(TextConfig(str(tmp_path)))
    assert (found.pooling, found.normalize, found.max_length) == ("cls", False, 40)
    assert (found.prompt, found.query_prompt) == ("passage: ", "query: ")
    assert resolve(TextConfig(str(tmp_path), pooling="max")).pooling == "max"
    modules.append({"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="layer 'Dense' that polyrec does not build"):
        resolve(TextConfig(str(tmp_path)))


def vectors_of(model, processor):
    text = model.item_encoder.text
    with torch.no_grad():
        return text.encoder.eval()(text.tokens)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_adapters_go_to_peft_and_come_back(tmp_path):
    """Prevents adapters that only polyrec can read, and ones of PEFT that are read into the wrong layers."""
    from peft import PeftModel

    processor, _, trainer = trained(tmp_path / "run", "lora")
    model = trainer.model
    model.save_adapter(tmp_path / "adapter")
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir() if f.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModel.from_pretrained(tiny_bert(), add_pooling_layer=False)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens, real = (torch.from_numpy(values) for values in model.item_encoder.text.tokens.padded(np.arange(2, 8)))
    ours = model.item_encoder.text.encoder.backbone.transformer().eval()
    with torch.no_grad():
        found, plain = (
            m(input_ids=tokens, attention_mask=real.long()).last_hidden_state
            for m in (theirs, AutoModel.from_pretrained(tiny_bert(), add_pooling_layer=False).eval())
        )
        expected = ours(input_ids=tokens, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=1e-3)
    _, _, fresh = text_model("lora")
    before = vectors_of(fresh, processor)
    fresh.load_adapter(tmp_path / "adapter", name="trained")
    torch.testing.assert_close(vectors_of(fresh, processor), before)  # it is there, and not active
    fresh.set_adapter("trained")
    torch.testing.assert_close(vectors_of(fresh, processor), vectors_of(model, processor))
    fresh.save_pretrained(tmp_path / "both")
    again = PolyRecForRecommendation.from_pretrained(tmp_path / "both")
    again.load_texts(processor)
    again.set_adapter("trained")
    torch.testing.assert_close(vectors_of(again, processor), vectors_of(model, processor))


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    """Prevents an adapter of another rank, or of no adapter at all, from being taken over in part."""
    _, _, model = text_model("lora")
    model.save_adapter(tmp_path / "adapter")
    _, _, other = text_model("lora", lora={"r": 4})
    with pytest.raises(ValueError, match="the adapter has r=8, the model's have 4"):
        other.load_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors: give a folder"):
        model.load_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no adapter 'english'"):
        model.save_adapter(tmp_path / "x", name="english")
    with pytest.raises(ValueError, match=r"0 backbones have LoRA adapters \(none\): configure one"):
        text_model("full")[2].save_adapter(tmp_path / "x")


@register_quantization_config("rounding")
class RoundingConfig(QuantizationConfigMixin):
    def __init__(self, step=0.05, **unused):
        self.quant_method, self.step = "rounding", step


@register_quantizer("rounding")
class Rounding(HfQuantizer):
    """The smallest quantizer: whole steps, in the place and by the hooks of bitsandbytes and torchao."""

    requires_calibration = False
    is_trainable = True

    def is_serializable(self, **unused):
        return True

    def _process_model_after_weight_loading(self, model, **unused):
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = (module.weight / self.quantization_config.step).round() * 0.05
        return model


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_quantized_base_is_quantized_again_when_it_is_loaded(tuning, tmp_path):
    """Prevents a model that was trained on a quantized base from being served on another one, and lost adapters."""
    processor, data, trainer = trained(
        tmp_path / "run", tuning, quantization_config=RoundingConfig(), device_map={"": "cpu"}
    )
    base = trainer.model.item_encoder.text.encoder.backbone.transformer()
    for name, weight in base.named_parameters():
        if name.endswith("query.weight") or name.endswith("query.base_layer.weight"):
            torch.testing.assert_close(weight / 0.05, (weight / 0.05).round())
    before = answers(trainer.model, data.valid)
    trainer.save_model(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["text"]
    assert saved["quantization_config"] == {"quant_method": "rounding", "step": 0.05}
    assert saved["device_map"] == {"": "cpu"}
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    loaded.load_texts(processor)
    for task, logits in answers(loaded, data.valid).items():
        torch.testing.assert_close(logits, before[task])
    with pytest.raises(ValueError, match="cannot be merged"):
        loaded.item_encoder.text.encoder.backbone.merge()


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_history_backbone_takes_a_place_and_a_quantizer(device_map, tmp_path):
    """Prevents arguments of the history backbone that are accepted and reach nothing."""
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "llama")
    config = resolve(BackboneConfig(
        str(tmp_path / "llama"), tuning="lora", device_map=device_map, quantization_config={"quant_method": "rounding"}
    ))  # fmt: skip
    encoder = PretrainedHistory(config, 4)
    weight = encoder.backbone.transformer().layers[0].mlp.up_proj.base_layer.weight
    torch.testing.assert_close(weight / 0.05, (weight / 0.05).round())
    assert encoder(torch.zeros(1, 3, 4)).shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_4bits": True}}, "quant_method"),
    ],
)
def test_a_quantizer_that_is_missing_is_one_line(given, message):
    """Prevents a traceback of another library as the only hint at what to install."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("it is installed")
    with pytest.raises(ValueError, match=message) as error:
        text_model("lora", **given)
    assert "\n" not in str(error.value)


def test_places_and_quantizers_that_do_not_go_with_the_tuning_are_refused():
    """Prevents a tuned backbone in pieces that the trainer puts together again, and a quantized one that is saved."""
    with pytest.raises(ValueError, match="quantization_config is for weights that stay as they are"):
        BackboneConfig("some/model", tuning="full", quantization_config={"quant_method": "rounding"})
    for spread in ("auto", {"embeddings": 0, "encoder": "cpu"}):
        assert BackboneConfig("some/model", device_map=spread).device_map == spread
        with pytest.raises(ValueError, match="on several devices"):
            BackboneConfig("some/model", tuning="lora", device_map=spread)


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_base_in_half_precision_learns_in_single_precision(tuning, tmp_path):
    """Prevents adapters that are learnt in bfloat16, a base that is loaded in another precision, and vectors that are."""
    processor, data, trainer = trained(tmp_path / "run", tuning, dtype="bfloat16", attention="eager")
    backbone = trainer.model.item_encoder.text.encoder.backbone
    base = backbone.transformer()
    kinds = {("lora" if "lora_" in name else "base"): p.dtype for name, p in base.named_parameters()}
    assert kinds["base"] == torch.bfloat16
    assert kinds.get("lora", torch.float32) == torch.float32
    assert base.config._attn_implementation == "eager"
    before = answers(trainer.model, data.valid)
    trainer.save_model(tmp_path / "saved")
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path / "saved")
    loaded.load_texts(processor)
    assert loaded.item_encoder.text.encoder.backbone.transformer().dtype == torch.bfloat16
    for task, logits in answers(loaded, data.valid).items():
        torch.testing.assert_close(logits, before[task])
    for wrong, message in (
        ({"dtype": "int4"}, "dtype is 'int4'; it must be 'float32'"),
        ({"dtype": "float16"}, "stay as they are"),
    ):
        with pytest.raises(ValueError, match=message):
            BackboneConfig("some/model", tuning="full", **wrong)
