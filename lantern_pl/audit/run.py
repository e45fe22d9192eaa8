"""One audit: what is asked, in which order, and what is made of the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from lantern_pl.audit import amplification
from lantern_pl.audit.answers import Answers, Levels
from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.display import show
from lantern_pl.audit.findings import Comparison, Finding, Table, correct, findings
from lantern_pl.audit.groups import Grouping, groupings, read_groups
from lantern_pl.audit.injections import Attack, attack_comparisons, compare_attacks, plan_attacks, read_families
from lantern_pl.audit.mentions import mention_report
from lantern_pl.audit.rates import Outcomes, outcomes, rate_comparisons, rate_tables, uncompared
from lantern_pl.audit.swap_lists import read_swap_list
from lantern_pl.audit.swaps import SwapPlan, number_candidates, one_of_each, plan_swaps, swap_comparisons, swap_table
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint, read_labelled
from lantern_pl.plugin_checks import ask

FORMAT = 1
_ORDER = ("flag", "insufficient data", "clear")


@dataclass(frozen=True)
class Report:
    """What an audit says."""

    config: AuditConfig
    pairs: Sequence[Pair]
    findings: Sequence[Finding]
    tables: Sequence[Table]
    comparisons: int

    @property
    def flagged(self) -> bool:
        return any(finding.kind == "flag" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The format of audit.json."""
        config = self.config
        left_out = {"models", "student", "teacher", "task", "out"}
        settings = {key.name: getattr(config, key.name) for key in fields(config) if key.name not in left_out}
        settings |= {"injections": asdict(config.injections), "levels": config.task.levels, "comparisons": self.comparisons}
        return {
            "format": FORMAT,
            "models": list(config.models),
            "student": config.student,
            "teacher": config.teacher,
            "pairs": len(self.pairs),
            "data": {"path": config.pairs, "sha256": fingerprint(self.pairs)},
            "settings": settings,
            "findings": [asdict(finding) for finding in self.findings],
            "tables": [table.as_json() for table in self.tables],
        }


def audit(config: AuditConfig, console: Console) -> Report:
    """Run a whole audit, and show it on the console. Raises UserError for what the user can put right."""
    rows = read_labelled(config.pairs, config.task, config.job_text_field)
    pairs = [pair for pair, _ in rows]
    groups: list[Grouping] = []
    if config.groups is not None:
        groups = groupings(read_groups(config.groups, rows), pairs, config.small_group)
    plans = [plan_swaps(read_swap_list(name), pairs, config.swap_pairs, config.seed) for name in config.swaps]
    answers = [Answers(name, model, config.task, config.batch_size) for name, model in config.models.items()]
    console.print(_preflight(config, pairs, plans), soft_wrap=True)
    if not groups:
        console.print("No groups are given: rates by group are left out, and swapped texts do the work.")
    base = [(pair.job_text, pair.candidate_text) for pair in pairs]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for each in answers:
        each.model.to(device)
        each.ask(base, "pairs")
        for plan in plans:
            each.ask(plan.texts, plan.swap.name)

    said = {each.name: each.levels(base) for each in answers}
    attacks = _attacks(config, pairs, said)
    for each in answers:
        each.ask((text for one in attacks[each.name] for text in (one.attacked, one.harmless)), "injections")

    rated = {name: _outcomes(levels, pairs, config) for name, levels in said.items()}
    swapped = [(each.name, plan, each.levels(plan.texts)) for plan in plans for each in answers]
    by_rates = {name: rate_comparisons(name, found, groups, config) for name, found in rated.items()}
    by_swaps = [one for name, plan, levels in swapped for one in swap_comparisons(name, plan, levels, config)]
    amplified = _amplified(config, rated, swapped, groups)
    mentioned, mention_tables = mention_report(_explanations(config, pairs), config)
    risen, attack_tables = _risen(answers, attacks, config)
    compared = [*(one for found in by_rates.values() for one in found), *by_swaps, *amplified, *mentioned, *risen]
    # All at once, whatever they are of: a false flag is one wherever it stands.
    correct(compared)

    tables = [
        table
        for name, found in rated.items()
        for table in (rate_tables(name, found, groups, by_rates[name], str(config.selected_from)) if groups else ())
    ]
    for each in answers if plans else ():
        asked = [(plan, levels) for name, plan, levels in swapped if name == each.name]
        tables.append(swap_table(each.name, asked, by_swaps, len(compared), config))
    if amplified:
        tables.append(amplification.amplification_table(amplified))
    tables += [*mention_tables, *attack_tables]
    made = findings(compared, config.confidence)
    made += _not_measured(config, groups, pairs, said, attacks)
    made += [
        Finding("insufficient data", about, text)
        for name, found in rated.items()
        for about, text in uncompared(name, found, groups, by_rates[name])
    ]
    made.sort(key=lambda finding: _ORDER.index(finding.kind))
    report = Report(config, pairs, made, tables, len(compared))
    show(console, made, tables, config)
    return report


