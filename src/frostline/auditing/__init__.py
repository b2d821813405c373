"""What is wrong with a data set: its files, pictures, copies, labels and splits."""

from frostline.auditing.balance import class_counts
from frostline.auditing.drift import find_drift
from frostline.auditing.features import Features, features
from frostline.auditing.finding import find
from frostline.auditing.findings import HARM, Finding, Kind, Place, ordered
from frostline.auditing.label_errors import LabelErrors, find_label_errors, joined_groups, require_cleanlab
from frostline.auditing.scanning import FACTS, Fault, Scan, SplitScan, scan
from frostline.auditing.thresholds import AuditThresholds

__all__ = [
    "FACTS",
    "HARM",
    "AuditThresholds",
    "Fault",
    "Features",
    "Finding",
    "Kind",
    "LabelErrors",
    "Place",
    "Scan",
    "SplitScan",
    "class_counts",
    "features",
    "find",
    "find_drift",
    "find_label_errors",
    "joined_groups",
    "ordered",
    "require_cleanlab",
    "scan",
]
