"""A backbone with pooling and an MLP head over ordered levels, and its folder on disk."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from lantern_pl.depth_pruning import DepthPruning, keep_layers
from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config, locate

Pooling = Literal["cls", "mean", "last"]
HEAD_FILE = "head.safetensors"
HEAD_CONFIG = "head.json"

# How transformers' own sequence classifiers name what our head is made of: (hidden layer or None, output layer).
_NATIVE_LAYOUTS = (("bert.pooler.dense", "classifier"), ("classifier.dense", "classifier.out_proj"), (None, "score"))


class PairClassifier(nn.Module):
    """Logits [B, K] over ordered levels: a transformers backbone, pooling over tokens, and an MLP.

    The MLP has `depth` hidden layers of the backbone's width with tanh, and an output layer without bias: the shape of
    transformers' own heads, so that a saved student is an ordinary sequence classifier wherever that is possible.
    """

    def __init__(self, backbone: PreTrainedModel, levels: list[str], pooling: Pooling, depth: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.pooling = pooling
        self.depth = depth
        width = backbone.config.get_text_config().hidden_size
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh()]
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, len(levels), bias=False))
        for module in self.head:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.logits_and_layers(inputs, [])[0]

    def logits_and_layers(self, inputs: dict[str, Tensor], layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The logits [B, K], and the hidden states [B, d] of `layers`, each pooled as the last ones are; in one pass.

        Layers are counted as transformers counts `hidden_states`: 0 is the embeddings' output, -1 the last layer's.
        """
        out = self.backbone(**inputs, output_hidden_states=bool(layers))
        last, *pooled = (
            pool(hidden, inputs["attention_mask"], self.pooling)
            for hidden in (out.last_hidden_state, *(out.hidden_states[layer] for layer in layers))
        )
        return self.head(last), pooled


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector [B, d] from the hidden states [B, L, d] of right-padded rows."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)
    last = attention_mask.sum(1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def new_classifier(
    model: str, levels: list[str], pooling: Pooling, depth: int, dropout: float, layers: DepthPruning | None
) -> PairClassifier:
    """A classifier with a fresh head on a pretrained backbone. Raises UserError where what is pooled is always the same."""
    backbone = load_backbone(model, layers)
    if pooling == "cls" and not _first_token_sees_all(backbone):
        raise UserError(
            f"pooling is cls, and {model!r} reads from left to right: its first token knows nothing of the text after it. "
            "Set model.pooling to last, or to mean."
        )
    return PairClassifier(backbone, levels, pooling, depth, dropout)


@torch.no_grad()
def _first_token_sees_all(backbone: PreTrainedModel) -> bool:
    ids = torch.tensor([[5, 6, 7, 8], [5, 8, 6, 7]])  # no padding's
    first = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return not torch.allclose(first[0], first[1])


def load_backbone(model: str, layers: DepthPruning | None = None) -> PreTrainedModel:
    """The backbone of a model reference in fp32, cut to `layers` if given. Raises UserError if it can't be loaded or cut."""
    load_config(model)
    try:
        safe = {"use_safetensors": True, "trust_remote_code": False}
        backbone = AutoModel.from_pretrained(locate(model), dtype=torch.float32, **safe)
    except (OSError, ValueError) as error:
        raise UserError(f"The model {model!r} can't be loaded as a backbone: {error}") from error
    if getattr(backbone, "pooler", None) is not None:
        # Its output isn't used, and DDP refuses parameters without a gradient.
        backbone.pooler = None
    if layers is not None:
        keep_layers(backbone, layers)
    return backbone


def is_classifier(model: str) -> bool:
    """Whether a model reference is a folder that `write_classifier` has written."""
    return (Path(locate(model)) / HEAD_FILE).is_file()


def load_classifier(folder: str, dropout: float = 0.0, layers: DepthPruning | None = None) -> PairClassifier:
    """A classifier from its folder, with its trained head, cut to `layers` if given."""
    path = Path(locate(folder))
    head = json.loads((path / HEAD_CONFIG).read_text())
    backbone = load_backbone(folder, layers)
    classifier = PairClassifier(backbone, head["levels"], head["pooling"], head["depth"], dropout)
    weights = load_file(path / HEAD_FILE)
    linears = [module for module in classifier.head if isinstance(module, nn.Linear)]
    for i, linear in enumerate(linears):
        linear.load_state_dict({name: weights[f"{i}.{name}"] for name in linear.state_dict()})
    return classifier


@torch.no_grad()
def write_classifier(classifier: PairClassifier, tokenizer: Any, folder: Path) -> bool:
    """Write the folder. Returns whether `AutoModelForSequenceClassification` loads it as it is.

    That is so where the architecture's own classifier computes the same function (BERT and RoBERTa families with cls
    pooling and depth 1, causal backbones with last-token pooling and depth 0). Otherwise `AutoModel` loads the backbone,
    and README.md in the folder shows the dozen lines that put the head on it.
    """
    native = as_sequence_classifier(classifier, tokenizer)
    (native or classifier.backbone).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    linears = [module for module in classifier.head if isinstance(module, nn.Linear)]
    save_file(
        {
            f"{i}.{k}": v.detach().cpu().contiguous()
            for i, linear in enumerate(linears)
            for k, v in linear.state_dict().items()
        },
        folder / HEAD_FILE,
        metadata={"format": "pt"},
    )
    head = {"levels": classifier.levels, "pooling": classifier.pooling, "depth": classifier.depth}
    (folder / HEAD_CONFIG).write_text(json.dumps(head, indent=2) + "\n")
    (folder / "README.md").write_text(_NATIVE_README if native else _BACKBONE_README)
    return native is not None


@torch.no_grad()
def as_sequence_classifier(classifier: PairClassifier, tokenizer: Any) -> PreTrainedModel | None:
    """The same function as transformers' own sequence classifier, or None where its class computes another one."""
    config = copy.deepcopy(classifier.backbone.config)
    config.num_labels = len(classifier.levels)
    config.id2label = dict(enumerate(classifier.levels))
    config.label2id = {level: i for i, level in enumerate(classifier.levels)}
    config.problem_type = "single_label_classification"
    config.pad_token_id = tokenizer.pad_token_id
    try:
        native = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # the architecture has no sequence classifier
        return None
    base = getattr(native, native.base_model_prefix)
    base.load_state_dict(classifier.backbone.state_dict(), strict=False)
    linears = [module for module in classifier.head if isinstance(module, nn.Linear)]
    if not any(_fill(native, layout, linears) for layout in _NATIVE_LAYOUTS):
        return None
    was_training = classifier.training
    classifier.eval()
    native.eval()
    texts = ["one text", "another text that is longer"]
    probe = dict(tokenizer(texts, texts, return_tensors="pt", padding=True, padding_side="right"))
    device = next(classifier.parameters()).device
    expected = classifier({name: tensor.to(device) for name, tensor in probe.items()}).cpu()
    classifier.train(was_training)
    return native if torch.allclose(native(**probe).logits, expected, atol=1e-4, rtol=1e-3) else None


def _fill(native: PreTrainedModel, layout: tuple[str | None, str], linears: list[nn.Linear]) -> bool:
    names = [name for name in layout if name is not None]
    if len(names) != len(linears):
        return False
    modules = dict(native.named_modules())
    targets = [modules.get(name) for name in names]
    if not all(
        isinstance(target, nn.Linear) and target.weight.shape == own.weight.shape
        for target, own in zip(targets, linears, strict=True)
    ):
        return False
    for target, own in zip(targets, linears, strict=True):
        assert isinstance(target, nn.Linear)
        target.weight.copy_(own.weight)
        if target.bias is not None:
            target.bias.copy_(own.bias if own.bias is not None else torch.zeros_like(target.bias))
    return True


# What a pair looks like to a tokenizer, as in `data.featurize.EncoderFeaturizer`.
_INPUTS = """\
if tokenizer.sep_token:
    inputs = tokenizer(job_text, candidate_text, return_tensors="pt")
else:
    inputs = tokenizer(f"Job:\\n{job_text}\\n\\nCandidate:\\n{candidate_text}", return_tensors="pt")
"""

_NATIVE_README = f"""\
# A fit classifier

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model, tokenizer = AutoModelForSequenceClassification.from_pretrained("."), AutoTokenizer.from_pretrained(".")
{_INPUTS}logits = model(**inputs).logits[0]
print(model.config.id2label[int(logits.argmax())], logits.softmax(-1))
```
"""

_BACKBONE_README = f"""\
# A fit classifier

The backbone is an ordinary transformers model; its head is the MLP in head.safetensors.

```python
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

backbone, tokenizer = AutoModel.from_pretrained("."), AutoTokenizer.from_pretrained(".")
head, weights = json.load(open("head.json")), load_file("head.safetensors")
{_INPUTS}hidden = backbone(**inputs).last_hidden_state[0]
x = {{"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}}[head["pooling"]]
for i in range(head["depth"]):
    x = torch.tanh(x @ weights[f"{{i}}.weight"].T + weights[f"{{i}}.bias"])
logits = x @ weights[f"{{head['depth']}}.weight"].T
print(head["levels"][int(logits.argmax())], logits.softmax(-1))
```
"""