def _preflight(config: AuditConfig, pairs: Sequence[Pair], plans: Sequence[SwapPlan]) -> str:
    """How many model calls are coming."""
    base = {(pair.job_text, pair.candidate_text) for pair in pairs}
    swapped = {text for plan in plans for text in plan.texts} - base
    candidates = len({pair.candidate_id for pair in pairs})
    attacks = 2 * len(read_families(config.injections)) * min(config.injections.pairs, candidates)
    total = len(base) + len(swapped) + attacks
    able = [name for name, model in config.models.items() if "annotate" in model.capabilities]
    explained = min(config.explain_pairs, candidates)
    return (
        f"Up to {total:,} questions about levels to each of {', '.join(config.models)}: {len(base):,} pairs, "
        f"{len(swapped):,} swapped texts, {attacks:,} for injections."
        + (f" {explained} explanations of each of {', '.join(able)}." if able and explained else "")
    )


def _attacks(config: AuditConfig, pairs: Sequence[Pair], said: Mapping[str, Levels]) -> dict[str, list[Attack]]:
    """Model -> attacks, on pairs that it puts below the best level: only there it can be raised. First come those that
    student and teacher both put there, so that the two can be compared."""
    if not config.injections.pairs:
        return {name: [] for name in said}
    below = {name: found.level < len(config.task.levels) - 1 for name, found in said.items()}
    both = below[config.student] & below[config.teacher or config.student]

    def those(rows: NDArray[np.bool_]) -> list[Pair]:
        return [pair for pair, is_one in zip(pairs, rows, strict=True) if is_one]

    return {name: plan_attacks(those(rows & both), those(rows & ~both), config) for name, rows in below.items()}


def _outcomes(levels: Levels, pairs: Sequence[Pair], config: AuditConfig) -> Outcomes:
    names = config.task.levels
    annotated = np.array([-1 if pair.level is None else names.index(pair.level) for pair in pairs])
    return outcomes(levels, annotated, number_candidates(pairs), config)


def _amplified(
    config: AuditConfig, rated: Mapping[str, Outcomes], swapped: Sequence[tuple[str, SwapPlan, Levels]],
    groups: Sequence[Grouping],
) -> list[Comparison]:  # fmt: skip
    if config.teacher is None:
        return []
    made = amplification.of_rates(rated[config.student], rated[config.teacher], groups, config)
    teachers = {plan.swap.name: levels for name, plan, levels in swapped if name == config.teacher}
    for name, plan, levels in swapped:
        if name == config.student:
            made += amplification.of_swaps(plan, levels, teachers[plan.swap.name], config)
    return made


def _risen(
    answers: Sequence[Answers], attacks: Mapping[str, Sequence[Attack]], config: AuditConfig
) -> tuple[list[Comparison], list[Table]]:
    comparisons: list[Comparison] = []
    tables: list[Table] = []
    for each in answers:
        if attacks[each.name]:
            found, table = attack_comparisons(each.name, attacks[each.name], each.levels, config)
            comparisons += found
            tables.append(table)
    if config.teacher is not None:
        levels = {each.name: each.levels for each in answers}
        student, teacher = config.student, config.teacher
        found, table = compare_attacks(
            amplification.ABOUT, attacks[student], attacks[teacher], (levels[student], levels[teacher]), config
        )
        comparisons += found
        tables += [table] if found else []
    return comparisons, tables


def _explanations(config: AuditConfig, pairs: Sequence[Pair]) -> dict[str, list[tuple[Pair, str]]]:
    chosen = one_of_each(pairs, config.explain_pairs, Random(f"{config.seed}/explanations"))
    made: dict[str, list[tuple[Pair, str]]] = {}
    for name, model in config.models.items():
        if "annotate" not in model.capabilities or not chosen:
            continue
        made[name] = []
        for start in track(range(0, len(chosen), config.batch_size), f"{name}: explanations"):
            batch = chosen[start : start + config.batch_size]
            with torch.no_grad():
                written = ask(model, partial(model.annotate, batch, config.task))
            made[name] += [(pair, one.explanation or one.text) for pair, one in zip(batch, written, strict=True)]
    return made


def _not_measured(
    config: AuditConfig, groups: Sequence[Grouping], pairs: Sequence[Pair], said: Mapping[str, Levels],
    attacks: Mapping[str, Sequence[Attack]],
) -> list[Finding]:  # fmt: skip
    """What the audit can't say anything of, so that nobody takes it for clear."""
    missing = {}
    if not groups:
        missing["rates by group"] = "No candidate's group is known: give groups, a table or columns of the pairs."
    elif all(pair.level is None for pair in pairs):
        missing["errors by group"] = "No pair is annotated, so that it isn't known who is wrongly turned down."
    for name, found in said.items():
        spread = float(np.ptp(found.score))
        if spread < config.min_effect:
            missing[f"{name}, all of it"] = (
                f"Its scores of all pairs are within {spread:.4f}: it tells no two candidates apart, and so no two groups."
            )
        if config.injections.pairs and not attacks[name]:
            missing[f"{name}, injections"] = "It puts every pair at the best level: there is no level to raise."
    return [Finding("insufficient data", about, text) for about, text in missing.items()]
