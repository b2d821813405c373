"""The control: the same proofs on Lightning without a schedule, where everything learns. It has to pass all."""

from __future__ import annotations

from proofs import Setting, main

EVERYTHING = ("head", "backbone")

if __name__ == "__main__":
    main("Lightning without a schedule (control)", {"all learn": Setting(lambda folder: [], {0: EVERYTHING})})
