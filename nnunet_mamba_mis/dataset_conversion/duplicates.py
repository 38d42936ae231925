"""Find images that are there twice: the same file, or the same picture at another size, quality or colour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nnunet_mamba_mis.dataset_conversion.cases import CaseFacts
from nnunet_mamba_mis.dataset_conversion.fingerprints import near_pairs
from nnunet_mamba_mis.dataset_conversion.groups import Forest

Pair = tuple[CaseFacts, CaseFacts]


def exact_duplicates(facts: Sequence[CaseFacts]) -> list[Pair]:
    """Return each case whose image is the same file as an earlier one's, after that one."""
    first: dict[str, CaseFacts] = {}
    return [(first[case.image_sha256], case) for case in facts if first.setdefault(case.image_sha256, case) is not case]


def duplicates(facts: Sequence[CaseFacts]) -> list[Pair]:
    """Return pairs of the same image, or nearly so: as few as join all that belong together, however many do."""
    with_fingerprint = [case for case in facts if case.fingerprint]
    near = (
        (with_fingerprint[i], with_fingerprint[j])
        for i, j in near_pairs([case.fingerprint for case in with_fingerprint])
    )
    forest = Forest(case.case.identifier for case in facts)
    pairs = itertools.chain(exact_duplicates(facts), near)
    return [(one, other) for one, other in pairs if forest.join(one.case.identifier, other.case.identifier)]
