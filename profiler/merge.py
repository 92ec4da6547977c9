"""Adds the counts of several runs of one model: shards of a text that were counted by themselves, perhaps elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from profiler.artifacts import UserError
from profiler.profile import DOMAIN_LIMIT, HALVES, Profile, compact


def merge_profiles(profiles: Mapping[str, Profile]) -> Profile:
    """The sum of several profiles, by the names that messages call them.

    Counts add up where the runs asked the same question of the same model: the same weights, the same thresholds, and
    predictors that are the same weight for weight (or none in any of them), since `named` is what those said. Domains
    of one name are one domain. Each text may be in only once.

    Raises:
        UserError: fewer than two profiles, or ones that do not add up: names both and says why.
    """
    if len(profiles) < 2:
        raise UserError("merging takes at least two profiles")
    (first_name, first), *rest = profiles.items()
    for name, other in rest:
        _check_alike(first_name, first, name, other)
    texts: dict[str, str] = {}
    for name, profile in profiles.items():
        if (same := texts.setdefault(profile.corpus_digest, name)) != name:
            raise UserError(f"{same} and {name} counted the same text, which would count twice")
    for name, profile in profiles.items():
        if profile.parts is None:
            raise UserError(f"{name} is of format version 1, without domains and halves; profile its text anew")
    domains = tuple(dict.fromkeys(domain for profile in profiles.values() for domain in profile.domains))
    if len(domains) > DOMAIN_LIMIT:
        raise UserError(
            f"together the profiles have {len(domains)} domains, and a profile holds at most {DOMAIN_LIMIT}; "
            "profile folders instead of single files, or give their texts the same names"
        )
    parts = np.zeros((len(domains), HALVES, first.layers, first.neurons), dtype=np.int64)
    part_tokens = np.zeros((len(domains), HALVES), dtype=np.int64)
    for profile in profiles.values():
        assert profile.parts is not None
        places = [domains.index(domain) for domain in profile.domains]
        parts[places] += profile.parts
        part_tokens[places] += np.array(profile.part_tokens)
    every = profiles.values()
    return Profile(
        first.source_digest,
        hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest(),
        sum(profile.tokens for profile in every),
        active=parts.sum((0, 1)),
        named=np.sum([profile.named for profile in every], axis=0),
        union4=np.sum([profile.union4 for profile in every], axis=0),
        union16=np.sum([profile.union16 for profile in every], axis=0),
        thresholds=first.thresholds,
        has_predictors=first.has_predictors,
        predictors_digest=first.predictors_digest,
        domains=domains,
        part_tokens=tuple((int(one), int(other)) for one, other in part_tokens),
        parts=compact(parts),
        documents=np.unique(np.concatenate([profile.documents for profile in every])),
    )


def _check_alike(one_name: str, one: Profile, other_name: str, other: Profile) -> None:
    both = f"{one_name} and {other_name}"
    if one.source_digest != other.source_digest:
        raise UserError(f"{both} are profiles of different models")
    if one.active.shape != other.active.shape:
        raise UserError(f"{both} count different numbers of layers or neurons: one of them is damaged")
    if one.thresholds != other.thresholds:
        raise UserError(f"{both} counted activations above different thresholds, which do not add up")
    if (one.has_predictors, one.predictors_digest) != (other.has_predictors, other.predictors_digest):
        raise UserError(
            f"{both} were counted with different predictors, and what those named does not add up; profile one text, "
            "then the others with: hybrid profile DIR --predictors NAME"
        )
