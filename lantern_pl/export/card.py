"""The model card of an exported student: how to load it, what it was made from, how good it is, where it ends."""

from typing import Any

from lantern_pl.export.source import Source
from lantern_pl.pair_classifier import HEAD_CONFIG
from lantern_pl.text import chat_prompt, load_tokenizer

_LIMITS = """\
## Limits

It says how well texts go together, not what a person can do, and it was trained on what one teacher said. Don't let it
decide about a person alone. Group differences, swapped names and texts that try to talk it round are measured by
`lantern audit`; without its figures above, nothing is known of them. A model trained on texts of real persons may have
learned some by heart."""


_CHAT = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def model_card(source: Source, measured: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that the model hub reads."""
    manifest = source.manifest
    kind = manifest["kind"]
    parts = [
        _front_matter(manifest, kind),
        f"# {'A decoder' if kind == 'decoder' else 'An encoder'} student\n\n{_about(manifest, kind)}",
        "## Load it\n\n" + (_load_decoder(source) if kind == "decoder" else _load_encoder(source, bool(measured))),
        "## Made from\n\n" + _made_from(manifest),
    ]
    if test := source.file("test.json"):
        parts.append("## Figures\n\n" + _figures(test))
    if audit := source.file("audit.json"):
        parts.append("## Audit\n\n" + _audit(audit))
    if measured:
        parts.append("## Speed\n\n" + _speed(measured))
    return "\n\n".join([*parts, _LIMITS]) + "\n"


def _front_matter(manifest: dict[str, Any], kind: str) -> str:
    pipeline = "text-generation" if kind == "decoder" else "text-classification"
    lines = ["library_name: transformers", f"pipeline_tag: {pipeline}", "tags: [lantern-pl, distillation]"]
    base = str(manifest["student"]["started_from"])
    if base.count("/") == 1 and not base.startswith(("/", ".", "runs/")):  # a name on the hub
        lines.append(f"base_model: {base}")
    return "---\n" + "\n".join(lines) + "\n---"


def _about(manifest: dict[str, Any], kind: str) -> str:
    levels = ", ".join(manifest["task"]["levels"])
    does = "explains how well a candidate fits a job" if kind == "decoder" else "tells how well a candidate fits a job"
    size = manifest["student"]["parameters"] / 1e6
    length = manifest["data"]["max_length"]
    return (
        f"It {does}, on the levels {levels}. {size:.1f}M parameters; texts up to {length} tokens, longer ones are to be cut."
    )


def _load_decoder(source: Source) -> str:
    prompt = source.task.prompt.replace("{levels}", ", ".join(source.task.levels))
    new_tokens = source.manifest["student"].get("max_new_tokens", 128)
    tokenizer = load_tokenizer(str(source.student))
    if tokenizer.chat_template is None:
        shown = f"f{chat_prompt(tokenizer, '{question}')!r}"
        inputs = f'inputs = tokenizer({shown}, add_special_tokens=False, return_tensors="pt")'
        served = "`vllm serve .` serves it for completions: it has no chat template, so give it the prompt as above"
    else:
        inputs = _CHAT
        served = "`vllm serve .` serves it with the same chat template"
    return f'''\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
question = """{prompt}""".format(job_text=job_text, candidate_text=candidate_text)
{inputs}
answer = model.generate(**inputs, max_new_tokens={new_tokens}, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

{served}; `lantern serve --decoder .` also checks what it says: the form of the
answer, and that what it quotes stands in the texts.'''


def _load_encoder(source: Source, onnx: bool) -> str:
    own = (source.student / "README.md").read_text(encoding="utf-8").partition("\n\n")[2].strip()
    native = "AutoModelForSequenceClassification" in own
    parts = [own]
    if native:
        parts.append(
            "sentence-transformers reads it as a cross-encoder; its scores are the levels' logits:\n\n"
            "```python\nfrom sentence_transformers import CrossEncoder\n\n"
            'probs = CrossEncoder(".").predict([(job_text, candidate_text)], apply_softmax=True)\n```'
        )
    else:
        parts.append(f"No class of transformers has this head ({HEAD_CONFIG}), so CrossEncoder can't load it.")
    if onnx:
        parts.append(
            "onnx/model.onnx and onnx/model_int8.onnx take input_ids, attention_mask and, where the tokenizer gives them, "
            "token_type_ids, of any batch and length, and return logits. `lantern serve --encoder . --encoder_format int8` "
            "serves it."
        )
    return "\n\n".join(parts)


def _made_from(manifest: dict[str, Any]) -> str:
    student, teacher = manifest["student"], manifest["teacher"]
    loss = student["loss"]
    mixture = " + ".join(f"{weight} {name}" for name, weight in (loss.get("mixture") or {}).items())
    terms = [f"{loss['cross_entropy']} cross-entropy"] if loss.get("cross_entropy") else []
    said = "none; it learned from labels alone" if teacher is None else teacher.get("model") or teacher["class"]
    rows = {
        "started from": _model_name(student["started_from"]),
        "layers": _layers(student.get("layers")),
        "teacher": _model_name(str(said)),
        "loss": " + ".join([*terms, *([mixture] if mixture else [])]),
        "training pairs": manifest["data"]["splits"]["train"]["pairs"],
        "fingerprint of the pairs": f"`{manifest['data']['splits']['train']['sha256'][:16]}`",
        "steps": manifest["steps"],
        "weights": f"`{manifest['weights']}`",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)


def _model_name(name: str) -> str:
    """A path is of the machine that trained: of it, only the last parts are told."""
    return "/".join(name.rstrip("/").split("/")[-3:]) if name.startswith(("/", "~", ".")) else name


def _layers(layers: Any) -> str:
    return f"{layers['keep']} of the base's, {layers['choose']}" if layers else ""


def _figures(test: dict[str, Any]) -> str:
    models = test["models"]
    names = list(dict.fromkeys(name for model in models.values() for name in model["figures"]))
    lines = [
        f"On {test['pairs']} held-out pairs, with 95 % intervals of resampled {test['data'].get('drawn', 'pairs')}:",
        "",
        f"| figure | {' | '.join(models)} |",
        f"|---|{'---|' * len(models)}",
    ]
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(model['figures'].get(name)) for model in models.values())} |")
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    interval = "" if figure.get("low") is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{interval}"


def _audit(audit: dict[str, Any]) -> str:
    lines = [f"On {audit['pairs']} pairs:", ""]
    return "\n".join(lines + [f"- {finding['kind']}: {finding['text']}" for finding in audit["findings"]])


def _speed(measured: dict[str, Any]) -> str:
    on = measured["measured_on"]
    lines = [
        f"On {on['pairs']} pairs from {on['from']}, {on['threads']} CPU threads, tokenizing included:",
        "",
        "| form | pairs/s | of torch | macro F1 | same level as torch |",
        "|---|---|---|---|---|",
    ]
    for name, speed in measured["speed"].items():
        quality = measured["quality"][name]
        f1 = f"{quality['macro_f1']:.3f}" if "macro_f1" in quality else ""
        lines.append(f"| {name} | {speed['pairs_per_second']} | {speed['of_torch']} | {f1} | {quality['same_level']:.1%} |")
    return "\n".join(lines)
