"""From a scan to findings."""

from __future__ import annotations

from frostline.auditing.balance import find_classes, find_groups
from frostline.auditing.duplicates import find_duplicates
from frostline.auditing.findings import Finding, ordered
from frostline.auditing.pictures import blank_pictures, find_pictures
from frostline.auditing.scanning import Scan
from frostline.auditing.thresholds import AuditThresholds


def find(scan: Scan, thresholds: AuditThresholds | None = None) -> list[Finding]:
    """What is wrong with the files, the pictures, their copies, classes and groups; the largest harm first.

    Args:
        scan: the pictures.
        thresholds: from where on; the default is `AuditThresholds`.
    """
    thresholds = thresholds or AuditThresholds()
    blank = blank_pictures(scan, thresholds)
    return ordered(
        [
            *find_pictures(scan, thresholds, blank),
            *find_duplicates(scan, thresholds, blank),
            *find_classes(scan, thresholds),
            *find_groups(scan),
        ]
    )
